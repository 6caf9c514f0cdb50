"""Gemma 3's text model on MLX: EmbeddingGemma and its causal kin against transformers; each ingredient left out must show."""

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
from safetensors.torch import load_file

from tests.backends.contract import made_rows
from tests.backends.mlx.alike import OTHER, copied, distance, renamed
from tests.backends.mlx.decoders import (
    LENGTHS,
    SIZES,
    VOCABULARY,
    assert_alike,
    by_transformers,
    embedder,
    reranker,
    rows_of,
    vary,
)
from vecgate.backends.mlx import causal, devices, gemma3
from vecgate.backends.mlx.backend import load
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError, ConfigError

TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
OLD: dict[str, Any] = {
    "rope_parameters": None,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
}


def config(**more: Any) -> Any:
    given = {
        "num_key_value_heads": 1, "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 16, "layer_types": TYPES,
        "use_bidirectional_attention": True, "attn_implementation": "eager",
    }  # fmt: skip
    return transformers.Gemma3TextConfig(**(SIZES | given | more))


@pytest.fixture(scope="module")
def model() -> Any:
    return vary(transformers.Gemma3TextModel(config()))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return replace(embedder(model, tmp_path_factory.mktemp("gemma3")), pooling=("mean",))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert checkpoint.config["sliding_window"] == 16
    assert_alike(model, checkpoint)


@pytest.mark.parametrize(
    "more",
    [
        {"use_bidirectional_attention": False},
        {"sliding_window": 15},
        {"sliding_window": 1000},
        {"attention_bias": True, "head_dim": 32, "num_key_value_heads": 2},
        {"layer_types": None, "sliding_window_pattern": 2, "sliding_window": 8},
        {"layer_types": None, "sliding_window": 8},
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2000.0},
            }
        },
    ],
    ids=["causal", "odd window", "wide window", "bias", "pattern", "usual pattern", "rope"],
)
def test_what_the_config_asks_for_is_followed(tmp_path: Path, more: dict[str, Any]) -> None:
    model = vary(transformers.Gemma3TextModel(config(**more)))
    assert_alike(model, replace(embedder(model, tmp_path), pooling=("mean",)))


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (renamed(lambda name: f"model.{name}"), {}),
        (None, OLD),
        (None, {**OLD, "rope_theta": None, "rope_local_base_freq": None}),
        (None, {"_sliding_window_pattern": 6}),
    ],
    ids=["prefix", "old rope", "no rope", "pattern beside types"],
)
def test_other_layouts_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path, change: Any, keys: Any) -> None:
    np.testing.assert_array_equal(rows_of(copied(checkpoint, tmp_path, change, **keys)), rows_of(checkpoint))


@pytest.mark.parametrize(
    "keys", [{"layer_types": None, "sliding_window_pattern": 2}, {"layer_types": None, "_sliding_window_pattern": 2}]
)
def test_a_pattern_is_read_as_transformers_reads_it(
    checkpoint: Checkpoint, tmp_path: Path, keys: dict[str, Any]
) -> None:
    other = copied(checkpoint, tmp_path, **keys)
    model = transformers.Gemma3TextModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert_alike(model, other)


