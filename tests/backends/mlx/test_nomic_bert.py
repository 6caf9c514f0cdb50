"""NomicBERT on MLX against transformers: both layouts of its files and of its config, biases, partial rotation, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)

import torch
import transformers
from transformers.models.nomic_bert import modeling_nomic_bert

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
from vecgate.backends.mlx import nomic_bert
from vecgate.backends.mlx.backend import load
from vecgate.backends.mlx.layers import rotary
from vecgate.core import Batch, Checkpoint
from vecgate.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "attn_implementation": "eager",
}
HUBS: dict[str, Any] = {
    "model_type": "nomic_bert",
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 8192,
    "layer_norm_epsilon": 1e-12,
    "type_vocab_size": 2,
    "activation_function": "swiglu",
    "max_trained_positions": 2048,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    **dict.fromkeys(("mlp_fc1_bias", "mlp_fc2_bias", "qkv_proj_bias", "prenorm", "causal", "use_rms_norm"), False),
    **dict.fromkeys(("parallel_block", "parallel_block_tied_norm", "rotary_emb_interleaved"), False),
    **dict.fromkeys(("rotary_emb_scale_base", "rotary_scaling_factor"), None),
}
"""nomic-embed-text's keys."""
PARTS = {
    "embeddings.LayerNorm": "emb_ln",
    "self_attn.o_proj": "attn.out_proj",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
    "up_proj": "fc11",
    "gate_proj": "fc12",
    "down_proj": "fc2",
}


def embedder(**config: Any) -> Any:
    return vary(transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES | config)))


def in_hubs_layout(model: Any, folder: Path, **config: Any) -> Checkpoint:
    """Named and fused here, not by transformers; only the hub's keys in config.json."""
    held: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for mine, hubs in PARTS.items():
            name = name.replace(mine, hubs)
        held[name.replace("layers.", "encoder.layers.", 1)] = tensor
    for at in range(2):
        for kind in ("weight", "bias"):
            names = [f"encoder.layers.{at}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            if names[0] in held:
                held[f"encoder.layers.{at}.attn.Wqkv.{kind}"] = torch.cat([held.pop(name) for name in names])
    checkpoint = save(model, folder)

    def change(saved: dict[str, torch.Tensor]) -> None:
        saved.clear()
        saved.update(held)

    checkpoint = copied(checkpoint, folder, change)
    given = {key: value for key, value in {**HUBS, **config}.items() if value is not None}
    return replace(copied(checkpoint, folder), config=given)


@pytest.fixture(scope="module")
def model() -> Any:
    return embedder()


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save(model, tmp_path_factory.mktemp("nomic"))


@pytest.fixture(scope="module")
def hubs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return in_hubs_layout(model, tmp_path_factory.mktemp("hubs"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)
    assert_alike(model, replace(checkpoint, pooling=("cls",)), *SOME)


def test_the_hubs_layout_is_the_same_model(model: Any, hubs: Checkpoint) -> None:
    assert "n_embd" in hubs.config
    assert "hidden_size" not in hubs.config
    assert_alike(model, hubs, *SOME)


def test_transformers_own_layout_is_the_same_model(model: Any, tmp_path: Path) -> None:
    checkpoint = save(model, tmp_path, save_original_format=False)
    assert_alike(model, checkpoint, *SOME)
    with pytest.raises(CheckpointError, match=r"lacks the nomic_bert tensor 'layers\.1\.self_attn\.k_proj\.weight'"):
        load(copied(checkpoint, tmp_path, lambda held: held.pop("layers.1.self_attn.k_proj.weight")), device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_act": "gelu", "layer_norm_eps": 0.1},
        {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}},
        {"head_dim": 16},
        {"type_vocab_size": 1},
    ],
    ids=["activation", "base", "wide heads", "one token type"],
)
def test_the_config_decides(tmp_path: Path, config: dict[str, Any]) -> None:
    other = embedder(**config)
    assert_alike(other, save(other, tmp_path), *SOME)


