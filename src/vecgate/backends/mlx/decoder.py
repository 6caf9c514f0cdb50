"""Any further causal decoder, through mlx-lm's own classes: a family is a row of KINDS, once a test has shown it right.

The only door to mlx_lm, which imports transformers and so costs a second. Knows neither batching nor pooling. mlx-lm
ignores some of what transformers reads in config.json; where that would change a row, the checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from vecgate.backends.mlx.causal import Head, Sizes, head_rows, names
from vecgate.backends.mlx.layers import Rows, rotary
from vecgate.backends.mlx.settings import only
from vecgate.backends.mlx.weights import Names, first_line, setting
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError, ConfigError

WINDOW = 4096
"""Of a family with windows where config.json does not name one."""
ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class Kind:
    """A family in mlx-lm. module: its file there. act: config.json's key for the one activation that is computed.

    theta: of rotary positions where config.json has none. ropes: their types that give transformers' rows. biases:
    whether config.json decides on them. parts: whether it may turn a part of each head only. windowed: whether a text may be longer
    than what a token sees in transformers, and never in mlx-lm. slides: whether mlx-lm's layers can have a window, and
    all of transformers' do. scores: whether a plain
    product with the head gives the logits. scores_lie: attention keeps all its scores in memory.
    """

    module: str
    act: tuple[str, str] = ("hidden_act", "silu")
    theta: float = 10_000.0
    ropes: tuple[str, ...] = ROPES
    biases: bool = True
    parts: bool = False
    windowed: bool = False
    slides: bool = False
    scores: bool = True
    scores_lie: bool = False


KINDS: Mapping[str, Kind] = {
    "gemma2": Kind(
        "gemma2",
        ("hidden_activation", "gelu_pytorch_tanh"),
        ropes=ROPES[:1],
        biases=False,
        windowed=True,
        scores=False,
        scores_lie=True,
    ),
    "granite": Kind("granite", scores=False),
    "llama": Kind("llama"),
    "mistral": Kind("llama", biases=False, slides=True),
    "olmo2": Kind("olmo2"),
    "phi3": Kind("phi3", ropes=ROPES[:1], biases=False, parts=True, windowed=True),
    "smollm3": Kind("smollm3", theta=2_000_000.0),
}


@dataclass(frozen=True, slots=True)
class Config:
    """make: mlx-lm's language model, of which the backbone is used. window: the places that a token of any layer sees,
    its own included (None: all before it, in the longest text too)."""

    sizes: Sizes
    kind: Kind
    window: int | None
    make: Callable[[], Any]
    names: Names
    head_rows: int

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> Config:
        """From config.json; raises CheckpointError for what mlx-lm would not follow, ConfigError where it is missing."""
        if find_spec("mlx_lm") is None:
            raise ConfigError(
                f"The family {checkpoint.family!r} needs the package 'mlx-lm' on MLX, which is not installed: "
                "pip install mlx-lm."
            )
        kind = KINDS[checkpoint.family]
        check(checkpoint, kind)
        own, window = names(checkpoint), window_of(checkpoint) if kind.slides else None
        return cls(
            sizes=Sizes.read(checkpoint, activation=kind.act[0]),
            kind=kind,
            window=window if window is not None and window < checkpoint.max_tokens else None,
            make=maker(checkpoint, kind),
            names=replace(own, ours=(("backbone.", ""),)),
            head_rows=head_rows(checkpoint),
        )

    @property
    def vocabulary(self) -> int:
        return self.sizes.vocabulary

    @property
    def hidden(self) -> int:
        return self.sizes.hidden

    def token_bytes(self, longest: int, width: int) -> int:
        scores = 3 * self.sizes.heads * longest * width if self.kind.scores_lie else 0
        return scores + self.sizes.token_bytes(longest, width, masked=self.kind.scores_lie or self.window is not None)


def window_of(checkpoint: Checkpoint) -> int | None:
    """config.json's sliding_window, which null turns off."""
    off = "sliding_window" in checkpoint.config and checkpoint.config["sliding_window"] is None
    return None if off else setting(checkpoint, "sliding_window", int, WINDOW)


