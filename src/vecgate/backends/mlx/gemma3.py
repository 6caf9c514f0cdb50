"""Gemma 3's text model: EmbeddingGemma, which sees both ways, and causal ones.

Knows neither batching nor pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.causal import (
    Gated,
    Head,
    Kind,
    Mask,
    Rotary,
    Sizes,
    attend,
    head_rows,
    heads,
    kinds,
    names,
    visible,
)
from vecgate.backends.mlx.layers import Activation, Rows
from vecgate.backends.mlx.weights import Names, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

REFUSED = {"float16": "its hidden states reach 8e5, float16 ends at 65504"}
"""Types it can't be computed in, and why."""


@dataclass(frozen=True, slots=True)
class Config:
    """local, whole: rotary positions of layers with a window and of the others. reach: how far a window lets see."""

    sizes: Sizes
    local: Rotary
    whole: Rotary
    kinds: tuple[Kind, ...]
    causal: bool
    reach: int
    scale: float
    bias: bool
    names: Names
    head_rows: int

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what this architecture can't be."""
        given, file = checkpoint.config, checkpoint.folder / "config.json"
        if given.get("is_causal") is False:
            raise CheckpointError(f"{file} says is_causal false; Gemma 3 says it with use_bidirectional_attention.")
        if given.get("attn_logit_softcapping") is not None:
            raise CheckpointError(f"{file} asks for attn_logit_softcapping, which Gemma 3 does not compute.")
        if checkpoint.yes_id is not None and given.get("final_logit_softcapping") is not None:
            raise CheckpointError(
                f"{file} asks for final_logit_softcapping, which is not computed on MLX. Use BACKEND=torch."
            )
        sizes = Sizes.read(checkpoint, width=256, activation="hidden_activation")
        window, both = setting(checkpoint, "sliding_window", int), bool(given.get("use_bidirectional_attention"))
        local, whole = rotaries(checkpoint, sizes.width)
        return cls(
            sizes=sizes,
            local=local,
            whole=whole,
            kinds=kinds(checkpoint, pattern(checkpoint, sizes.layers)),
            causal=not both,
            # The window of both directions is halved when it is read: |i - j| < window // 2 + 1.
            reach=window // 2 if both else window - 1,
            scale=setting(checkpoint, "query_pre_attn_scalar", float, 256.0) ** -0.5,
            bias=bool(given.get("attention_bias")),
            names=replace(names(checkpoint, tied=True), dense=True),
            head_rows=head_rows(checkpoint),
        )

    @property
    def vocabulary(self) -> int:
        return self.sizes.vocabulary

    @property
    def hidden(self) -> int:
        return self.sizes.hidden

    def token_bytes(self, longest: int, width: int) -> int:
        return self.sizes.token_bytes(longest, width, masked=True)


def pattern(checkpoint: Checkpoint, layers: int) -> list[Kind]:
    """Where no layer_types are: the last of every so many layers sees everything."""
    every = setting(checkpoint, "sliding_window_pattern", int, 6)
    return ["sliding_attention" if (at + 1) % every else "full_attention" for at in range(layers)]


def rotaries(checkpoint: Checkpoint, width: int) -> tuple[Rotary, Rotary]:
    """(local, whole), of rope_parameters by kind, or of the older rope_local_base_freq, rope_theta and rope_scaling."""
    given = checkpoint.config
    thetas = (
        setting(checkpoint, "rope_local_base_freq", float, 10_000.0),
        setting(checkpoint, "rope_theta", float, 1_000_000.0),
    )
    said = given.get("rope_parameters") or {}
    if not isinstance(said, dict):
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} has {str(said)[:100]!r} for 'rope_parameters'.")
    if said and not said.keys() & {"sliding_attention", "full_attention"}:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has no 'full_attention' or 'sliding_attention' in 'rope_parameters'."
        )
    local = said.get("sliding_attention") or {}
    whole = {**(said.get("full_attention") or {}), **(given.get("rope_scaling") or {})}
    return Rotary.of(checkpoint, local, width, thetas[0]), Rotary.of(checkpoint, whole, width, thetas[1])


class Norm(nn.Module):
    """RMSNorm by 1 + weight, in float32: 1 + a small number in 16 bits is 1."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.zeros((size,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.float32), 1 + self.weight.astype(mx.float32), self._eps).astype(x.dtype)


class Attention(nn.Module):
    """Each head's queries and keys are normed before they are turned."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.sizes
        self.q_proj = nn.Linear(sizes.hidden, sizes.heads * sizes.width, bias=config.bias)
        self.k_proj = nn.Linear(sizes.hidden, sizes.groups * sizes.width, bias=config.bias)
        self.v_proj = nn.Linear(sizes.hidden, sizes.groups * sizes.width, bias=config.bias)
        self.o_proj = nn.Linear(sizes.heads * sizes.width, sizes.hidden, bias=config.bias)
        self.q_norm = Norm(sizes.width, sizes.eps)
        self.k_norm = Norm(sizes.width, sizes.eps)
        self._sizes = sizes
        self._scale = config.scale

    def __call__(self, x: mx.array, turn: Activation, mask: Mask) -> mx.array:
        sizes = self._sizes
        q = self.q_norm(heads(self.q_proj(x), sizes.heads))
        k = self.k_norm(heads(self.k_proj(x), sizes.groups))
        v = heads(self.v_proj(x), sizes.groups)
        out: mx.array = self.o_proj(attend(q, k, v, turn, self._scale, mask))
        return out


class Block(nn.Module):
    """Attention and a feed-forward, each between two norms."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = config.sizes
        self.self_attn = Attention(config)
        self.mlp = Gated(sizes)
        self.input_layernorm = Norm(sizes.hidden, sizes.eps)
        self.post_attention_layernorm = Norm(sizes.hidden, sizes.eps)
        self.pre_feedforward_layernorm = Norm(sizes.hidden, sizes.eps)
        self.post_feedforward_layernorm = Norm(sizes.hidden, sizes.eps)

    def __call__(self, x: mx.array, turn: Activation, mask: Mask) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), turn, mask))
        out: mx.array = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return out


class Model(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.sizes.vocabulary, config.sizes.hidden)
        self.layers = [Block(config) for _ in range(config.sizes.layers)]
        self.norm = Norm(config.sizes.hidden, config.sizes.eps)
        if config.head_rows:
            self.head = Head(config.head_rows, config.sizes.hidden)
        self._config = config
        self._turns = {"sliding_attention": config.local.turn(), "full_attention": config.whole.turn()}

    def __call__(self, rows: Rows) -> mx.array:
        config = self._config
        masks = {
            "sliding_attention": visible(rows, causal=config.causal, reach=config.reach),
            "full_attention": visible(rows, causal=config.causal, reach=None),
        }
        x = self.embed_tokens(rows.ids)
        x = x * mx.array(config.sizes.hidden**0.5, x.dtype)  # rounded to that type, as the model was trained
        for layer, kind in zip(self.layers, config.kinds):
            x = layer(x, self._turns[kind], masks[kind])
        x = self.norm(x)
        return self.head(x, rows) if config.head_rows else x
