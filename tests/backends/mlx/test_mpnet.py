"""MPNet on MLX against transformers: the offset of its positions, the shared biases by distance, the head."""

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
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from tests.backends.mlx.alike import (
    LENGTH,
    OTHER,
    SAME,
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
from vecgate.backends.mlx import mpnet
from vecgate.backends.mlx.backend import load
from vecgate.core import Batch, Checkpoint
from vecgate.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LENGTH + 2,
}


def reranker() -> Any:
    return vary(transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**SIZES | {"num_labels": 1})))


@pytest.fixture(scope="module")
def model() -> Any:
    return vary(transformers.MPNetModel(transformers.MPNetConfig(**SIZES)))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(model, tmp_path_factory.mktemp("mpnet"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)
    assert_alike(model, replace(checkpoint, pooling=("cls",)), *SOME)


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "relu", "layer_norm_eps": 0.1},
        {"relative_attention_num_buckets": 40},  # a longer table, of which 32 rows are used
        {"pad_token_id": 4},  # positions begin after 1 all the same
    ],
    ids=["activation", "buckets", "pad"],
)
def test_the_config_decides_as_in_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    other = vary(transformers.MPNetModel(transformers.MPNetConfig(**SIZES | config)))
    assert_alike(other, save(other, tmp_path), *SOME)


def test_logits_equal_transformers(tmp_path: Path) -> None:
    model = reranker()
    assert_alike(model, save(model, tmp_path))


def test_a_bfloat16_logit_keeps_its_low_bits(tmp_path: Path) -> None:
    checkpoint = save(reranker(), tmp_path)
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows_for(checkpoint, 9, 21, 40)))
    assert (got.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_near_with_and_without_padding(checkpoint: Checkpoint, dtype: str) -> None:
    rows = rows_for(checkpoint, 3, 17, 64, 64)
    exact, half = (load(checkpoint, device="cpu", dtype=one) for one in ("float32", dtype))
    # 8 or 11 bits of mantissa through 2 layers
    assert distance(half.forward(Batch(rows)), exact.forward(Batch(rows))) < 0.03
    assert distance(half.forward(Batch(rows[2:])), exact.forward(Batch(rows[2:]))) < 0.03


def test_every_distance_falls_into_transformers_bucket() -> None:
    ahead = np.arange(-600, 601)
    encoder: Any = MPNetEncoder
    expected = encoder.relative_position_bucket(torch.from_numpy(ahead)).numpy()
    np.testing.assert_array_equal(mpnet.buckets(ahead), expected)
    assert len(set(expected)) == mpnet.BUCKETS - 1  # no token is 0 ahead to the right


def test_a_pad_written_in_a_text_moves_no_position(model: Any, checkpoint: Checkpoint) -> None:
    (row,) = rows_for(checkpoint, 12)
    row.ids[4] = mpnet.PAD
    assert distance(by_mlx(checkpoint, (row,)), by_transformers(model, checkpoint, (row,))) < SAME


# what would be wrong

BUCKETS = mpnet.buckets
MISTAKES: dict[str, tuple[str, Any]] = {
    "no offset": ("places", lambda ids: mx.arange(ids.shape[1])),
    "another offset": ("PAD", 0),
    "no bias by distance": ("buckets", np.zeros_like),
    "left is right": ("buckets", lambda ahead: BUCKETS(-ahead)),
    "distances beyond 16 are one": ("buckets", lambda ahead: BUCKETS(np.clip(ahead, -16, 16))),
    "pads are keys": ("MASKED", 0.0),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_shows(model: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = rows_for(checkpoint, *SOME)
    expected = by_transformers(model, checkpoint, rows)
    where, wrong = MISTAKES[name]
    monkeypatch.setattr(mpnet, where, wrong)
    assert distance(by_mlx(checkpoint, rows), expected) > OTHER


# files


def test_other_spellings_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batch = rows_for(checkpoint, *SOME)

    def masked_lm(held: dict[str, torch.Tensor]) -> None:
        renamed(lambda name: f"mpnet.{name}")(held)
        held.update({"lm_head.bias": torch.zeros(2), "mpnet.embeddings.position_ids": torch.arange(LENGTH + 2)[None]})
        for name in ("mpnet.pooler.dense.weight", "mpnet.pooler.dense.bias"):
            held.pop(name)

    other = copied(checkpoint, tmp_path, masked_lm)
    np.testing.assert_array_equal(by_mlx(other, batch), by_mlx(checkpoint, batch))


def test_shards_are_one_model(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sharded = save(model, tmp_path, max_shard_size="20KB")
    assert len(sharded.weights) > 2
    batch = rows_for(checkpoint, *SOME)
    np.testing.assert_array_equal(by_mlx(sharded, batch), by_mlx(checkpoint, batch))


DEEP = "encoder.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(DEEP), f"model.safetensors lacks the mpnet tensor '{DEEP}'"),
        (lambda held: held.update({"embeddings.token_type_embeddings.weight": torch.ones(2, 32)}), "holds the tensor 'embeddings.token_type_embeddings.weight'"),
        (lambda held: held.update({DEEP: torch.zeros(32, 3)}), rf"'{DEEP}' has the shape \(32, 3\), not \(32, 4\)"),
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
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_attention_heads": 5}, "its hidden width 32 is no multiple of 5 attention heads"),
        ({"hidden_act": "mish"}, "asks for the activation 'mish'"),
        ({"max_position_embeddings": 65}, "has positions for 63 tokens; the limit of 64 is over"),
        ({"relative_attention_num_buckets": 16}, "has 16 for 'relative_attention_num_buckets'; MPNet uses 32"),
    ],
)
def test_a_config_it_cant_follow_is_one_sentence(checkpoint: Checkpoint, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(replace(checkpoint, config={**checkpoint.config, **config}), device="cpu")
    assert str(checkpoint.folder / "config.json") in str(raised.value)