def check(checkpoint: Checkpoint, kind: Kind) -> None:
    """Raises CheckpointError for what config.json asks for and mlx-lm does not do."""
    key, value = kind.act
    only(checkpoint, key, value)
    only(checkpoint, "is_causal", True)
    only(checkpoint, "use_sliding_window", False)
    if not kind.parts:
        only(checkpoint, "partial_rotary_factor", 1, 1.0)
    file, config = checkpoint.folder / "config.json", checkpoint.config
    window = window_of(checkpoint) if kind.windowed else None
    if window is not None and checkpoint.max_tokens > window:
        raise CheckpointError(
            f"{file} has a window of {window} tokens, which is not computed on MLX for the family "
            f"{checkpoint.family!r}; the limit of {checkpoint.max_tokens} is over. Use BACKEND=torch."
        )
    if kind.scores_lie and config.get("attn_logit_softcapping", 50.0) is None:
        raise CheckpointError(
            f"{file} has no attn_logit_softcapping, which is always computed on MLX. Use BACKEND=torch."
        )
    if checkpoint.yes_id is not None and not kind.scores:
        raise CheckpointError(
            f"{file}: a reranker by yes and no can't be a {checkpoint.family} on MLX. Use BACKEND=torch."
        )


def maker(checkpoint: Checkpoint, kind: Kind) -> Callable[[], Any]:
    try:
        module = import_module(f"mlx_lm.models.{kind.module}")
    except ImportError as error:
        raise ConfigError(
            f"mlx-lm does not load for {checkpoint.family!r} ({error}); pip install -U mlx-lm."
        ) from error
    try:
        return partial(module.Model, module.ModelArgs.from_dict(translated(checkpoint, kind)))
    except (TypeError, ValueError) as error:
        file = checkpoint.folder / "config.json"
        raise CheckpointError(f"{file} is not what mlx-lm needs ({first_line(error)}); fetch it again.") from error


def translated(checkpoint: Checkpoint, kind: Kind) -> dict[str, Any]:
    """config.json in the words that mlx-lm reads: those of transformers before 5."""
    file, config = checkpoint.folder / "config.json", dict(checkpoint.config)
    said = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()):
        raise CheckpointError(f"{file} has rotary positions that the family {checkpoint.family!r} does not have.")
    form = said.get("rope_type") or said.get("type") or "default"
    if form not in kind.ropes:
        raise CheckpointError(
            f"{file} asks for rotary positions of the type {form!r}; on MLX a {checkpoint.family} has "
            f"{', '.join(kind.ropes)}. Use BACKEND=torch."
        )
    if not kind.parts and said.get("partial_rotary_factor", 1) != 1:
        raise CheckpointError(f"{file} has a partial_rotary_factor, which a {checkpoint.family} can't have on MLX.")
    scaling = None if form == "default" else {**said, "rope_type": form}
    theta = said.get("rope_theta") or config.get("rope_theta") or kind.theta
    config |= {"rope_theta": theta, "rope_scaling": scaling, "rope_traditional": False, "layer_types": None}
    if kind.parts:
        config["partial_rotary_factor"] = said.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if not kind.biases:
        config |= {"attention_bias": False, "mlp_bias": False}
    return config


class Turn(nn.Module):
    """mlx-lm's RoPE with the frequencies that torch has; without a cache, positions always begin at 0."""

    def __init__(self, rope: Any) -> None:
        super().__init__()
        self._turn = rotary(rope.base, rope.dims, 1 / rope.scale)

    def __call__(self, x: mx.array) -> mx.array:
        return self._turn(x)


class Model(nn.Module):
    """rows -> (B, L, H) hidden states after the last norm, or (B, 1) logits of a reranker."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = config.make().model
        for layer in self.backbone.layers:
            if isinstance(layer.self_attn.rope, nn.RoPE):
                layer.self_attn.rope = Turn(layer.self_attn.rope)
        if config.window is not None:  # mlx-lm's constructor wants a layer without one
            self.backbone.sliding_window, self.backbone.swa_idx = config.window, 0
            for layer in self.backbone.layers:
                layer.use_sliding = True
        if config.head_rows:
            self.head = Head(config.head_rows, config.sizes.hidden)
        self._reranks = config.head_rows > 0

    def __call__(self, rows: Rows) -> mx.array:
        hidden: mx.array = self.backbone(rows.ids)  # causal, so that padding on the right needs no mask
        return self.head(hidden, rows) if self._reranks else hidden
