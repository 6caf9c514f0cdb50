"""Weights on MLX that no family may take: NaN, infinity, and what a narrower type makes of large numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)

import mlx.core as mx
import torch
import transformers
from safetensors.torch import save_file

from tests.backends.mlx.alike import copied, renamed, save, vary
from tests.backends.mlx.decoders import SIZES, rows_of
from vecgate.backends.mlx import weights
from vecgate.backends.mlx.backend import load
from vecgate.backends.mlx.weights import Names, Pick
from vecgate.core import Checkpoint, Dense
from vecgate.errors import CheckpointError

DEEP = "encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    sizes = {
        key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "bos_token_id", "eos_token_id")
    }
    return save(vary(transformers.BertModel(transformers.BertConfig(**sizes))), tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_that_is_none_is_named(bert: Checkpoint, tmp_path: Path, value: float, dtype: str) -> None:
    other = copied(bert, tmp_path, lambda held: held[DEEP].view(-1).__setitem__(77, value))
    with pytest.raises(
        CheckpointError, match=rf"model.safetensors: '{DEEP}' holds NaN or infinity; fetch it again"
    ) as raised:
        rows_of(other, dtype)
    assert str(tmp_path) in str(raised.value)


def test_a_number_over_float16_is_named_only_there(bert: Checkpoint, tmp_path: Path) -> None:
    other = copied(bert, tmp_path, lambda held: held[DEEP].view(-1).__setitem__(77, 70_000.0))
    with pytest.raises(CheckpointError, match=rf"'{DEEP}' holds NaN or infinity once it is float16"):
        rows_of(other, "float16")
    rows_of(other, "bfloat16")


def test_a_dense_layer_with_nan_is_named(bert: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "dense.safetensors"
    save_file({"linear.weight": torch.full((4, 64), float("nan"))}, file)
    with pytest.raises(CheckpointError, match=r"dense\.safetensors: 'linear\.weight' holds NaN or infinity"):
        rows_of(replace(bert, dense=(Dense(file, "Identity", False),)))


def test_what_is_needed_counts_what_is_kept(bert: Checkpoint, tmp_path: Path) -> None:
    """The pooler, which an embedder has no use for, is neither read nor counted."""
    names = Names(spare=("pooler.",))
    for dtype in (mx.float32, mx.bfloat16):
        needed = weights.needed_bytes(weights.read(bert, names), names, dtype)
        assert needed == load(bert, device="cpu", dtype=str(dtype).removeprefix("mlx.core.")).card.weight_bytes
    assert needed < bert.weight_bytes / 2


def test_a_spare_tensor_is_never_read(bert: Checkpoint, tmp_path: Path) -> None:
    other = copied(bert, tmp_path, lambda held: held["pooler.dense.weight"].fill_(float("nan")))
    rows_of(other)


def test_a_head_stays_in_float32(tmp_path: Path) -> None:
    sizes = {
        key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "bos_token_id", "eos_token_id")
    }
    config = transformers.BertConfig(**sizes)
    config.num_labels = 1
    reranker = save(vary(transformers.BertForSequenceClassification(config)), tmp_path)
    model = load(reranker, device="cpu", dtype="bfloat16")._model
    assert model is not None
    assert (model.head.outer.weight.dtype, model.words.weight.dtype) == (mx.float32, mx.bfloat16)  # type: ignore[attr-defined]


@pytest.mark.parametrize("there", ["lm_head", "embed_tokens"])
def test_a_pick_takes_the_first_source_that_is_there(bert: Checkpoint, tmp_path: Path, there: str) -> None:
    names = Names(picks=(Pick("head.rows", ("lm_head", "embed_tokens"), (3, 5)),))
    renaming = renamed(lambda name: name.replace("embeddings.word_embeddings", there))
    stored = weights.read(copied(bert, tmp_path, renaming), names)
    assert weights._source("head.rows.weight", names, stored) == (f"{there}.weight", (3, 5))
    assert weights._source("head.other.weight", names, stored) == ("head.other.weight", None)
