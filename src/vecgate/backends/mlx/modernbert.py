"""ModernBERT, as an embedder and as a reranker: rotary positions, gated feed-forwards, and layers that see a window only.

Knows neither batching nor, but for its own head, pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.layers import Activation, Rows, attend, rotary, token_bytes
from vecgate.backends.mlx.pooling import pool
from vecgate.backends.mlx.settings import base, flag, heads_fit, only, unscaled
from vecgate.backends.mlx.weights import Names, activation_of, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

NAMES = Names(
    ours=(
        ("words.", "embeddings.tok_embeddings."),
        ("first_norm.", "embeddings.norm."),
        ("last_norm.", "final_norm."),
        ("blocks.", "layers."),
        (".mix_norm.", ".attn_norm."),
        (".qkv.", ".attn.Wqkv."),
        (".mix.", ".attn.Wo."),
        (".up_norm.", ".mlp_norm."),
        (".up.", ".mlp.Wi."),
        (".down.", ".mlp.Wo."),
        ("head.inner.", "head.dense."),
        ("head.outer.", "classifier."),
    ),
    prefixes=("model.",),
    spare=("head.", "decoder.", "classifier."),  # the heads of the pre-training and of a classifier, to an embedder
)
GLOBAL, LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Config:
    """wide: for each layer, whether it sees the whole text. reach: how far the others see, to either side.

    wide_base, near_base: of the rotary positions of the ones and the others. *_bias: which layers have biases.
    """

    vocabulary: int
    hidden: int
    inner: int
    heads: int
    wide: tuple[bool, ...]
    reach: int
    wide_base: float
    near_base: float
    eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    activation: Activation
    head_pooling: Literal["cls", "mean"]
    head_bias: bool
    head_activation: Activation
    reranks: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json, as the hub has it or as transformers 5 writes it; raises CheckpointError for the rest."""
        file = checkpoint.folder / "config.json"
        only(checkpoint, "rope_scaling")
        only(checkpoint, "classifier_pooling", "cls", "mean")
        config = cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            hidden=setting(checkpoint, "hidden_size", int),
            inner=setting(checkpoint, "intermediate_size", int),
            heads=setting(checkpoint, "num_attention_heads", int),
            wide=_wide(checkpoint),
            reach=_reach(checkpoint),
            wide_base=_base(checkpoint, GLOBAL, "global_rope_theta", 160_000.0),
            near_base=_base(checkpoint, LOCAL, "local_rope_theta", 10_000.0),
            eps=setting(checkpoint, "norm_eps", float, 1e-5),
            norm_bias=flag(checkpoint, "norm_bias"),
            attention_bias=flag(checkpoint, "attention_bias"),
            mlp_bias=flag(checkpoint, "mlp_bias"),
            activation=activation_of(setting(checkpoint, "hidden_activation", str, "gelu"), file),
            head_pooling=cast(Literal["cls", "mean"], setting(checkpoint, "classifier_pooling", str, "cls")),
            head_bias=flag(checkpoint, "classifier_bias"),
            head_activation=activation_of(setting(checkpoint, "classifier_activation", str, "gelu"), file),
            reranks=checkpoint.task == "rerank",
        )
        heads_fit(checkpoint, config.hidden, config.heads)
        only(checkpoint, "head_dim", config.hidden // config.heads)
        return config

    @property
    def names(self) -> Names:
        return NAMES

    def token_bytes(self, longest: int, width: int) -> int:
        """The gated feed-forward holds four times `inner`, a window's mask a byte a key, twice while it is made."""
        return token_bytes(self.hidden, 2 * self.inner, self.heads, longest, width) + 2 * longest


def _wide(checkpoint: Checkpoint) -> tuple[bool, ...]:
    layers = setting(checkpoint, "num_hidden_layers", int)
    kinds = checkpoint.config.get("layer_types")
    if kinds is None:
        every = setting(checkpoint, "global_attn_every_n_layers", int, 3)
        return tuple(at % every == 0 for at in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in (GLOBAL, LOCAL) for kind in kinds):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {str(kinds)[:100]} for 'layer_types'; "
            f"that is {GLOBAL} or {LOCAL} for each of {layers} layers."
        )
    return tuple(kind == GLOBAL for kind in kinds)


