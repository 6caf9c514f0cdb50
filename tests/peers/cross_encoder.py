"""A cross-encoder of a model's shape with random weights: `python cross_encoder.py MODEL OUT`."""

from __future__ import annotations

import sys

import torch
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification


def main(model: str, out: str) -> None:
    torch.manual_seed(0)
    made = BertForSequenceClassification(AutoConfig.from_pretrained(model, num_labels=1))
    with torch.no_grad():  # so that the scores lie far apart, as a trained one's do
        made.classifier.weight *= 100.0
        made.bert.pooler.dense.weight *= 3.0
    made.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