def test_the_hubs_config_decides(tmp_path: Path) -> None:
    other = embedder(rope_parameters={"rope_theta": 50.0, "rope_type": "default"}, layer_norm_eps=0.1)
    assert_alike(other, in_hubs_layout(other, tmp_path, rotary_emb_base=50, layer_norm_epsilon=0.1), *SOME)


def test_biases_are_added(tmp_path: Path) -> None:
    other = embedder()
    linear = [part for layer in other.layers for part in layer.modules() if isinstance(part, torch.nn.Linear)]
    for part in linear:
        part.bias = torch.nn.Parameter(torch.randn(part.out_features))
    assert_alike(
        other, in_hubs_layout(other, tmp_path, qkv_proj_bias=True, mlp_fc1_bias=True, mlp_fc2_bias=True), *SOME
    )


def test_a_fraction_of_each_head_is_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against transformers with its rotation kept to the first half of a head, with that half's frequencies."""
    turn = modeling_nomic_bert.apply_rotary_pos_emb

    def half(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        turned = turn(q[..., :4], k[..., :4], cos[..., :4], sin[..., :4])
        return tuple(torch.cat([new, old[..., 4:]], -1) for new, old in zip(turned, (q, k)))

    other = embedder()
    freqs = 1000.0 ** -(torch.arange(0, 4, 2) / 4)
    other.rotary_emb.inv_freq = torch.cat([freqs, freqs])
    checkpoint = in_hubs_layout(other, tmp_path, rotary_emb_fraction=0.5)
    monkeypatch.setattr(modeling_nomic_bert, "apply_rotary_pos_emb", half)
    assert_alike(other, checkpoint, *SOME)


def test_logits_equal_transformers(tmp_path: Path) -> None:
    config = transformers.NomicBertConfig(**SIZES | {"num_labels": 1})
    model = vary(transformers.NomicBertForSequenceClassification(config))
    checkpoint = save(model, tmp_path)
    assert_alike(model, checkpoint)
    half = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows_for(checkpoint, 9, 21, 40)))
    assert (half.view(np.uint32) & 0xFFFF).any()  # a logit in bfloat16 would have no low bits


# what would be wrong


def swap(held: dict[str, torch.Tensor]) -> None:
    for name in [name for name in held if "fc11" in name]:
        other = name.replace("fc11", "fc12")
        held[name], held[other] = held[other], held[name]


def test_the_gate_and_the_value_differ(model: Any, hubs: Checkpoint, tmp_path: Path) -> None:
    rows = rows_for(hubs, *SOME)
    assert distance(by_mlx(copied(hubs, tmp_path, swap), rows), by_transformers(model, hubs, rows)) > OTHER


