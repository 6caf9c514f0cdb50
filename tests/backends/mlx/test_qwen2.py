"""Qwen2 on MLX: causal, and both ways as gte-Qwen2, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)

import torch
import transformers

from tests.backends.mlx.alike import copied, renamed
from tests.backends.mlx.decoders import SIZES, assert_alike, embedder, reranker, rows_of, vary
from vecgate.backends.mlx import causal
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


def config(**more: Any) -> Any:
    given: dict[str, Any] = {"rope_theta": 1e6, "attn_implementation": "eager"}
    return transformers.Qwen2Config(**(SIZES | given | more))


@pytest.fixture(scope="module")
def both_ways() -> Any:
    return vary(transformers.Qwen2Model(config(is_causal=False)))


@pytest.fixture(scope="module")
def checkpoint(both_ways: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return embedder(both_ways, tmp_path_factory.mktemp("qwen2"))


def test_rows_that_see_both_ways_equal_transformers(both_ways: Any, checkpoint: Checkpoint) -> None:
    assert checkpoint.config["is_causal"] is False
    assert_alike(both_ways, checkpoint)


@pytest.mark.parametrize("more", [{}, WINDOWS, {"is_causal": False, **WINDOWS}, {"head_dim": 32}])
def test_what_the_config_asks_for_is_followed(tmp_path: Path, more: dict[str, Any]) -> None:
    model = vary(transformers.Qwen2Model(config(**more)))
    assert_alike(model, embedder(model, tmp_path))


def test_other_layouts_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"layer_types": None, "rope_parameters": None, "rope_theta": 1000000.0}
    other = copied(checkpoint, tmp_path, renamed(lambda name: f"model.{name}"), **keys)
    np.testing.assert_array_equal(rows_of(other), rows_of(checkpoint))


@pytest.mark.parametrize("kind", ["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"])
def test_logits_equal_transformers(tmp_path: Path, kind: str) -> None:
    model = vary(getattr(transformers, kind)(config(num_labels=1)))
    assert_alike(model, reranker(model, tmp_path))


@pytest.mark.parametrize("mistake", ["causal", "pads seen"])
def test_a_mistake_shows(both_ways: Any, checkpoint: Checkpoint, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "visible", lambda rows, **given: "causal" if mistake == "causal" else None)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(both_ways, checkpoint)


def test_a_forgotten_bias_shows(both_ways: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def zero(held: dict[str, Any]) -> None:
        held["layers.1.self_attn.v_proj.bias"] = torch.zeros_like(held["layers.1.self_attn.v_proj.bias"])

    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(both_ways, copied(checkpoint, tmp_path, zero))


def test_a_missing_bias_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = copied(checkpoint, tmp_path, lambda held: held.pop("layers.1.self_attn.v_proj.bias"))
    with pytest.raises(CheckpointError, match=r"lacks the qwen2 tensor 'layers\.1\.self_attn\.v_proj\.bias'"):
        rows_of(other)
