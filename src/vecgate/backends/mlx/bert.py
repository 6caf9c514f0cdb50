"""BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA, as embedders and as rerankers: one architecture.

They differ in where positions begin and in the head; ELECTRA's tables may be narrower than its layers. Knows neither
batching nor pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.layers import Activation, Rows, attend, gelu, token_bytes
from vecgate.backends.mlx.weights import Names, activation_of, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

NAMES = Names(
    ours=(
        ("words.", "embeddings.word_embeddings."),
        ("positions.", "embeddings.position_embeddings."),
        ("kinds.", "embeddings.token_type_embeddings."),
        ("first_norm.", "embeddings.LayerNorm."),
        ("widen.", "embeddings_project."),
        ("blocks.", "encoder.layer."),
        (".query.", ".attention.self.query."),
        (".key.", ".attention.self.key."),
        (".value.", ".attention.self.value."),
        (".mix.", ".attention.output.dense."),
        (".mix_norm.", ".attention.output.LayerNorm."),
        (".up.", ".intermediate.dense."),
        (".down.", ".output.dense."),
        (".down_norm.", ".output.LayerNorm."),
    ),
    prefixes=("bert.", "roberta.", "electra."),
    old=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    # Buffers that are computed here, and the heads that an embedder does not use.
    spare=(
        *("embeddings.position_ids", "embeddings.token_type_ids", "pooler.", "cls.", "lm_head.", "classifier."),
        *("discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
    ),
)
POOLED = (("head.inner.", "pooler.dense."), ("head.outer.", "classifier."))
"""BERT's head; the others' are called as follows."""
OWN = (("head.inner.", "classifier.dense."), ("head.outer.", "classifier.out_proj."))


@dataclass(frozen=True, slots=True)
class Config:
    """pad: where RoBERTa's positions begin (at pad + 1), and the position of a pad; None where they begin at 0.

    table: the width of the embeddings. head: what its tensors are called. bent: its activation.
    """

    vocabulary: int
    positions: int
    kinds: int
    table: int
    hidden: int
    inner: int
    heads: int
    layers: int
    eps: float
    activation: Activation
    pad: int | None
    head: tuple[tuple[str, str], ...]
    bent: Activation
    reranks: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what this architecture can't be."""
        family = checkpoint.family
        hidden = setting(checkpoint, "hidden_size", int)
        config = cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            positions=setting(checkpoint, "max_position_embeddings", int),
            kinds=setting(checkpoint, "type_vocab_size", int, 2),
            table=setting(checkpoint, "embedding_size", int) if family == "electra" else hidden,
            hidden=hidden,
            inner=setting(checkpoint, "intermediate_size", int),
            heads=setting(checkpoint, "num_attention_heads", int),
            layers=setting(checkpoint, "num_hidden_layers", int),
            eps=setting(checkpoint, "layer_norm_eps", float, 1e-12),
            activation=activation_of(setting(checkpoint, "hidden_act", str, "gelu"), checkpoint.folder / "config.json"),
            pad=None if family in ("bert", "electra") else checkpoint.pad_id,
            head=POOLED if family == "bert" else OWN,
            bent=gelu if family == "electra" else mx.tanh,
            reranks=checkpoint.task == "rerank",
        )
        config.check(checkpoint)
        return config

    def check(self, checkpoint: Checkpoint) -> None:
        file, given = checkpoint.folder / "config.json", checkpoint.config
        if self.heads < 1 or self.hidden % self.heads:
            raise CheckpointError(f"{file}: hidden_size {self.hidden} is no multiple of {self.heads} attention heads.")
        if given.get("is_decoder"):
            raise CheckpointError(f"{file} says is_decoder; a causal {checkpoint.family} can't be served on MLX.")
        if (kind := given.get("position_embedding_type") or "absolute") != "absolute":
            raise CheckpointError(f"{file} has {kind!r} for position_embedding_type; on MLX there is absolute only.")
        if checkpoint.max_tokens > (room := self.positions - self.first):
            raise CheckpointError(
                f"{file} has positions for {room} tokens; the limit of {checkpoint.max_tokens} is over."
            )

    @property
    def first(self) -> int:
        """The first token's position."""
        return 0 if self.pad is None else self.pad + 1

    @property
    def names(self) -> Names:
        return replace(NAMES, ours=NAMES.ours + self.head)

    def token_bytes(self, longest: int, width: int) -> int:
        return token_bytes(self.hidden, self.inner, self.heads, longest, width)


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

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        mixed = attend(self.query(x), self.key(x), self.value(x), self._heads, mask)
        x = self.mix_norm(x + self.mix(mixed))
        out: mx.array = self.down_norm(x + self.down(self._activation(self.up(x))))
        return out


class Head(nn.Module):
    """The logit of the first token's state, in float32: bfloat16 has steps of 0.06 at 10. BERT's pooler is `inner`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.hidden, config.hidden)
        self.outer = nn.Linear(config.hidden, 1)
        self._bent = config.bent

    def __call__(self, hidden: mx.array) -> mx.array:
        logits: mx.array = self.outer(self._bent(self.inner(hidden[:, 0].astype(mx.float32))))
        return logits


class Model(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.table)
        self.positions = nn.Embedding(config.positions, config.table)
        self.kinds = nn.Embedding(config.kinds, config.table)
        self.first_norm = nn.LayerNorm(config.table, eps=config.eps)
        if config.table != config.hidden:
            self.widen = nn.Linear(config.table, config.hidden)
        self.blocks = [Block(config) for _ in range(config.layers)]
        if config.reranks:
            self.head = Head(config)
        self._config = config

    def __call__(self, rows: Rows) -> mx.array:
        x = self.first_norm(self.words(rows.ids) + self._kinds(rows) + self.positions(self._at(rows.ids)))
        if "widen" in self:
            x = self.widen(x)
        for block in self.blocks:
            x = block(x, rows.mask)
        return self.head(x) if self._config.reranks else x

    def _kinds(self, rows: Rows) -> mx.array:
        found: mx.array = self.kinds(rows.kinds if self._config.kinds > 1 else mx.zeros_like(rows.kinds))
        return found

    def _at(self, ids: mx.array) -> mx.array:
        """Positions. RoBERTa's count only what is no pad, so that a pad written in a text moves none that follows."""
        pad = self._config.pad
        if pad is None:
            return mx.arange(ids.shape[1])
        real = (ids != pad).astype(mx.int32)
        return mx.cumsum(real, axis=1) * real + pad
