"""DistilBERT, as an embedder and as a reranker: BERT without token types and pooler. Knows neither batching nor pooling."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.layers import Activation, Rows, attend, relu, token_bytes
from vecgate.backends.mlx.settings import heads_fit, positions_fit
from vecgate.backends.mlx.weights import Names, activation_of, setting
from vecgate.core import Checkpoint

EPS = 1e-12
"""Of every norm; config.json has no say."""


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says, under the names that the other families use. Sinusoidal positions are stored as a table."""

    vocabulary: int
    positions: int
    hidden: int
    inner: int
    heads: int
    layers: int
    activation: Activation
    reranks: bool

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what this architecture can't be."""
        config = cls(
            vocabulary=setting(checkpoint, "vocab_size", int),
            positions=setting(checkpoint, "max_position_embeddings", int),
            hidden=setting(checkpoint, "dim", int),
            inner=setting(checkpoint, "hidden_dim", int),
            heads=setting(checkpoint, "n_heads", int),
            layers=setting(checkpoint, "n_layers", int),
            activation=activation_of(setting(checkpoint, "activation", str, "gelu"), checkpoint.folder / "config.json"),
            reranks=checkpoint.task == "rerank",
        )
        heads_fit(checkpoint, config.hidden, config.heads)
        positions_fit(checkpoint, config.positions)
        return config

    @property
    def names(self) -> Names:
        return Names(
            ours=(
                ("words.", "embeddings.word_embeddings."),
                ("positions.", "embeddings.position_embeddings."),
                ("first_norm.", "embeddings.LayerNorm."),
                ("blocks.", "transformer.layer."),
                (".query.", ".attention.q_lin."),
                (".key.", ".attention.k_lin."),
                (".value.", ".attention.v_lin."),
                (".mix.", ".attention.out_lin."),
                (".mix_norm.", ".sa_layer_norm."),
                (".up.", ".ffn.lin1."),
                (".down.", ".ffn.lin2."),
                (".down_norm.", ".output_layer_norm."),
                ("head.inner.", "pre_classifier."),
                ("head.outer.", "classifier."),
            ),
            prefixes=("distilbert.",),
            old=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
            # A buffer that is computed here, the pre-training's head, and one that an embedder does not use.
            spare=("embeddings.position_ids", "vocab_", "pre_classifier.", "classifier."),
        )

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
        self.mix_norm = nn.LayerNorm(config.hidden, eps=EPS)
        self.up = nn.Linear(config.hidden, config.inner)
        self.down = nn.Linear(config.inner, config.hidden)
        self.down_norm = nn.LayerNorm(config.hidden, eps=EPS)
        self._heads = config.heads
        self._activation = config.activation

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        mixed = attend(self.query(x), self.key(x), self.value(x), self._heads, mask)
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
        logits: mx.array = self.outer(relu(self.inner(hidden[:, 0].astype(mx.float32))))
        return logits


class Model(nn.Module):
    """rows -> (B, L, H) hidden states, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.first_norm = nn.LayerNorm(config.hidden, eps=EPS)
        self.blocks = [Block(config) for _ in range(config.layers)]
        if config.reranks:
            self.head = Head(config)
        self._config = config

    def __call__(self, rows: Rows) -> mx.array:
        x = self.first_norm(self.words(rows.ids) + self.positions(mx.arange(rows.ids.shape[1])))
        for block in self.blocks:
            x = block(x, rows.mask)
        return self.head(x) if self._config.reranks else x
