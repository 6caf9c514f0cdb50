"""ModernBERT on MLX against transformers: windows, both rotary bases, gates, biases, the head."""

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
from vecgate.backends.mlx import modernbert
from vecgate.backends.mlx.backend import load
from vecgate.backends.mlx.layers import Rows, rotary
from vecgate.core import Batch, Checkpoint
from vecgate.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "local_attention": 16,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "attn_implementation": "eager",
}
BIASES = dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)


def embedder(**config: Any) -> Any:
    return vary(transformers.ModernBertModel(transformers.ModernBertConfig(**SIZES | config)))


def reranker(**config: Any) -> Any:
    settings = transformers.ModernBertConfig(**SIZES | config | {"num_labels": 1})
    return vary(transformers.ModernBertForSequenceClassification(settings))


@pytest.fixture(scope="module")
def model() -> Any:
    return embedder()


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(model, tmp_path_factory.mktemp("modernbert"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)
    assert_alike(model, replace(checkpoint, pooling=("cls",)), *SOME)


@pytest.mark.parametrize(
    "config",
    [
        BIASES,
        {"hidden_activation": "gelu_pytorch_tanh", "norm_eps": 0.1},
        {"local_attention": 19},
        {"local_attention": 1},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
        {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50.0},
        {"rope_parameters": {"full_attention": {"rope_theta": 77.0, "rope_type": "default"}}},
    ],
    ids=["biases", "activation", "odd window", "no neighbours", "kinds", "every second", "bases"],
)
def test_the_config_decides(model: Any, checkpoint: Checkpoint, tmp_path: Path, config: dict[str, Any]) -> None:
    other = embedder(**config)
    rows = rows_for(checkpoint, 33)
    assert distance(by_transformers(other, checkpoint, rows), by_transformers(model, checkpoint, rows)) > OTHER
    assert_alike(other, save(other, tmp_path), *SOME)


def test_the_hubs_keys_mean_the_same(tmp_path: Path) -> None:
    old: dict[str, Any] = {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50.0}
    other = embedder(**old)
    assert_alike(other, copied(save(other, tmp_path), tmp_path, layer_types=None, rope_parameters=None, **old), *SOME)


def test_a_sliding_window_in_the_file_is_half_of_the_window(checkpoint: Checkpoint, tmp_path: Path) -> None:
    narrow = copied(checkpoint, tmp_path, sliding_window=3)
    model = transformers.ModernBertModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config.local_attention == 6
    assert_alike(model, narrow, *SOME)


@pytest.mark.parametrize(
    "config", [{"classifier_pooling": "cls"}, {"classifier_pooling": "mean", **BIASES, "classifier_activation": "tanh"}]
)
def test_logits_equal_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    model = reranker(**config)
    assert_alike(model, save(model, tmp_path))


def test_a_bfloat16_logit_keeps_its_low_bits(tmp_path: Path) -> None:
    checkpoint = save(reranker(classifier_pooling="mean"), tmp_path)
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows_for(checkpoint, 9, 21, 40)))
    assert (got.view(np.uint32) & 0xFFFF).any()


def test_bfloat16_is_near(checkpoint: Checkpoint) -> None:
    rows = rows_for(checkpoint, *SOME)
    half = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows))
    # 8 bits of mantissa through 4 layers
    assert distance(half, by_mlx(checkpoint, rows)) < 0.03


# what would be wrong


