"""Families beyond tests/tiny.py as small random models without a tokenizer, and ways to damage a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vecgate.core import Checkpoint

VOCABULARY = 120
LENGTH = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.4,  # the usual 0.02 makes all rows of an untrained model alike
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS: dict[str, Any] = {
    "distilbert": lambda: (
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=LENGTH,
            initializer_range=0.4,
        ),
        transformers.DistilBertModel,
    ),
    "mpnet": lambda: (
        transformers.MPNetConfig(**SIZES | {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1}),
        transformers.MPNetModel,
    ),
    "gemma3_text": lambda: (
        transformers.Gemma3TextConfig(
            **SIZES, **DECODER, use_bidirectional_attention=True, sliding_window=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        transformers.Gemma3TextModel,
    ),
    "t5": lambda: (
        transformers.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
        ),
        transformers.T5EncoderModel,
    ),
}  # fmt: skip


def make(folder: Path, family: str) -> Checkpoint:
    """A seeded random model of the family, saved."""
    torch.manual_seed(11)
    config, kind = CONFIGS[family]()
    kind(config).save_pretrained(folder)
    weights = folder / "model.safetensors"
    return Checkpoint(
        name=family,
        folder=folder,
        family=family,
        task="embed",
        config=json.loads((folder / "config.json").read_text()),
        weights=(weights,),
        max_tokens=LENGTH,
        pad_id=config.pad_token_id or 0,
        stored_dtype="float32",
        weight_bytes=weights.stat().st_size,
    )


def tensors(checkpoint: Checkpoint) -> list[str]:
    with safe_open(checkpoint.weights[0], "pt") as file:
        return list(file.keys())


def rewrite(checkpoint: Checkpoint, change: Any) -> None:
    """Run `change` on the dictionary of tensors and save it."""
    held = load_file(checkpoint.weights[0])
    change(held)
    save_file(held, checkpoint.weights[0], {"format": "pt"})


def configure(checkpoint: Checkpoint, **values: Any) -> None:
    """Change keys of config.json."""
    path = checkpoint.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
