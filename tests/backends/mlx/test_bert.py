"""ELECTRA on MLX against transformers; BERT and its kin are in tests/backends/test_mlx.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)

import mlx.core as mx
import torch
import transformers

from tests.backends.mlx.alike import (
    LENGTH,
    OTHER,
    SOME,
    VOCABULARY,
    assert_alike,
    by_mlx,
    by_transformers,
    copied,
    distance,
    renamed,
    rows_for,
    save,
    vary,
)
from vecgate.backends.mlx.backend import load
from vecgate.core import Batch, Checkpoint
from vecgate.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "embedding_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH,
    "attn_implementation": "eager",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return vary(transformers.ElectraModel(transformers.ElectraConfig(**SIZES)))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(model, tmp_path_factory.mktemp("electra"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)


@pytest.mark.parametrize("table", [16, 32], ids=["narrow", "as wide as the layers"])
def test_logits_equal_transformers(tmp_path: Path, table: int) -> None:
    config = transformers.ElectraConfig(**SIZES | {"embedding_size": table, "num_labels": 1})
    model = vary(transformers.ElectraForSequenceClassification(config))
    assert_alike(model, save(model, tmp_path), *SOME)


def test_the_heads_activation_is_its_own(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(**SIZES | {"num_labels": 1})
    model = vary(transformers.ElectraForSequenceClassification(config))
    checkpoint = save(model, tmp_path)
    rows = rows_for(checkpoint, *SOME)
    opened: Any = load(checkpoint, device="cpu")
    opened._model.head._bent = mx.tanh  # as in BERT
    assert distance(opened.forward(Batch(rows)), by_transformers(model, checkpoint, rows)) > OTHER


def test_the_pretrainings_names_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batch = rows_for(checkpoint, *SOME)

    def pretraining(held: dict[str, torch.Tensor]) -> None:
        renamed(lambda name: f"electra.{name}")(held)
        held["discriminator_predictions.dense.bias"] = torch.zeros(2)

    np.testing.assert_array_equal(by_mlx(copied(checkpoint, tmp_path, pretraining), batch), by_mlx(checkpoint, batch))


def test_what_is_missing_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = copied(checkpoint, tmp_path, lambda held: held.pop("embeddings_project.weight"))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors lacks the electra tensor 'embeddings_project\.weight'"
    ):
        load(other, device="cpu")
    given = {key: value for key, value in checkpoint.config.items() if key != "embedding_size"}
    with pytest.raises(CheckpointError, match=r"config\.json lacks 'embedding_size'"):
        load(replace(checkpoint, config=given), device="cpu")
