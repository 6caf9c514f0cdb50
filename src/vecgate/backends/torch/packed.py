"""Rows of any length side by side, without padding: one matrix of tokens for every layer, one attention call a length.

Knows tensors and transformers' registry of attention functions; no family, no checkpoint, no device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

from vecgate.backends.torch.pooling import pool
from vecgate.core import Pooling, Tokens

NAME = "vecgate_packed"
"""The attention's name to transformers, which makes no mask for a name that it has none for."""
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one length that follow one another: tokens [start, start + rows * length)."""

    start: int
    rows: int
    length: int

    def view(self, tokens: torch.Tensor) -> torch.Tensor:
        """(T, ...) -> (rows, length, ...), without a copy."""
        held = tokens[self.start : self.start + self.rows * self.length]
        return held.view(self.rows, self.length, *tokens.shape[1:])


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each row's tokens are. rows: sorted by length. order: (B,) the row of the batch that stands at each place."""

    rows: tuple[Tokens, ...]
    order: Numbers
    groups: tuple[Group, ...]
    masks: dict[tuple[int, int, bool], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> Layout:
        order = np.argsort([len(row) for row in rows], kind="stable")
        placed = tuple(rows[at] for at in order)
        groups, start = [], 0
        for length, alike in groupby(placed, len):
            groups.append(Group(start, sum(1 for _ in alike), length))
            start += groups[-1].rows * length
        return cls(placed, order, tuple(groups))

    def ids(self) -> Numbers:
        """(T,) token ids."""
        return np.concatenate([row.ids for row in self.rows], dtype=np.int64)

    def indices(self) -> Numbers:
        """(T,) each token's index in its row."""
        return np.concatenate([np.tile(np.arange(group.length), group.rows) for group in self.groups])

    def places(self, ids: Numbers, unplaced: int) -> Numbers:
        """(T,) positions as RoBERTa counts them: from `unplaced` + 1, over the tokens that are not that very id."""
        kept = (ids != unplaced).astype(np.int64)
        counted = np.cumsum(kept)
        starts = np.cumsum([0, *map(len, self.rows[:-1])])
        before: Numbers = self.spread(counted[starts] - kept[starts])
        places: Numbers = unplaced + (counted - before) * kept
        return places

    def spread(self, values: Iterable[int]) -> Numbers:
        """(T,) a row's value at each of its tokens."""
        return np.repeat(np.fromiter(values, np.int64, len(self.rows)), [len(row) for row in self.rows])

    def pool(self, hidden: torch.Tensor, after: torch.Tensor | None, modes: Sequence[Pooling]) -> torch.Tensor:
        """(B, D x modes) float32 of hidden (T, D). after: (T,) not of a prompt that pooling leaves out."""
        parts = []
        for group in self.groups:
            used = None if after is None else group.view(after)
            parts.append(pool(group.view(hidden).float(), None, used, modes))
        return torch.cat(parts)

    def restored(self, rows: torch.Tensor) -> torch.Tensor:
        """(B, ...) of the sorted rows -> in the batch's order."""
        back = torch.empty_like(rows)
        back[torch.from_numpy(self.order).to(rows.device)] = rows
        return back

    def mask(self, length: int, window: int | None, causal: bool, device: torch.device) -> torch.Tensor | None:
        """(L, L) bool: who sees whom, where a row is longer than the window; each is made once a batch."""
        if window is None or length <= window:
            return None
        key = length, window, causal
        if key not in self.masks:
            at = torch.arange(length, device=device)
            behind = at[:, None] - at
            self.masks[key] = (behind < window) & (behind >= 0 if causal else behind > -window)
        return self.masks[key]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    layout: Layout,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """(1, T, heads, D) of query, key, value (1, heads, T, D), as transformers asks for it; no token sees another row's.

    is_causal: what config.json says, over what the module takes for granted. transformers' windows are |i - j| < window,
    but for a decoder that config.json makes bidirectional: there <=.
    """
    causal = bool(module.is_causal if is_causal is None else is_causal)
    window = sliding_window
    if window is not None and module.is_causal and not causal:
        window += 1
    shared = key.shape[1] != query.shape[1]
    if len(layout.rows) == 1:  # it lies as sdpa wants it
        mask = layout.mask(len(layout.rows[0]), window, causal, query.device)
        alone = causal and mask is None
        out = sdpa(query, key, value, attn_mask=mask, is_causal=alone, scale=scaling, enable_gqa=shared)
        return out.transpose(1, 2), None
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))
    parts = []
    for group in layout.groups:
        mask = layout.mask(group.length, window, causal, query.device)
        q, k, v = (group.view(one).transpose(1, 2) for one in (query, key, value))
        out = sdpa(q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=shared)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


AttentionInterface.register(NAME, attend)


def narrow(module: torch.nn.Module, mode: Pooling) -> None:
    """Let one state a row leave the module, (1, T, H) -> (B, 1, H): a head that pools the same way finds it there."""

    def pooled(_: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        layout: Layout = given["layout"]
        hidden = output if isinstance(output, torch.Tensor) else output.last_hidden_state
        states = layout.pool(hidden[0], None, (mode,))[:, None].to(hidden.dtype)
        if isinstance(output, torch.Tensor):
            return states
        output.last_hidden_state = states
        return output

    module.register_forward_hook(pooled, with_kwargs=True)


def unplaced(model: Any) -> int | None:
    """The id that gets no position of its own, in the families that count positions as RoBERTa does."""
    embeddings = getattr(model.base_model, "embeddings", None)
    found: int | None = getattr(embeddings, "padding_idx", None)
    return found if hasattr(embeddings, "create_position_ids_from_input_ids") else None