@pytest.mark.parametrize("kind", ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"])
def test_logits_equal_transformers(tmp_path: Path, kind: str) -> None:
    model = vary(getattr(transformers, kind)(config(num_labels=1, use_bidirectional_attention=False)))
    checkpoint = reranker(model, tmp_path)
    assert_alike(model, checkpoint)
    silent = {key: value for key, value in checkpoint.config.items() if key != "tie_word_embeddings"}
    np.testing.assert_array_equal(rows_of(replace(checkpoint, config=silent)), rows_of(checkpoint))


def test_dense_layers_among_the_weights_are_applied(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, second = torch.randn(96, 64) / 8, torch.randn(32, 96) / 8
    more = {"dense.0.weight": first, "dense.1.weight": second}
    inside = copied(checkpoint, tmp_path, lambda held: held.update(more))
    got = rows_of(inside)
    expected = by_transformers(model, checkpoint, made_rows(LENGTHS, VOCABULARY)) @ first.T.numpy() @ second.T.numpy()
    assert load(inside, device="cpu").card.dimensions == 32
    assert distance(got, expected) < 5e-6
    lone = copied(checkpoint, tmp_path, lambda held: held.update({"dense.1.weight": second}))
    with pytest.raises(CheckpointError, match=r"holds the tensor 'dense\.1\.weight', for which .* no place"):
        rows_of(lone)


# mistakes


@pytest.mark.parametrize("mistake", ["whole window", "no window", "causal", "pads seen", "scale", "norm", "one rope"])
def test_a_mistake_shows(model: Any, checkpoint: Checkpoint, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visible = causal.visible
    changed = {
        "whole window": lambda rows, *, causal, reach: visible(rows, causal=causal, reach=reach and 2 * reach),
        "no window": lambda rows, *, causal, reach: visible(rows, causal=causal, reach=None),
        "causal": lambda rows, *, causal, reach: visible(rows, causal=True, reach=reach),
        "pads seen": lambda rows, *, causal, reach: None,
    }
    if mistake in changed:
        monkeypatch.setattr(gemma3, "visible", changed[mistake])
    elif mistake == "scale":
        checkpoint = replace(checkpoint, config={**checkpoint.config, "query_pre_attn_scalar": 24})
    elif mistake == "norm":
        monkeypatch.setattr(gemma3.Norm, "__call__", lambda self, x: mx.fast.rms_norm(x, self.weight, self._eps))
    else:
        rotaries = gemma3.rotaries
        monkeypatch.setattr(gemma3, "rotaries", lambda *given: rotaries(*given)[:1] * 2)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(model, checkpoint)


def test_the_scale_of_the_embeddings_is_rounded_to_the_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = embedder(vary(transformers.Gemma3TextModel(config(hidden_size=96))), tmp_path)
    seen = []
    block = gemma3.Block.__call__

    def look(self: Any, x: mx.array, *given: Any) -> mx.array:
        seen.append(x)
        return block(self, x, *given)

    monkeypatch.setattr(gemma3.Block, "__call__", look)
    rows_of(checkpoint, "bfloat16")
    (row, *_) = made_rows(LENGTHS, VOCABULARY)
    table = load_file(checkpoint.weights[0])["embed_tokens.weight"][row.ids].numpy()
    scaled = mx.array(table).astype(mx.bfloat16) * mx.array(9.8125, mx.bfloat16)  # the root of 96 is 9.798
    assert mx.array_equal(seen[0][0, : len(row)], scaled)


def test_bfloat16_is_near(checkpoint: Checkpoint) -> None:
    assert OTHER < distance(rows_of(checkpoint, "bfloat16"), rows_of(checkpoint)) < 0.03


# what can't be had


def test_float16_is_refused_and_never_taken_by_itself(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"can't be computed in float16: .*65504; use DTYPE=float32, bfloat16"):
        load(checkpoint, device="cpu", dtype="float16")
    fast = replace(devices.cpu(0.8), half=True)
    monkeypatch.setattr(devices, "find", lambda *given: fast)
    assert load(replace(checkpoint, stored_dtype="float16")).card.dtype == "float32"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"is_causal": False}, "says is_causal false; Gemma 3 says it with use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "asks for attn_logit_softcapping"),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            "has no 'full_attention' or 'sliding_attention' in 'rope_parameters'",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "of the type 'yarn'"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 3 layers"),
        ({"final_logit_softcapping": 30.0}, "asks for final_logit_softcapping"),
        ({"sliding_window": None}, "lacks 'sliding_window'"),
        ({"hidden_activation": "swish2"}, "asks for the activation 'swish2'"),
    ],
)
def test_a_config_it_cant_follow_is_one_sentence(checkpoint: Checkpoint, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        rows_of(replace(checkpoint, task="rerank", yes_id=3, config={**checkpoint.config, **keys}))
    assert str(checkpoint.folder) in str(raised.value)
