"""MPNet, as an embedder and as a reranker: BERT with a bias on every attention score by how far two tokens are apart.

Knows neither batching nor pooling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from vecgate.backends.mlx.layers import Activation, Rows, attend, token_bytes
from vecgate.backends.mlx.settings import heads_fit, positions_fit
from vecgate.backends.mlx.weights import Names, activation_of, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

PAD = 1
"""Where positions begin (at PAD + 1) and the id that has none: fixed in transformers, whatever pad_token_id says."""
BUCKETS = 32
FAR = 128
"""Distances share BUCKETS buckets, half of them on each side, and from FAR on the last one: fixed in transformers too."""
MASKED = -3e4
"""Added to the score of a padded key: its weight is 0 in float32. Finite, since -inf can turn into NaN on Metal, and
within float16 even when Metal scales it by log2(e)."""


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says, under the names that the other families use. buckets: rows of the table of biases."""

    vocabulary: int
    positions: int
    buckets: int
    hidden: int
    inner: int
    heads: int
    layers: int
    eps: float
    activation: Activation
    reranks: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what this architecture can't be."""
        config = cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            positions=setting(checkpoint, "max_position_embeddings", int),
            buckets=setting(checkpoint, "relative_attention_num_buckets", int, BUCKETS),
            hidden=setting(checkpoint, "hidden_size", int),
            inner=setting(checkpoint, "intermediate_size", int),
            heads=setting(checkpoint, "num_attention_heads", int),
            layers=setting(checkpoint, "num_hidden_layers", int),
            eps=setting(checkpoint, "layer_norm_eps", float, 1e-12),
            activation=activation_of(setting(checkpoint, "hidden_act", str, "gelu"), checkpoint.folder / "config.json"),
            reranks=checkpoint.task == "rerank",
        )
        heads_fit(checkpoint, config.hidden, config.heads)
        positions_fit(checkpoint, config.positions - PAD - 1)
        if config.buckets < BUCKETS:
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'} has {config.buckets} for 'relative_attention_num_buckets'; "
                f"MPNet uses {BUCKETS}."
            )
        return config

    @property
    def names(self) -> Names:
        return Names(
            ours=(
                ("words.", "embeddings.word_embeddings."),
                ("positions.", "embeddings.position_embeddings."),
                ("first_norm.", "embeddings.LayerNorm."),
                ("distances.", "encoder.relative_attention_bias."),
                ("blocks.", "encoder.layer."),
                (".query.", ".attention.attn.q."),
                (".key.", ".attention.attn.k."),
                (".value.", ".attention.attn.v."),
                (".mix.", ".attention.attn.o."),
                (".mix_norm.", ".attention.LayerNorm."),
                (".up.", ".intermediate.dense."),
                (".down.", ".output.dense."),
                (".down_norm.", ".output.LayerNorm."),
                ("head.inner.", "classifier.dense."),
                ("head.outer.", "classifier.out_proj."),
            ),
            prefixes=("mpnet.",),
            old=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
            # A buffer that is computed here, and the heads that an embedder does not use.
            spare=("embeddings.position_ids", "pooler.", "lm_head.", "classifier."),
        )

    def token_bytes(self, longest: int, width: int) -> int:
        biases = 2 * self.heads * longest * width  # with padding, a batch holds one table a row
        return token_bytes(self.hidden, self.inner, self.heads, longest, width) + biases


class Block(nn.Module):
    """Attention and a feed-forward, each followed by its residual's norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.mix = nn.Linear(config.hidden, config.hidden)
        self.mix_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.up = nn.Linear(config.hidden, config.inner)
        self.down = nn.Linear(config.inner, config.hidden)
        self.down_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self._heads = config.heads
        self._activation = config.activation

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        mixed = attend(self.query(x), self.key(x), self.value(x), self._heads, bias)
        x = self.mix_norm(x + self.mix(mixed))
        out: mx.array = self.down_norm(x + self.down(self._activation(self.up(x))))
        return out


class Head(nn.Module):
    """The logit of the first token's state, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden, config.hidden)
        self.outer = nn.Linear(config.hidden, 1)

    def __call__(self, hidden: mx.array) -> mx.array:
        logits: mx.array = self.outer(mx.tanh(self.inner(hidden[:, 0].astype(mx.float32))))
        return logits


class Model(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.distances = nn.Embedding(config.buckets, config.heads)
        self.first_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.blocks = [Block(config) for _ in range(config.layers)]
        if config.reranks:
            self.head = Head(config)
        self._config = config

    def __call__(self, rows: Rows) -> mx.array:
        x = self.first_norm(self.words(rows.ids) + self.positions(places(rows.ids)))
        bias = self._bias(rows).astype(x.dtype)  # once a batch: all layers share it
        for block in self.blocks:
            x = block(x, bias)
        return self.head(x) if self._config.reranks else x

    def _bias(self, rows: Rows) -> mx.array:
        """(1, heads, L, L), or (B, heads, L, L) where padding is masked in it."""
        at = np.arange(rows.ids.shape[1])
        bias: mx.array = self.distances(mx.array(buckets(at - at[:, None]))).transpose(2, 0, 1)[None]
        return bias if rows.mask is None else mx.where(rows.mask, bias, MASKED)


def places(ids: mx.array) -> mx.array:
    """(B, L) positions. They count only what is no pad, so that a pad written in a text moves none that follows."""
    real = (ids != PAD).astype(mx.int32)
    return mx.cumsum(real, axis=1) * real + PAD


def buckets(ahead: NDArray[Any]) -> NDArray[np.int32]:
    """Which bias belongs to a key that is so many tokens ahead; in float32 like transformers, to round as it does."""
    side = BUCKETS // 2
    near = side // 2  # each of the nearest distances has a bucket, farther ones share by their logarithm
    apart = np.abs(ahead)
    share = np.log(np.maximum(apart, near).astype(np.float32) / np.float32(near)) / np.float32(math.log(FAR / near))
    shared = near + (share * np.float32(side - near)).astype(np.int32)
    found: NDArray[np.int32] = np.where(apart < near, apart, np.minimum(shared, side - 1)) + (ahead > 0) * side
    return found.astype(np.int32)
