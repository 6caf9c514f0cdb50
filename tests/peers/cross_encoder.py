"""A cross-encoder of a model's shape with random weights: `python cross_encoder.py MODEL OUT`."""

from __future__ import annotations

import sys
from random import Random

import torch
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

from vecgate.bench import texts

SPREAD = 1.5
"""Of the logits."""


def main(model: str, out: str) -> None:
    torch.manual_seed(0)
    made = BertForSequenceClassification(AutoConfig.from_pretrained(model, num_labels=1))
    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = Random(0)
    pairs = [(texts.query(rng), texts.chunk(rng)) for _ in range(16)]
    given = tokenizer(pairs, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        logits = made.eval()(**given).logits
    with torch.no_grad():  # so that the scores lie around 0.5 and far apart, as a trained one's do
        made.classifier.weight *= SPREAD / logits.std()
        made.classifier.bias.fill_(-SPREAD * float(logits.mean() / logits.std()))
    made.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