def _reach(checkpoint: Checkpoint) -> int:
    """local_attention is the whole window. transformers takes a `sliding_window`, where there is one, for its half."""
    if checkpoint.config.get("sliding_window") is not None:
        return setting(checkpoint, "sliding_window", int)
    return setting(checkpoint, "local_attention", int, 128) // 2


def _base(checkpoint: Checkpoint, kind: str, old: str, default: float) -> float:
    """The kind of layer's base: from rope_parameters, as transformers 5 writes it, else under the hub's key."""
    file, given = checkpoint.folder / "config.json", checkpoint.config.get("rope_parameters") or {}
    if not isinstance(given, dict) or not set(given) <= {GLOBAL, LOCAL}:
        raise CheckpointError(f"{file} has {str(given)[:100]} for 'rope_parameters'; it has {GLOBAL} and {LOCAL}.")
    key = f"rope_parameters.{kind}"
    found = unscaled(checkpoint, given.get(kind), key).get("rope_theta")
    if found is not None:
        return base(checkpoint, found, f"{key}.rope_theta")
    return base(checkpoint, setting(checkpoint, old, float, default), old)


class Block(nn.Module):
    """Attention and a gated feed-forward, each of its input's norm; the first layer's attention takes it as it is."""

    def __init__(self, config: Config, at: int) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.inner
        if at:
            self.mix_norm = nn.LayerNorm(hidden, eps=config.eps, bias=config.norm_bias)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=config.attention_bias)
        self.mix = nn.Linear(hidden, hidden, bias=config.attention_bias)
        self.up_norm = nn.LayerNorm(hidden, eps=config.eps, bias=config.norm_bias)
        self.up = nn.Linear(hidden, 2 * inner, bias=config.mlp_bias)
        self.down = nn.Linear(inner, hidden, bias=config.mlp_bias)
        self.wide = config.wide[at]
        self._first = at == 0
        self._heads = config.heads
        self._turn = rotary(config.wide_base if self.wide else config.near_base, hidden // config.heads)
        self._activation = config.activation

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = mx.split(self.qkv(x if self._first else self.mix_norm(x)), 3, axis=-1)
        x = x + self.mix(attend(q, k, v, self._heads, mask, self._turn))
        taken, gate = mx.split(self.up(self.up_norm(x)), 2, axis=-1)
        out: mx.array = x + self.down(self._activation(taken) * gate)
        return out


class Head(nn.Module):
    """The logit of the pooled states, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden, config.hidden, bias=config.head_bias)
        self.norm = nn.LayerNorm(config.hidden, eps=config.eps, bias=config.norm_bias)
        self.outer = nn.Linear(config.hidden, 1)
        self._pooling = config.head_pooling
        self._activation = config.head_activation

    def __call__(self, hidden: mx.array, rows: Rows) -> mx.array:
        pooled = pool(hidden, rows, (self._pooling,), include_prompt=True)
        logits: mx.array = self.outer(self.norm(self._activation(self.inner(pooled))))
        return logits


class Model(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.first_norm = nn.LayerNorm(config.hidden, eps=config.eps, bias=config.norm_bias)
        self.blocks = [Block(config, at) for at in range(len(config.wide))]
        self.last_norm = nn.LayerNorm(config.hidden, eps=config.eps, bias=config.norm_bias)
        if config.reranks:
            self.head = Head(config)
        self._config = config

    def __call__(self, rows: Rows) -> mx.array:
        x = self.first_norm(self.words(rows.ids))
        near = window(rows, self._config.reach)  # once a batch: all local layers share it
        for block in self.blocks:
            x = block(x, rows.mask if block.wide else near)
        x = self.last_norm(x)
        return self.head(x, rows) if self._config.reranks else x


def window(rows: Rows, reach: int) -> mx.array | None:
    """(1 or B, 1, L, L), True where a key is real and at most `reach` tokens away; None where every key is."""
    length = rows.ids.shape[1]
    if length <= reach + 1:
        return rows.mask
    at = mx.arange(length)
    apart = mx.abs(at - at[:, None])
    if rows.mask is None:
        return (apart <= reach)[None, None]
    return ((apart <= reach) & rows.mask) | (apart == 0)  # padding far from the text sees itself: no row is empty
