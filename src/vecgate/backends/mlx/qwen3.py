"""Qwen3, as an embedder (Qwen3-Embedding) and as a reranker (Qwen3-Reranker, and its form with a classifier).

Causal, or bidirectional where config.json says `is_causal: false`. Knows neither batching nor pooling.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.causal import (
    Decoder,
    Mask,
    Rotary,
    Sizes,
    attend,
    head_rows,
    heads,
    names,
    reaches,
)
from vecgate.backends.mlx.layers import Activation
from vecgate.backends.mlx.weights import Names
from vecgate.core import Checkpoint


@dataclass(frozen=True, slots=True)
class Config:
    """reaches: how far each layer's tokens see (None: without end)."""

    sizes: Sizes
    rotary: Rotary
    bias: bool
    causal: bool
    reaches: tuple[int | None, ...]
    names: Names
    head_rows: int

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what this architecture can't be."""
        sizes = Sizes.read(checkpoint, width=128)
        causal = checkpoint.config.get("is_causal") is not False
        return cls(
            sizes=sizes,
            rotary=Rotary.read(checkpoint, sizes.width),
            bias=bool(checkpoint.config.get("attention_bias")),
            causal=causal,
            reaches=reaches(checkpoint, sizes.layers, causal=causal),
            names=names(checkpoint),
            head_rows=head_rows(checkpoint),
        )

    @property
    def vocabulary(self) -> int:
        return self.sizes.vocabulary

    @property
    def hidden(self) -> int:
        return self.sizes.hidden

    def token_bytes(self, longest: int, width: int) -> int:
        return self.sizes.token_bytes(longest, width, masked=any(self.reaches))


class Attention(nn.Module):
    """Each head's queries and keys are normed before they are turned."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.sizes
        self.q_proj = nn.Linear(sizes.hidden, sizes.heads * sizes.width, bias=config.bias)
        self.k_proj = nn.Linear(sizes.hidden, sizes.groups * sizes.width, bias=config.bias)
        self.v_proj = nn.Linear(sizes.hidden, sizes.groups * sizes.width, bias=config.bias)
        self.o_proj = nn.Linear(sizes.heads * sizes.width, sizes.hidden, bias=config.bias)
        self.q_norm = nn.RMSNorm(sizes.width, eps=sizes.eps)
        self.k_norm = nn.RMSNorm(sizes.width, eps=sizes.eps)
        self._sizes = sizes

    def __call__(self, x: mx.array, turn: Activation, mask: Mask) -> mx.array:
        sizes = self._sizes
        q = self.q_norm(heads(self.q_proj(x), sizes.heads))
        k = self.k_norm(heads(self.k_proj(x), sizes.groups))
        v = heads(self.v_proj(x), sizes.groups)
        out: mx.array = self.o_proj(attend(q, k, v, turn, sizes.width**-0.5, mask))
        return out


class Model(Decoder):
    def __init__(self, config: Config) -> None:
        super().__init__(config, [Attention(config) for _ in range(config.sizes.layers)])
