"""NomicBERT, as an embedder and as a reranker: BERT with rotary positions and gated feed-forwards.

Its files come in two layouts, the hub's own and transformers', and so does its config. Knows neither batching nor
pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.layers import Activation, Rows, attend, rotary, token_bytes
from vecgate.backends.mlx.settings import base, flag, heads_fit, holds, only, unscaled
from vecgate.backends.mlx.weights import Names, activation_of, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

T = TypeVar("T", int, float)
WORDS = (
    ("words.", "embeddings.word_embeddings."),
    ("kinds.", "embeddings.token_type_embeddings."),
    ("head.inner.", "pooler.dense."),
    ("head.outer.", "classifier."),
)
HUBS = (
    ("first_norm.", "emb_ln."),
    ("blocks.", "encoder.layers."),
    (".qkv.", ".attn.Wqkv."),
    (".mix.", ".attn.out_proj."),
    (".mix_norm.", ".norm1."),
    (".up.", ".mlp.fc11."),
    (".gate.", ".mlp.fc12."),
    (".down.", ".mlp.fc2."),
    (".down_norm.", ".norm2."),
)
TRANSFORMERS = (
    ("first_norm.", "embeddings.LayerNorm."),
    ("blocks.", "layers."),
    (".query.", ".self_attn.q_proj."),
    (".key.", ".self_attn.k_proj."),
    (".value.", ".self_attn.v_proj."),
    (".mix.", ".self_attn.o_proj."),
    (".mix_norm.", ".post_attention_layernorm."),
    (".up.", ".mlp.up_proj."),
    (".gate.", ".mlp.gate_proj."),
    (".down.", ".mlp.down_proj."),
    (".down_norm.", ".post_mlp_layernorm."),
)
NO = ("prenorm", "parallel_block", "parallel_block_tied_norm", "use_rms_norm", "causal", "rotary_emb_interleaved")
"""Switches of the hub's model code for variants that are not written here."""


@dataclass(frozen=True, slots=True)
class Config:
    """width: of a head. turned: how many of its numbers rotary positions turn. fused: query, key and value as one."""

    vocabulary: int
    kinds: int
    hidden: int
    inner: int
    heads: int
    width: int
    turned: int
    base: float
    layers: int
    eps: float
    activation: Activation
    attention_bias: bool
    up_bias: bool
    down_bias: bool
    fused: bool
    reranks: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json in either spelling or both; raises CheckpointError for variants that are not written here."""
        hidden, heads = _either(checkpoint, int, "hidden_size", "n_embd"), _heads(checkpoint)
        _refuse_variants(checkpoint, heads)
        heads_fit(checkpoint, hidden, heads)
        width = setting(checkpoint, "head_dim", int, hidden // heads)
        return cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            kinds=setting(checkpoint, "type_vocab_size", int, 2),
            hidden=hidden,
            inner=_either(checkpoint, int, "intermediate_size", "n_inner"),
            heads=heads,
            width=width,
            turned=_turned(checkpoint, width),
            base=_base(checkpoint),
            layers=_either(checkpoint, int, "num_hidden_layers", "n_layer"),
            eps=_either(checkpoint, float, "layer_norm_eps", "layer_norm_epsilon", 1e-12),
            activation=activation_of(setting(checkpoint, "hidden_act", str, "silu"), checkpoint.folder / "config.json"),
            attention_bias=flag(checkpoint, "qkv_proj_bias"),
            up_bias=flag(checkpoint, "mlp_fc1_bias"),
            down_bias=flag(checkpoint, "mlp_fc2_bias"),
            fused=holds(checkpoint, ".attn.Wqkv.weight"),
            reranks=checkpoint.task == "rerank",
        )

    @property
    def names(self) -> Names:
        return Names(
            ours=WORDS + (HUBS if self.fused else TRANSFORMERS),
            prefixes=("nomic_bert.", "bert."),
            spare=("pooler.", "cls.", "classifier."),
        )

    def token_bytes(self, longest: int, width: int) -> int:
        """The gated feed-forward holds four times `inner`."""
        return token_bytes(max(self.hidden, self.heads * self.width), 2 * self.inner, self.heads, longest, width)


def _either(checkpoint: Checkpoint, kind: Callable[..., T], key: str, hubs: str, default: T | None = None) -> T:
    """A setting that has two names; where both are there, they must agree."""
    mine, theirs = checkpoint.config.get(key), checkpoint.config.get(hubs)
    if mine is not None and theirs is not None and mine != theirs:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {mine!r} for {key!r} but {theirs!r} for {hubs!r}."
        )
    return setting(checkpoint, key if theirs is None else hubs, kind, default)


def _heads(checkpoint: Checkpoint) -> int:
    return _either(checkpoint, int, "num_attention_heads", "n_head")


def _refuse_variants(checkpoint: Checkpoint, heads: int) -> None:
    for key in NO:
        only(checkpoint, key, False)
    only(checkpoint, "scale_attn_by_inverse_layer_idx", False)
    only(checkpoint, "rotary_head_dim", False)
    only(checkpoint, "rotary_emb_scale_base")
    only(checkpoint, "num_heads_kv", heads)
    only(checkpoint, "moe_every_n_layers", 0)
    only(checkpoint, "activation_function", "swiglu")
    if checkpoint.config.get("activation_function") is not None:
        only(checkpoint, "hidden_act", "silu", "swish")
    factor = checkpoint.config.get("rotary_scaling_factor")
    trained = setting(checkpoint, "max_trained_positions", int, 2048)
    if factor is not None and checkpoint.max_tokens > trained:  # the hub's code scales beyond that, by what came before
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {factor!r} for 'rotary_scaling_factor', which can't be followed on MLX "
            f"beyond {trained} tokens; set max_seq_length to {trained} in sentence_bert_config.json."
        )


def _turned(checkpoint: Checkpoint, width: int) -> int:
    fraction = setting(checkpoint, "rotary_emb_fraction", float, 1.0)
    turned = width * fraction
    if not 0 < turned <= width or turned % 2:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {fraction} for 'rotary_emb_fraction'; on MLX that must give an even "
            f"part of a head's {width} numbers."
        )
    return int(turned)


def _base(checkpoint: Checkpoint) -> float:
    """Of the rotary positions: from rope_parameters, as transformers 5 writes it, or under the hub's key."""
    only(checkpoint, "rope_scaling")
    given = {**checkpoint.config, **unscaled(checkpoint, checkpoint.config.get("rope_parameters"))}
    mine, hubs = given.get("rope_theta"), given.get("rotary_emb_base")
    if mine is not None and hubs is not None and mine != hubs:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {mine!r} for 'rope_theta' but {hubs!r} for 'rotary_emb_base'."
        )
    key, found = ("rope_theta", mine) if hubs is None else ("rotary_emb_base", hubs)
    return base(checkpoint, 1000.0 if found is None else found, key)


