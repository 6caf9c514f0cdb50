"""What decoders share: their sizes, rotary positions, who sees whom, the gated feed-forward, and a reranker's head.

Knows config.json's words for these, no family's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.layers import FUSED_WIDTHS, Activation, Rows, rotary
from vecgate.backends.mlx.weights import Names, Pick, activation_of, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

Mask = mx.array | Literal["causal"] | None
Kind = Literal["full_attention", "sliding_attention"]
"""transformers' words for a layer that sees everything it may, and for one with a window."""

NAMES = Names(prefixes=("model.",), spare=("lm_head.", "score."))
"""A decoder's tensors are called as here, alone or as part of a language model."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """inner: of the feed-forward. groups: heads of keys and values. width: of one head."""

    vocabulary: int
    hidden: int
    inner: int
    heads: int
    groups: int
    width: int
    layers: int
    eps: float
    activation: Activation

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, width: int | None = None, activation: str = "hidden_act") -> Sizes:
        """From config.json. width: of a head that it says nothing of (None: what its hidden size leaves for each)."""
        hidden, heads = setting(checkpoint, "hidden_size", int), setting(checkpoint, "num_attention_heads", int)
        groups = setting(checkpoint, "num_key_value_heads", int, heads)
        file = checkpoint.folder / "config.json"
        if heads % groups:
            raise CheckpointError(f"{file}: {heads} attention heads are no multiple of {groups} key and value heads.")
        if "head_dim" not in checkpoint.config and width is None and hidden % heads:
            raise CheckpointError(f"{file}: hidden_size {hidden} is no multiple of {heads} attention heads.")
        default = "silu" if activation == "hidden_act" else "gelu_pytorch_tanh"
        return cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            hidden=hidden,
            inner=setting(checkpoint, "intermediate_size", int),
            heads=heads,
            groups=groups,
            width=setting(checkpoint, "head_dim", int, width or hidden // heads),
            layers=setting(checkpoint, "num_hidden_layers", int),
            eps=setting(checkpoint, "rms_norm_eps", float, 1e-6),
            activation=activation_of(setting(checkpoint, activation, str, default), file),
        )

    def token_bytes(self, longest: int, width: int, *, masked: bool) -> int:
        """An upper estimate of what one token of a batch holds at its fullest, numbers taking `width` bytes.

        Input, residual, q, k, v, context, three of the feed-forward's; its scores and their softmax where attention is
        not fused; masks of (L, L) and the one being made; the last hidden state and its masked copy in float32.
        """
        fused = self.width in FUSED_WIDTHS
        scores = 0 if fused else 2 * self.heads * longest
        inside = 3 * self.hidden + (2 * self.heads + 2 * self.groups) * self.width + 3 * self.inner
        return (inside + scores) * width + (3 * longest if masked else 0) + 2 * 4 * self.hidden


def names(checkpoint: Checkpoint, *, tied: bool = False) -> Names:
    """NAMES, with the head that the checkpoint scores with: two rows of a language model's, or a classifier.

    tied: whether the head is the table where config.json does not say.
    """
    if checkpoint.task != "rerank":
        return NAMES
    if checkpoint.yes_id is None:
        return replace(NAMES, picks=(Pick("head.rows", ("score",)),))
    # A head of its own beats the table, as in transformers, whatever the config says of ties.
    table = ("embed_tokens",) if checkpoint.config.get("tie_word_embeddings", tied) else ()
    ids = (checkpoint.yes_id,) if checkpoint.no_id is None else (checkpoint.yes_id, checkpoint.no_id)
    return replace(NAMES, picks=(Pick("head.rows", ("lm_head", *table), ids),))


def head_rows(checkpoint: Checkpoint) -> int:
    """How many rows the head has: 0 for an embedder, 1 for a classifier or a single token, 2 for yes and no."""
    if checkpoint.task != "rerank":
        return 0
    return 1 if checkpoint.yes_id is None or checkpoint.no_id is None else 2


class Head(nn.Module):
    """(B, 1) logits of the last real token's state (B, L, H), in float32: of one row, or of the first less the second."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, hidden)
        self._count = rows

    def __call__(self, hidden: mx.array, rows: Rows) -> mx.array:
        last = mx.take_along_axis(hidden, rows.lengths[..., None] - 1, axis=1).squeeze(1).astype(mx.float32)
        own = self.rows(mx.arange(self._count))
        row = own[0] if self._count == 1 else own[0] - own[1]
        logits: mx.array = (last * row).sum(axis=-1, keepdims=True)  # as a product, it may be rounded to TF32
        return logits


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions over a whole head, its halves turned against each other; factor: positions are divided by it."""

    width: int
    theta: float
    factor: float = 1.0

    @classmethod
    def read(cls, checkpoint: Checkpoint, width: int) -> Rotary:
        """From rope_scaling or rope_parameters, as transformers reads them; raises CheckpointError."""
        said = checkpoint.config.get("rope_scaling") or checkpoint.config.get("rope_parameters") or {}
        partial = checkpoint.config.get("partial_rotary_factor")
        theta = setting(checkpoint, "rope_theta", float, 10_000.0)
        return cls.of(checkpoint, said if partial is None else {"partial_rotary_factor": partial, **said}, width, theta)

    @classmethod
    def of(cls, checkpoint: Checkpoint, said: Any, width: int, theta: float) -> Rotary:
        file = checkpoint.folder / "config.json"
        if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()):
            raise CheckpointError(f"{file} has rotary positions that the family {checkpoint.family!r} does not have.")
        kind = said.get("rope_type") or said.get("type") or "default"
        if kind not in ("default", "linear"):
            raise CheckpointError(
                f"{file} asks for rotary positions of the type {kind!r}; on MLX there are default, linear."
            )
        if said.get("partial_rotary_factor", 1) != 1:
            raise CheckpointError(f"{file} has a partial_rotary_factor; on MLX whole heads are turned.")
        try:
            return cls(
                width, float(said.get("rope_theta") or theta), float(said["factor"]) if kind == "linear" else 1.0
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file} has rotary positions without a number that they need ({error}).") from error

    def turn(self) -> Activation:
        return rotary(self.theta, self.width, self.factor)


def heads(x: mx.array, count: int) -> mx.array:
    """(B, L, heads, width) of (B, L, heads x width)."""
    return x.reshape(*x.shape[:2], count, -1)


def attend(q: mx.array, k: mx.array, v: mx.array, turn: Activation, scale: float, mask: Mask) -> mx.array:
    """(B, L, heads x width) of q (B, L, heads, width) and of k, v with fewer heads, each for several of q's."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    out = mx.fast.scaled_dot_product_attention(turn(q), turn(k), v, scale=scale, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], -1)


