"""Decoders through mlx-lm's classes: each family of KINDS against transformers, and what mlx-lm would get wrong refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install mlx-lm", exc_type=ImportError)

import mlx.nn as nn
import torch
import transformers

from tests.backends.mlx.alike import LENGTH, copied, renamed
from tests.backends.mlx.decoders import SIZES, assert_alike, embedder, reranker, rows_of, vary
from tests.backends.mlx.quantised import by_mlx_lm, meant
from vecgate.backends.mlx import FAMILIES, decoder
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError, ConfigError

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 500000.0,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "mistral": ("Mistral", {"sliding_window": LENGTH, "head_dim": 32}),
    "mistral with a short window": ("Mistral", {"sliding_window": 16}),
    "mistral without a window": ("Mistral", {"sliding_window": None, "rope_theta": 1e6}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 3.0}),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 4.0},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
}
LLAMA: dict[str, Any] = {"rope_theta": 5e5}


def made(name: str, kind: str, **more: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**(SIZES | {"attn_implementation": "eager"} | more))
    return vary(getattr(transformers, name + kind)(config))


@pytest.fixture(scope="module")
def llama() -> Any:
    return made("Llama", "Model", **LLAMA)


@pytest.fixture(scope="module")
def checkpoint(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return embedder(llama, tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_family_equals_transformers(tmp_path: Path, case: tuple[str, dict[str, Any]]) -> None:
    model = made(case[0], "Model", **case[1])
    assert_alike(model, embedder(model, tmp_path))


def test_every_family_has_a_case_and_a_row() -> None:
    rows = {family for family, module in FAMILIES.items() if module == decoder.__name__}
    assert rows == decoder.KINDS.keys() == {name.partition(" ")[0] for name in CASES}


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (renamed(lambda name: f"model.{name}"), {}),
        (lambda held: held.update({"lm_head.weight": torch.zeros(120, 64)}), {}),
        (lambda held: held.update({"layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}), {}),
        (None, {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": None}),
    ],
    ids=["prefix", "head", "buffer", "old rope"],
)
def test_other_layouts_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path, change: Any, keys: Any) -> None:
    np.testing.assert_array_equal(rows_of(copied(checkpoint, tmp_path, change, **keys)), rows_of(checkpoint))


@pytest.mark.parametrize(("name", "kind"), [("Llama", "ForCausalLM"), ("Mistral", "ForSequenceClassification")])
def test_logits_equal_transformers(tmp_path: Path, name: str, kind: str) -> None:
    model = made(name, kind, num_labels=1, sliding_window=None)
    assert_alike(model, reranker(model, tmp_path))


@pytest.mark.parametrize("name", ["Mistral", "Phi3"])
def test_quantised_weights_equal_what_they_mean(tmp_path: Path, name: str) -> None:
    model = made(name, "ForCausalLM", sliding_window=None, tie_word_embeddings=False)
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    quantised = by_mlx_lm(embedder(model, tmp_path / "before"), tmp_path / "after", bits=4)
    assert_alike(meant(model, quantised).model, quantised)


def test_positions_are_turned_by_torchs_frequencies(llama: Any, checkpoint: Checkpoint) -> None:
    model = decoder.Model(decoder.Config.read(checkpoint))
    assert {type(layer.self_attn.rope) for layer in model.backbone.layers} == {decoder.Turn}


def test_a_mistake_shows(llama: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder.Turn, "__call__", lambda self, x: x)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(llama, checkpoint)
    monkeypatch.undo()
    monkeypatch.setattr("mlx_lm.models.llama.create_attention_mask", lambda *given, **more: None)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(llama, checkpoint)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "has 'gelu' for 'hidden_act'; on MLX a llama .* 'silu'"),
        ("llama", {"is_causal": False}, "has 'False' for 'is_causal'"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "of the type 'yarn'; on MLX a llama has default, linear"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rotary positions that the family 'llama' does not have"),
        ("llama", {"partial_rotary_factor": 0.5}, "for 'partial_rotary_factor'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "has a partial_rotary_factor"),
        ("phi3", {"sliding_window": 63}, "has a window of 63 tokens, .* 'phi3'; the limit of 64 is over. Use BACKEND=torch"),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, "of the type 'longrope'; on MLX a phi3 has default"),
        ("gemma2", {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None}, "has no attn_logit_softcapping"),
        ("granite", {}, "is not what mlx-lm needs .*logits_scaling"),
        ("smollm3", {"use_sliding_window": True}, "has 'True' for 'use_sliding_window'"),
        ("llama", {"num_hidden_layers": 4}, r"lacks the llama tensor 'layers\.3"),
    ],
)  # fmt: skip
def test_what_mlx_lm_would_get_wrong_is_refused(
    checkpoint: Checkpoint, family: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        rows_of(replace(checkpoint, family=family, config={**checkpoint.config, **keys}))
    assert str(checkpoint.folder) in str(raised.value)


def test_a_window_that_config_json_does_not_name_counts(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="has a window of 4096 tokens"):
        rows_of(replace(checkpoint, family="phi3", max_tokens=4097))
    found = [decoder.Config.read(replace(checkpoint, family="mistral", max_tokens=most)) for most in (4096, 4097)]
    assert [one.window for one in found] == [None, 4096]
    assert found[0].token_bytes(4097, 4) < found[1].token_bytes(4097, 4)


def test_a_capped_or_scaled_head_does_not_score(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="a reranker by yes and no can't be a granite on MLX"):
        rows_of(replace(checkpoint, family="granite", task="rerank", yes_id=3))


def test_without_mlx_lm_it_is_one_sentence(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'llama' needs the package 'mlx-lm' on MLX, .*pip install mlx-lm"):
        rows_of(checkpoint)
    monkeypatch.undo()
    monkeypatch.setattr(decoder, "KINDS", {"llama": replace(decoder.KINDS["llama"], module="absent")})
    with pytest.raises(ConfigError, match=r"mlx-lm does not load for 'llama' .*pip install -U mlx-lm"):
        rows_of(checkpoint)


def test_ropes_of_mlx_lm_that_stay_are_not_nn_rope(tmp_path: Path) -> None:
    model = made("Llama", "Model", **CASES["llama 3"][1])
    built = decoder.Model(decoder.Config.read(embedder(model, tmp_path)))
    assert not any(isinstance(layer.self_attn.rope, nn.RoPE) for layer in built.backbone.layers)