class Block(nn.Module):
    """Attention and a gated feed-forward, each followed by its residual's norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, inner, wide = config.hidden, config.inner, config.heads * config.width
        if config.fused:
            self.qkv = nn.Linear(hidden, 3 * wide, bias=config.attention_bias)
        else:
            self.query = nn.Linear(hidden, wide, bias=config.attention_bias)
            self.key = nn.Linear(hidden, wide, bias=config.attention_bias)
            self.value = nn.Linear(hidden, wide, bias=config.attention_bias)
        self.mix = nn.Linear(wide, hidden, bias=config.attention_bias)
        self.mix_norm = nn.LayerNorm(hidden, eps=config.eps)
        self.up = nn.Linear(hidden, inner, bias=config.up_bias)
        self.gate = nn.Linear(hidden, inner, bias=config.up_bias)
        self.down = nn.Linear(inner, hidden, bias=config.down_bias)
        self.down_norm = nn.LayerNorm(hidden, eps=config.eps)
        self._config = config
        self._turn = rotary(config.base, config.turned)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        if self._config.fused:
            q, k, v = mx.split(self.qkv(x), 3, axis=-1)
        else:
            q, k, v = self.query(x), self.key(x), self.value(x)
        x = self.mix_norm(x + self.mix(attend(q, k, v, self._config.heads, mask, self._turn)))
        inner = self.up(x) * self._config.activation(self.gate(x))
        out: mx.array = self.down_norm(x + self.down(inner))
        return out


class Head(nn.Module):
    """The logit of the first token's state, in float32; `inner` is the pooler."""

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
        self.kinds = nn.Embedding(config.kinds, config.hidden)
        self.first_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.blocks = [Block(config) for _ in range(config.layers)]
        if config.reranks:
            self.head = Head(config)
        self._config = config

    def __call__(self, rows: Rows) -> mx.array:
        kinds = rows.kinds if self._config.kinds > 1 else mx.zeros_like(rows.kinds)
        x = self.first_norm(self.words(rows.ids) + self.kinds(kinds))
        for block in self.blocks:
            x = block(x, rows.mask)
        return self.head(x) if self._config.reranks else x
