"""Families as small random models without a tokenizer, and ways to damage a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
)

from vecgate.core import Checkpoint

VOCABULARY = 120
LENGTH = 96
WINDOW = 16
"""Where a family has a local window: small beside LENGTH, so that a missing mask shows."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,  # the usual 0.02 makes all rows of an untrained model alike
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
WIDE: dict[str, Any] = {**DECODER, "head_dim": 8}
SHIFTED: dict[str, Any] = {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1, "type_vocab_size": 1}
LAYERS = ["sliding_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "camembert": SHIFTED,
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "type_vocab_size": 0,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "pooler_hidden_size": 32,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "eurobert": {**WIDE, "mask_token_id": 4},
    "gemma": WIDE,
    "gemma2": {**WIDE, "sliding_window": WINDOW},
    "gemma3_text": {**WIDE, "use_bidirectional_attention": True, "sliding_window": WINDOW, "layer_types": LAYERS},
    "llama": WIDE,
    "mistral": {**WIDE, "sliding_window": WINDOW},
    "modernbert": {
        "local_attention": WINDOW,
        "global_attn_every_n_layers": 2,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mpnet": {"max_position_embeddings": LENGTH + 2, "pad_token_id": 1},
    "phi3": {**DECODER, "sliding_window": WINDOW},
    "qwen2": DECODER,
    "qwen3": WIDE,
    "roberta": SHIFTED,
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "xlm-roberta": SHIFTED,
}
"""What a family's configuration needs beside or instead of SIZES; "bert" and its like need nothing."""
KINDS = {
    "base": MODEL_MAPPING,
    "encoder": MODEL_FOR_TEXT_ENCODING_MAPPING,
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING,
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}


def build(family: str, kind: str = "base", **changes: Any) -> PreTrainedModel:
    """A seeded random model in memory, with eager attention; kind: one of KINDS. changes: of its configuration."""
    torch.manual_seed(11)
    config = CONFIG_MAPPING[family](**{**SIZES, **SPECIAL.get(family, {}), "num_labels": 1, **changes})
    found: Any = KINDS[kind][type(config)]
    model: PreTrainedModel = (found[0] if isinstance(found, tuple) else found)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start at 0 and 1, which hides one that is forgotten
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.set_attn_implementation("eager")
    return model


def save(model: Any, folder: Path, **fields: Any) -> Checkpoint:
    """The model's checkpoint; fields: of the checkpoint, its task say."""
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    found = Checkpoint(
        name=config["model_type"],
        folder=folder,
        family=config["model_type"],
        task="embed",
        config=config,
        weights=(weights,),
        max_tokens=LENGTH,
        pad_id=config.get("pad_token_id") or 0,
        stored_dtype="float32",
        weight_bytes=weights.stat().st_size,
    )
    return replace(found, **fields)


def make(folder: Path, family: str) -> Checkpoint:
    """A seeded random embedding model of the family, saved."""
    return save(build(family, "encoder" if family == "t5" else "base"), folder)


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
