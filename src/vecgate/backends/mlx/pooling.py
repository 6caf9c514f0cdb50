"""From hidden states to one row a text, in float32: sentence-transformers' formulas, and the Dense layers after them.

Knows arrays and masks, no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from vecgate.backends.mlx.layers import Activation, Rows
from vecgate.core import Pooling

Layer = tuple[mx.array, mx.array | None, Activation]
"""A Dense layer: weight (out, in), bias (out,), activation, all float32."""


def pool(hidden: mx.array, rows: Rows, modes: Sequence[Pooling], *, include_prompt: bool) -> mx.array:
    """(B, H x modes) float32 of hidden (B, L, H): several modes side by side."""
    wide = hidden.astype(mx.float32)
    at = mx.arange(hidden.shape[1])[None]
    used = at < rows.lengths
    if not include_prompt:
        used = used & (at >= rows.prompts)
    parts = [_pooled(wide, used, rows, mode) for mode in modes]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def dense(x: mx.array, layers: Sequence[Layer]) -> mx.array:
    for weight, bias, activation in layers:
        x = x @ weight.T
        x = activation(x if bias is None else x + bias)
    return x


def _pooled(hidden: mx.array, used: mx.array, rows: Rows, mode: Pooling) -> mx.array:
    if mode == "cls":  # the first token that counts
        return _at(hidden, mx.argmax(used.astype(mx.int32), axis=1, keepdims=True))
    if mode == "last":
        return _at(hidden, mx.maximum(rows.lengths - 1, 0))
    if mode == "max":
        return mx.where(used[..., None], hidden, -mx.inf).max(axis=1)
    weights = used.astype(mx.float32)
    if mode == "weightedmean":  # a position weighs its index in the row, prompt included
        weights = weights * mx.arange(1, hidden.shape[1] + 1)
    # A sum, not a product: products in float32 may be rounded to TF32.
    summed = (hidden * weights[..., None]).sum(axis=1)
    count = mx.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    return summed / (mx.sqrt(count) if mode == "mean_sqrt_len" else count)


def _at(hidden: mx.array, index: mx.array) -> mx.array:
    """(B, H): each row's token at its index (B, 1)."""
    return mx.take_along_axis(hidden, index[..., None], axis=1).squeeze(1)
