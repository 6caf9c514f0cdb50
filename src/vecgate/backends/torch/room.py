"""What a model is computed in on a device, and how much of it fits.

Knows a checkpoint's figures and a device's, no files and no tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from vecgate.backends.torch.devices import Device
from vecgate.backends.torch.families import Architecture
from vecgate.core import Checkpoint
from vecgate.errors import ConfigError, NoRoom

log = logging.getLogger("vecgate.torch")

LEAST_TOKENS = 512
"""A model that has no room for a row of so many is refused; a longer row without room fails alone."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_FLOAT16 = ("gemma", "qwen3", "t5", "mt5", "umt5")
"""Families (by prefix) whose activations leave float16's range: EmbeddingGemma reaches 8e5, the limit is 65504."""


def dtype_for(name: str, checkpoint: Checkpoint, device: Device) -> torch.dtype:
    """What to compute in. auto: float32 on a CPU, else the stored type unless the family or the device can't."""
    no_float16 = checkpoint.family.startswith(NO_FLOAT16)
    if name == "auto":
        known = device.place.type != "cpu" and checkpoint.stored_dtype in DTYPES
        name = checkpoint.stored_dtype if known else "float32"
        if name == "float16" and no_float16:
            name = "bfloat16"
        if name == "bfloat16" and not device.bfloat16:
            name = "float32"
    if name not in DTYPES:
        raise ConfigError(f"DTYPE={name!r} is not known; use auto, {', '.join(DTYPES)}.")
    if name == "float16" and no_float16:
        raise ConfigError(f"DTYPE=float16 overflows in the family {checkpoint.family!r}; use bfloat16 or float32.")
    if name == "bfloat16" and not device.bfloat16:
        raise ConfigError(f"DTYPE=bfloat16 is not supported by {device.label}; use float32 or float16.")
    return DTYPES[name]


def room(
    checkpoint: Checkpoint,
    found: Architecture,
    dtype: torch.dtype,
    device: Device,
    others: Sequence[Checkpoint] = (),
) -> tuple[int, int]:
    """(tokens of one batch, of the longest row): what the device likes and the model takes, less until they fit beside
    the weights of the others.

    Raises NoRoom where a row of LEAST_TOKENS does not.
    """
    weights, theirs = _weight_bytes(checkpoint, dtype), sum(_weight_bytes(one, dtype) for one in others)
    held, longest = sum(device.held()), checkpoint.max_tokens
    free = device.limit_bytes - held - weights - theirs
    while (needed := batch_bytes(found, longest, longest, dtype)) > free:
        if longest <= LEAST_TOKENS:
            what = "its longest input" if longest == checkpoint.max_tokens else f"an input of {longest} tokens"
            beside = f", the other models {_gib(theirs)}" if others else ""
            raise NoRoom(
                f"{checkpoint.name} needs {_gib(weights)} for its weights in {name_of(dtype)} and {_gib(needed)} "
                f"for {what}{beside}, and this process holds {_gib(held)}: more than DEVICE_MEMORY_FRACTION allows, "
                f"{device.limit_bytes / device.total_bytes:.2f} x {_gib(device.total_bytes)} on {device.label}."
            )
        longest = max(longest * 3 // 4, LEAST_TOKENS)
    if longest < checkpoint.max_tokens:
        log.warning(
            "%s takes inputs of %d tokens; there is room for %d.", checkpoint.name, checkpoint.max_tokens, longest
        )
    tokens = max(device.batch_tokens, longest)
    while batch_bytes(found, tokens, longest, dtype) > free:
        tokens = max(tokens // 2, longest)
    return min(tokens, device.batch_tokens), longest


def _weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    stored: torch.dtype = getattr(torch, checkpoint.stored_dtype)
    return checkpoint.weight_bytes * dtype.itemsize // stored.itemsize


def batch_bytes(found: Architecture, tokens: int, longest: int, dtype: torch.dtype) -> int:
    """An upper estimate of what one batch holds at its fullest; 0.95 of it was measured on MiniLM (64 rows of 256, packed).

    Per token: eight of the hidden width (input, residual, q, k, v, context, what sdpa lays out anew) and two of the
    feed-forward's in the compute type; its row of the mask, or packed without local windows, where there is none, once
    more the context; the last hidden state and its masked product in float32. Eager attention holds a token's scores in
    every head twice, before and after the softmax.
    """
    text: Any = found.config.get_text_config()
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    masked = not found.packs or getattr(text, "sliding_window", None) is not None
    mask = longest if masked else hidden
    scores = 2 * int(text.num_attention_heads) * longest if found.attention == "eager" else 0
    return tokens * ((8 * hidden + 2 * inner + mask + scores) * dtype.itemsize + 2 * 4 * hidden)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