MISTAKES: dict[str, tuple[str, Any]] = {
    "no window": ("window", lambda rows, reach: rows.mask),
    "a window of half the reach": ("_reach", lambda checkpoint: 4),
    "a window wider by one": ("_reach", lambda checkpoint: 9),
    "one rotary base": ("rotary", lambda base, width: rotary(160_000.0, width)),
    "no positions": ("rotary", lambda base, width: lambda x: x),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_shows(model: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = rows_for(checkpoint, 33, 64)
    expected = by_transformers(model, checkpoint, rows)
    where, wrong = MISTAKES[name]
    monkeypatch.setattr(modernbert, where, wrong)
    assert distance(by_mlx(checkpoint, rows), expected) > OTHER


def swap(held: dict[str, torch.Tensor]) -> None:
    for name in held:
        if name.endswith("mlp.Wi.weight"):
            held[name] = torch.cat(held[name].chunk(2)[::-1])


def test_the_halves_of_the_gate_differ(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = rows_for(checkpoint, 9, 33)
    got = by_mlx(copied(checkpoint, tmp_path, swap), rows)
    assert distance(got, by_transformers(model, checkpoint, rows)) > OTHER


def test_a_window_leaves_every_row_a_key() -> None:
    lengths = mx.array([[3], [64]])
    real = (mx.arange(64) < lengths)[:, None, None, :]
    rows = Rows(mx.zeros((2, 64), mx.int32), mx.zeros((2, 64), mx.int32), lengths, mx.zeros((2, 1), mx.int32), real)
    mask = modernbert.window(rows, 8)
    assert mask is not None
    assert mask.dtype == mx.bool_
    assert np.array(mask).any(-1).all()
    assert modernbert.window(rows, 63) is real


# files


def test_other_spellings_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    batch = rows_for(checkpoint, 9, 33)

    def masked_lm(held: dict[str, torch.Tensor]) -> None:
        renamed(lambda name: f"model.{name}")(held)
        held.update({"head.dense.weight": torch.zeros(2), "decoder.bias": torch.zeros(2)})

    other = copied(checkpoint, tmp_path, masked_lm)
    np.testing.assert_array_equal(by_mlx(other, batch), by_mlx(checkpoint, batch))


def test_shards_are_one_model(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sharded = save(model, tmp_path, max_shard_size="20KB")
    assert len(sharded.weights) > 2
    batch = rows_for(checkpoint, 9, 33)
    np.testing.assert_array_equal(by_mlx(sharded, batch), by_mlx(checkpoint, batch))


def test_quantised_weights_give_the_rows_of_what_they_unpack_to(tmp_path: Path) -> None:
    """As mlx-community has them: 4 bits, tables too, names with `model.`; the sums are in float32 on a CPU."""
    checkpoint = save(embedder(hidden_size=64, intermediate_size=64), tmp_path)
    packing: dict[str, Any] = {"group_size": 32, "bits": 4}
    packed: dict[str, mx.array] = {}
    plain: dict[str, mx.array] = {}
    found = mx.load(str(checkpoint.weights[0]))
    assert isinstance(found, dict)
    for name, tensor in found.items():
        assert isinstance(tensor, mx.array)
        if tensor.ndim == 1:
            packed[f"model.{name}"] = plain[name] = tensor
            continue
        parts = mx.quantize(tensor, **packing)
        plain[name] = mx.dequantize(*parts, **packing)
        packed.update(zip((f"model.{name[:-6]}{part}" for part in ("weight", "scales", "biases")), parts, strict=True))
    files = (tmp_path / "packed.safetensors", tmp_path / "plain.safetensors")
    mx.save_safetensors(str(files[0]), packed)
    mx.save_safetensors(str(files[1]), plain)
    rows = rows_for(checkpoint, *SOME)
    got = by_mlx(replace(checkpoint, weights=files[:1], quantization=packing), rows)
    assert distance(got, by_mlx(replace(checkpoint, weights=files[1:]), rows)) < SAME


DEEP = "layers.2.mlp.Wo.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(DEEP), f"model.safetensors lacks the modernbert tensor '{DEEP}'"),
        (lambda held: held.update({"layers.0.attn_norm.weight": torch.ones(32)}), "holds the tensor 'layers.0.attn_norm.weight'"),
        (lambda held: held.update({"final_norm.bias": torch.ones(32)}), "holds the tensor 'final_norm.bias'"),
        (lambda held: held.update({DEEP: torch.zeros(32, 47)}), rf"'{DEEP}' has the shape \(32, 47\), not \(32, 48\)"),
    ],
    ids=["missing", "first norm", "bias", "shape"],
)  # fmt: skip
def test_a_wrong_tensor_is_named_with_its_file(
    checkpoint: Checkpoint, tmp_path: Path, change: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(copied(checkpoint, tmp_path, change), device="cpu")
    assert str(tmp_path) in str(raised.value)


def test_a_reranker_without_its_head_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors lacks the modernbert tensor 'head\.dense\.weight'"):
        load(replace(checkpoint, task="rerank"), device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"num_attention_heads": 5}, "its hidden width 32 is no multiple of 5 attention heads"),
        ({"head_dim": 16}, "has '16' for 'head_dim'; on MLX a modernbert model can have 8 there"),
        ({"hidden_activation": "mish"}, "asks for the activation 'mish'"),
        ({"classifier_activation": "mish"}, "asks for the activation 'mish'"),
        ({"classifier_pooling": "max"}, "has 'max' for 'classifier_pooling'; on MLX .* 'cls' or 'mean' there"),
        ({"norm_bias": "yes"}, "has 'yes' for 'norm_bias'; it is a bool"),
        ({"local_attention": -1}, "has -1 for 'local_attention'"),
        ({"layer_types": ["full_attention"]}, r"has \['full_attention'\] for 'layer_types'; .* each of 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, "for 'layer_types'"),
        ({"rope_scaling": {"type": "linear"}}, "has .*linear.* for 'rope_scaling'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "has .* for 'rope_parameters'; it has full_attention and"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn.* for 'rope_parameters.full_attention'; .* no scaling"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": "x"}}}, "has 'x' for 'rope_parameters.sliding_attention.rope_theta'"),
        ({"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}}, "for 'rope_parameters.sliding_attention'"),
        ({"layer_types": None, "global_attn_every_n_layers": 0}, "has 0 for 'global_attn_every_n_layers'"),
        ({"rope_parameters": None, "global_rope_theta": 0.0}, "has '0.0' for 'global_rope_theta'"),
    ],
)  # fmt: skip
def test_a_config_it_cant_follow_is_one_sentence(checkpoint: Checkpoint, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(replace(checkpoint, config={**checkpoint.config, **config}), device="cpu")
    assert str(raised.value).startswith(str(checkpoint.folder / "config.json"))
    assert "\n" not in str(raised.value)
