"""DistilBERT on MLX against transformers, as an embedder and with its classifier."""

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
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": LENGTH,
    "attn_implementation": "eager",
}


def reranker() -> Any:
    config = transformers.DistilBertConfig(**SIZES | {"num_labels": 1})
    return vary(transformers.DistilBertForSequenceClassification(config))


@pytest.fixture(scope="module")
def model() -> Any:
    return vary(transformers.DistilBertModel(transformers.DistilBertConfig(**SIZES)))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(model, tmp_path_factory.mktemp("distilbert"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)
    assert_alike(model, replace(checkpoint, pooling=("cls",)), *SOME)


def test_the_activation_and_stored_sines_are_used(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(**SIZES, activation="relu", sinusoidal_pos_embds=True)
    model = transformers.DistilBertModel(config)
    sines = model.embeddings.position_embeddings.weight.clone()
    vary(model).embeddings.position_embeddings.weight.data.copy_(sines)
    assert_alike(model, save(model, tmp_path), *SOME)


def test_logits_equal_transformers(tmp_path: Path) -> None:
    model = reranker()
    assert_alike(model, save(model, tmp_path))


def test_a_bfloat16_logit_keeps_its_low_bits(tmp_path: Path) -> None:
    checkpoint = save(reranker(), tmp_path)
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows_for(checkpoint, 9, 21, 40)))
    assert (got.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize(("part", "wrong"), [("positions", lambda at: mx.zeros(32)), ("first_norm", lambda x: x)])
def test_each_mistake_shows(model: Any, checkpoint: Checkpoint, part: str, wrong: Any) -> None:
    rows = rows_for(checkpoint, *SOME)
    opened: Any = load(checkpoint, device="cpu")
    setattr(opened._model, part, wrong)
    assert distance(opened.forward(Batch(rows)), by_transformers(model, checkpoint, rows)) > OTHER


def test_other_spellings_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batch = rows_for(checkpoint, *SOME)

    def masked_lm(held: dict[str, torch.Tensor]) -> None:
        renamed(lambda name: f"distilbert.{name}")(held)
        held.update({"vocab_transform.weight": torch.zeros(2), "pre_classifier.bias": torch.zeros(2)})
        held["distilbert.embeddings.position_ids"] = torch.arange(LENGTH)[None]

    other = copied(checkpoint, tmp_path, masked_lm)
    np.testing.assert_array_equal(by_mlx(other, batch), by_mlx(checkpoint, batch))


def test_shards_are_one_model(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sharded = save(model, tmp_path, max_shard_size="20KB")
    assert len(sharded.weights) > 2
    batch = rows_for(checkpoint, *SOME)
    np.testing.assert_array_equal(by_mlx(sharded, batch), by_mlx(checkpoint, batch))


DEEP = "transformer.layer.1.attention.v_lin.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(DEEP), f"model.safetensors lacks the distilbert tensor '{DEEP}'"),
        (lambda held: held.update({"embeddings.token_type_embeddings.weight": torch.ones(2, 32)}), "holds the tensor 'embeddings.token_type_embeddings.weight'"),
        (lambda held: held.update({DEEP: torch.zeros(32, 31)}), rf"'{DEEP}' has the shape \(32, 31\), not \(32, 32\)"),
    ],
    ids=["missing", "extra", "shape"],
)  # fmt: skip
def test_a_wrong_tensor_is_named_with_its_file(
    checkpoint: Checkpoint, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(copied(checkpoint, tmp_path, change), device="cpu")
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dim": None}, "lacks 'dim'"),
        ({"n_heads": 5}, "its hidden width 32 is no multiple of 5 attention heads"),
        ({"activation": "mish"}, "asks for the activation 'mish'"),
        ({"max_position_embeddings": 63}, "has positions for 63 tokens; the limit of 64 is over"),
    ],
)
def test_a_config_it_cant_follow_is_one_sentence(checkpoint: Checkpoint, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(replace(checkpoint, config={**checkpoint.config, **config}), device="cpu")
    assert str(checkpoint.folder / "config.json") in str(raised.value)