MISTAKES: dict[str, tuple[str, Any]] = {
    "no positions": ("rotary", lambda base, width: lambda x: x),
    "BERT's base": ("rotary", lambda base, width: rotary(10_000.0, width)),
    "half of a head": ("rotary", lambda base, width: rotary(base, width // 2)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_shows(model: Any, hubs: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = rows_for(hubs, *SOME)
    where, wrong = MISTAKES[name]
    monkeypatch.setattr(nomic_bert, where, wrong)
    assert distance(by_mlx(hubs, rows), by_transformers(model, hubs, rows)) > OTHER


def test_token_types_count(model: Any, hubs: Checkpoint) -> None:
    rows = rows_for(hubs, *SOME)
    untyped = by_mlx(replace(hubs, token_types=False), rows)
    assert distance(untyped, by_transformers(model, hubs, rows)) > OTHER
    plain = [replace(row, second=None) for row in rows]
    np.testing.assert_array_equal(untyped, by_mlx(hubs, plain))


# files


def test_other_spellings_give_the_same_rows(hubs: Checkpoint, tmp_path: Path) -> None:
    batch = rows_for(hubs, *SOME)

    def pretraining(held: dict[str, torch.Tensor]) -> None:
        renamed(lambda name: f"bert.{name}")(held)
        held.update({"cls.predictions.decoder.weight": torch.zeros(2), "bert.pooler.dense.bias": torch.zeros(2)})

    np.testing.assert_array_equal(by_mlx(copied(hubs, tmp_path, pretraining), batch), by_mlx(hubs, batch))


def test_shards_are_one_model(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sharded = save(model, tmp_path, max_shard_size="20KB")
    assert len(sharded.weights) > 2
    batch = rows_for(checkpoint, *SOME)
    np.testing.assert_array_equal(by_mlx(sharded, batch), by_mlx(checkpoint, batch))


DEEP = "encoder.layers.1.attn.Wqkv.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("encoder.layers.1.mlp.fc12.weight"), r"model.safetensors lacks the nomic_bert tensor 'encoder\.layers\.1\.mlp\.fc12\.weight'"),
        (lambda held: held.update({"embeddings.position_embeddings.weight": torch.ones(2, 32)}), "holds the tensor 'embeddings.position_embeddings.weight'"),
        (lambda held: held.update({"encoder.layers.1.attn.Wqkv.bias": torch.ones(96)}), "holds the tensor 'encoder.layers.1.attn.Wqkv.bias'"),
        (lambda held: held.update({DEEP: torch.zeros(95, 32)}), rf"'{DEEP}' has the shape \(95, 32\), not \(96, 32\)"),
    ],
    ids=["missing", "positions", "bias", "shape"],
)  # fmt: skip
def test_a_wrong_tensor_is_named_with_its_file(hubs: Checkpoint, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(copied(hubs, tmp_path, change), device="cpu")
    assert str(tmp_path) in str(raised.value)


def test_a_file_that_cant_be_read_is_named(hubs: Checkpoint, tmp_path: Path) -> None:
    other = copied(hubs, tmp_path)
    other.weights[0].write_bytes(b"junk" * 9)
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read as safetensors"):
        load(other, device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_embd": None}, "lacks 'hidden_size'"),
        ({"hidden_size": 64}, "has 64 for 'hidden_size' but 32 for 'n_embd'"),
        ({"n_head": 5}, "its hidden width 32 is no multiple of 5 attention heads"),
        ({"prenorm": True}, "has 'True' for 'prenorm'; on MLX a nomic_bert model can have False there"),
        ({"causal": True}, "has 'True' for 'causal'"),
        ({"use_rms_norm": True}, "has 'True' for 'use_rms_norm'"),
        ({"parallel_block": True}, "has 'True' for 'parallel_block'"),
        ({"rotary_emb_interleaved": True}, "has 'True' for 'rotary_emb_interleaved'"),
        ({"rotary_emb_scale_base": 512}, "has '512' for 'rotary_emb_scale_base'; .* can have nothing there"),
        ({"rotary_emb_fraction": 0.0}, "has 0.0 for 'rotary_emb_fraction'"),
        ({"rotary_emb_fraction": 0.4}, "has 0.4 for 'rotary_emb_fraction'; .* even part of a head's 8"),
        ({"rotary_emb_base": -1}, "has '-1' for 'rotary_emb_base'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "has 5.0 for 'rope_theta' but 1000 for 'rotary_emb_base'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic.* for 'rope_parameters'"),
        ({"moe_every_n_layers": 2}, "has '2' for 'moe_every_n_layers'"),
        ({"num_heads_kv": 2}, "has '2' for 'num_heads_kv'"),
        ({"activation_function": "geglu"}, "has 'geglu' for 'activation_function'; .* can have 'swiglu' there"),
        ({"hidden_act": "gelu"}, "has 'gelu' for 'hidden_act'"),
        ({"rotary_scaling_factor": 2, "max_trained_positions": LENGTH - 1}, "has 2 for 'rotary_scaling_factor', .* set max_seq_length to 63"),
    ],
)  # fmt: skip
def test_a_config_it_cant_follow_is_one_sentence(hubs: Checkpoint, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(replace(hubs, config={**hubs.config, **config}), device="cpu")
    assert str(raised.value).startswith(str(hubs.folder / "config.json"))
    assert "\n" not in str(raised.value)


def test_scaling_that_no_row_reaches_is_served(hubs: Checkpoint) -> None:
    scaled = replace(hubs, config={**hubs.config, "rotary_scaling_factor": 2, "max_trained_positions": LENGTH})
    batch = rows_for(hubs, *SOME)
    np.testing.assert_array_equal(by_mlx(scaled, batch), by_mlx(hubs, batch))