def visible(rows: Rows, *, causal: bool, reach: int | None) -> Mask:
    """Who sees whom. reach: how many places away a token may still see another (None: any).

    Right padding needs no mask in a causal model: no real token sees what comes after it.
    """
    length = rows.ids.shape[1]
    if reach is None or reach >= length - 1:
        return "causal" if causal else rows.mask
    at = mx.arange(length)
    away = at[:, None] - at
    near = (away <= reach) & (away >= (0 if causal else -reach))
    if causal or rows.mask is None:
        return near
    return (near & rows.mask) | (away == 0)  # a pad far from every real token sees itself: no row without a key


def kinds(checkpoint: Checkpoint, default: Sequence[Kind]) -> tuple[Kind, ...]:
    """Each layer's, by config.json's layer_types."""
    file, said = checkpoint.folder / "config.json", checkpoint.config.get("layer_types")
    if said is None:
        return tuple(default)
    if not isinstance(said, list) or len(said) < len(default):
        raise CheckpointError(f"{file}: layer_types must name {len(default)} layers.")
    odd = next((one for one in said if one not in ("full_attention", "sliding_attention")), None)
    if odd is not None:
        raise CheckpointError(
            f"{file} has a layer of the type {odd!r}; on MLX there are full_attention and sliding_attention."
        )
    return tuple(said[: len(default)])


def reaches(checkpoint: Checkpoint, layers: int, *, causal: bool) -> tuple[int | None, ...]:
    """`reach` of each of Qwen's layers: windows are off by default, and else for layers from max_window_layers on.

    transformers counts differently: a causal window holds the token itself, a bidirectional one is the distance.
    """
    on = checkpoint.config.get("use_sliding_window") and checkpoint.config.get("sliding_window", 4096) is not None
    window = setting(checkpoint, "sliding_window", int, 4096) if on else None
    first = layers if window is None else checkpoint.config.get("max_window_layers", 28)
    default: list[Kind] = ["full_attention" if at < first else "sliding_attention" for at in range(layers)]
    found = kinds(checkpoint, default)
    if window is None:
        if "sliding_attention" in found:
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'} has layers with a window, but use_sliding_window is off."
            )
        return (None,) * layers
    reach = window - 1 if causal else window
    return tuple(reach if kind == "sliding_attention" else None for kind in found)


class Gated(nn.Module):
    """The feed-forward: one half decides how much of the other passes."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.down_proj = nn.Linear(sizes.inner, sizes.hidden, bias=False)
        self._activation = sizes.activation

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.down_proj(self._activation(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention and a feed-forward, each on its input's norm and added to it."""

    def __init__(self, attention: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = Gated(sizes)
        self.input_layernorm = nn.RMSNorm(sizes.hidden, eps=sizes.eps)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden, eps=sizes.eps)

    def __call__(self, x: mx.array, turn: Activation, mask: Mask) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask)
        out: mx.array = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Shape(Protocol):
    """What a Decoder must know: reaches holds how far each layer sees, head_rows is 0 without a head."""

    @property
    def sizes(self) -> Sizes: ...
    @property
    def rotary(self) -> Rotary: ...
    @property
    def causal(self) -> bool: ...
    @property
    def reaches(self) -> tuple[int | None, ...]: ...
    @property
    def head_rows(self) -> int: ...


class Decoder(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker; a layer for each attention."""

    def __init__(self, config: Shape, attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        sizes = config.sizes
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = [Block(attention, sizes) for attention in attentions]
        self.norm = nn.RMSNorm(sizes.hidden, eps=sizes.eps)
        if config.head_rows:
            self.head = Head(config.head_rows, sizes.hidden)
        self._config = config
        self._turn = config.rotary.turn()

    def __call__(self, rows: Rows) -> mx.array:
        config = self._config
        masks = {reach: visible(rows, causal=config.causal, reach=reach) for reach in set(config.reaches)}
        x = self.embed_tokens(rows.ids)
        for layer, reach in zip(self.layers, config.reaches):
            x = layer(x, self._turn, masks[reach])
        x = self.norm(x)
        return self.head(x, rows) if config.head_rows else x
