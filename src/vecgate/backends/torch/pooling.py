"""From hidden states to one row a text, in float32: sentence-transformers' formulas.

Knows tensors and masks, no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vecgate.core import Pooling


def pool(
    hidden: torch.Tensor, real: torch.Tensor | None, after: torch.Tensor | None, modes: Sequence[Pooling]
) -> torch.Tensor:
    """(B, D x modes) float32 of hidden (B, L, D) float32: sentence-transformers' formulas, several modes side by side.

    real: (B, L) not padding. after: (B, L) not of a prompt that pooling leaves out. None: all of them.
    """
    if real is None:
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    used = real if after is None else real & after
    parts = [_pooled(hidden, used, real, mode) for mode in modes]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _pooled(hidden: torch.Tensor, used: torch.Tensor, real: torch.Tensor, mode: Pooling) -> torch.Tensor:
    if mode == "cls":
        return _at(hidden, used.int().argmax(1))
    if mode == "last":
        return _at(hidden, real.sum(1) - 1)
    if mode == "max":
        return hidden.masked_fill(~used[..., None], float("-inf")).amax(1)
    weights = used.float()
    if mode == "weightedmean":  # a position weighs its index in the row, prompt included
        weights = weights * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    summed, count = torch.einsum("bld,bl->bd", hidden, weights), weights.sum(1, keepdim=True).clamp(min=1e-9)
    return summed / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _at(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, D) each row's state at its place (B,), by an operation whose result's shape is known beforehand."""
    return hidden.gather(1, places[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
