"""Checkpoints with packed weights, by mlx-lm's own converter or tensor by tensor, and what they hold once unpacked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from vecgate.core import Checkpoint

Choose = Callable[[str], dict[str, Any] | bool]
"""A tensor's path -> how to pack it, True for as all are, False for not at all."""


def by_mlx_lm(
    checkpoint: Checkpoint, folder: Path, choose: Any = None, dtype: Any = mx.bfloat16, **how: Any
) -> Checkpoint:
    """As `mlx_lm.convert -q` writes it (its tokenizer aside); the checkpoint's keys begin with `model.`."""
    model, config = load_model(checkpoint.folder)
    model.set_dtype(dtype)
    chosen = choose(model) if choose else None
    model, config = quantize_model(
        model, config, how.pop("group_size", 32), how.pop("bits", None), quant_predicate=chosen, **how
    )
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return reread(checkpoint, folder)


def packed(checkpoint: Checkpoint, folder: Path, choose: Choose, dtype: Any = mx.bfloat16, **how: Any) -> Checkpoint:
    """Each 2-D weight of the file that `choose` takes, packed in place; config.json says what was done."""
    held: dict[str, mx.array] = {}
    usual: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "affine", **how}
    said = dict(usual)
    for name, array in tensors(checkpoint).items():
        path = name.removesuffix(".weight")
        wanted = name.endswith(".weight") and array.ndim == 2 and choose(path)
        if not wanted:
            held[name] = array.astype(dtype)
            continue
        given = wanted if isinstance(wanted, dict) else usual
        weight, scales, *biases = mx.quantize(array.astype(dtype), given["group_size"], given["bits"], given["mode"])
        held |= {name: weight, f"{path}.scales": scales} | ({f"{path}.biases": biases[0]} if biases else {})
        if isinstance(wanted, dict):
            said[path] = given
    mx.save_safetensors(str(folder / "model.safetensors"), held)
    config = {**checkpoint.config, "quantization": said, "quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    return reread(checkpoint, folder)


def reread(checkpoint: Checkpoint, folder: Path, **config: Any) -> Checkpoint:
    """The checkpoint as its folder's config.json describes it now, with some keys of it changed."""
    given = json.loads((folder / "config.json").read_text()) | config
    files = tuple(sorted(folder.glob("*.safetensors")))
    return replace(
        checkpoint,
        folder=folder,
        weights=files,
        config=given,
        quantization=given.get("quantization"),
        stored_dtype="bfloat16",
        weight_bytes=sum(file.stat().st_size for file in files),
    )


def tensors(checkpoint: Checkpoint) -> dict[str, mx.array]:
    held: dict[str, mx.array] = {}
    for file in checkpoint.weights:
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        held |= loaded
    return held


def change(checkpoint: Checkpoint, edit: Callable[[dict[str, mx.array]], Any], **config: Any) -> Checkpoint:
    """With its tensors edited and keys of its config changed, in place."""
    held = tensors(checkpoint)
    edit(held)
    mx.eval(held)
    mx.save_safetensors(str(checkpoint.weights[0]), held)
    return reread(checkpoint, checkpoint.folder, **config)


def unpacked(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor as float32, packed ones multiplied out: what the checkpoint means."""
    assert checkpoint.quantization is not None
    held = tensors(checkpoint)
    said = checkpoint.quantization
    plain = {}
    for name, array in held.items():
        path, _, part = name.rpartition(".")
        if part in ("scales", "biases"):
            continue
        if f"{path}.scales" in held and part == "weight":
            own = said.get(path)
            how = own if isinstance(own, dict) else said
            scales, biases = held[f"{path}.scales"], held.get(f"{path}.biases")
            if biases is not None:  # multiplied out in float32, not in the type of the scales
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            sizes = how["group_size"], how["bits"], how.get("mode", "affine")
            array = mx.dequantize(array, scales, biases, *sizes, dtype=mx.float32)
        plain[name] = torch.from_numpy(np.array(array.astype(mx.float32)))
    return plain


def meant(model: Any, checkpoint: Checkpoint) -> Any:
    """transformers' model with the weights that the packed checkpoint means."""
    found = model.load_state_dict(unpacked(checkpoint), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}  # tied
    return model.eval()
