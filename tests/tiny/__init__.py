"""Tiny random checkpoints in the layout of real ones: `build(kind, folder)`; `python -m tests.tiny FOLDER` makes all.

Each kind's docstring names the repository whose files it copies. Seeds are fixed, so the weights are the same bytes each
time. Different texts give rows with |cosine| < 0.9, and float32 stays far within the tolerances of the tests.
Needs torch and transformers; the conversions need mlx too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tests.tiny import conversions, decoders, encoders, rerankers

SEED = 20
KINDS: dict[str, Callable[[Path], None]] = {
    "bert": encoders.bert,
    "xlmr": encoders.xlmr,
    "modernbert": encoders.modernbert,
    "qwen3": decoders.qwen3,
    "bert-reranker": rerankers.bert,
    "xlmr-reranker": rerankers.xlmr,
}
"""What every test of files, tokenizers and backends may take: one of each kind of tokenizer and head."""
MORE: dict[str, Callable[[Path], None]] = {
    "bge": encoders.bge,
    "roberta": encoders.roberta,
    "modernbert-mean": encoders.modernbert_mean,
    "nomic_bert": encoders.nomic_bert,
    "nomic_bert-native": encoders.nomic_bert_native,
    "mpnet": encoders.mpnet,
    "distilbert": encoders.distilbert,
    "distiluse": encoders.distiluse,
    "pooled": encoders.pooled,
    "pooled-old": encoders.pooled_old,
    "instructor": encoders.instructor,
    "qwen3-untied": decoders.qwen3_untied,
    "gemma3": decoders.gemma3,
    "mistral": decoders.mistral,
    "qwen2": decoders.qwen2,
    "llama": decoders.llama,
    "modernbert-reranker": rerankers.modernbert,
    "modernbert-reranker-cls": rerankers.modernbert_cls,
    "qwen3-reranker": rerankers.qwen3,
    "qwen3-classifier": rerankers.qwen3_classifier,
    "qwen3-logit": rerankers.qwen3_logit,
    "zerank": rerankers.zerank,
}
ALL = KINDS | MORE | conversions.KINDS


def build(kind: str, folder: Path) -> Path:
    """The folder, filled with that checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        ALL[kind](folder)
    return folder
