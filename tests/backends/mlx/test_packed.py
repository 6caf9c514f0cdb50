"""Quantised weights on MLX: every format that mlx-lm writes, against the float32 forward of what the weights mean."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed: pip install mlx-lm", exc_type=ImportError)

import mlx.core as mx
import torch
import transformers
from mlx_lm.convert import mixed_quant_predicate_builder

from tests.backends.contract import made_rows
from tests.backends.mlx import alike
from tests.backends.mlx.alike import SAME, SOME, copied, distance, save
from tests.backends.mlx.decoders import (
    LENGTHS,
    SIZES,
    VOCABULARY,
    assert_alike,
    by_transformers,
    reranker,
    rows_of,
    vary,
)
from tests.backends.mlx.quantised import by_mlx_lm, change, meant, packed, tensors, unpacked
from vecgate.backends.mlx.backend import load
from vecgate.backends.mlx.packed import Linear, Packing, Table
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

FORMATS: dict[str, dict[str, Any]] = {
    "2 bits": {"bits": 2},
    "3 bits": {"bits": 3},
    "4 bits in 64s": {"bits": 4, "group_size": 64},
    "6 bits": {"bits": 6},
    "8 bits": {"bits": 8},
    "mxfp4": {"mode": "mxfp4"},
    "mxfp8": {"mode": "mxfp8"},
    "nvfp4": {"mode": "nvfp4", "group_size": 16},
}
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model() -> Any:
    given: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True, "attn_implementation": "eager"}
    return vary(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**(SIZES | given))))


@pytest.fixture(scope="module")
def judging(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return reranker(model, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def plain(judging: Checkpoint) -> Checkpoint:
    return replace(judging, task="embed", pooling=("last",), yes_id=None, no_id=None)


@pytest.fixture
def four_bits(plain: Checkpoint, tmp_path: Path) -> Checkpoint:
    return by_mlx_lm(plain, tmp_path, bits=4)


def embedding(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, task="embed", pooling=("last",), yes_id=None, no_id=None)


@pytest.mark.parametrize("how", FORMATS.values(), ids=FORMATS.keys())
def test_each_format_equals_what_it_means(model: Any, judging: Checkpoint, tmp_path: Path, how: dict[str, Any]) -> None:
    quantised = by_mlx_lm(judging, tmp_path, **how)
    exact = meant(copy.deepcopy(model), quantised)
    assert "model.embed_tokens.scales" in tensors(quantised)
    assert_alike(exact, quantised)
    vectors = by_transformers(exact.model, embedding(quantised), made_rows(LENGTHS, VOCABULARY))
    assert distance(rows_of(embedding(quantised)), vectors) < SAME


@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_4"])
def test_a_mixed_recipe_equals_what_it_means(model: Any, judging: Checkpoint, tmp_path: Path, recipe: str) -> None:
    quantised = by_mlx_lm(judging, tmp_path, lambda model: mixed_quant_predicate_builder(recipe, model, 32))
    said = quantised.config["quantization"]
    assert len({one["bits"] for one in said.values() if isinstance(one, dict)}) == 2
    assert_alike(meant(copy.deepcopy(model), quantised), quantised)


def test_paths_of_their_own_and_unpacked_ones_equal_what_they_mean(
    model: Any, judging: Checkpoint, tmp_path: Path
) -> None:
    own: dict[str, Any] = {
        DOWN: {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.0.self_attn.q_proj": {"group_size": 64, "bits": 2, "mode": "affine"},
        "model.layers.2.self_attn.o_proj": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    }
    quantised = packed(judging, tmp_path, lambda path: own.get(path, "v_proj" not in path and "embed" not in path))
    assert "model.embed_tokens.scales" not in tensors(quantised)
    assert_alike(meant(copy.deepcopy(model), quantised), quantised)


def test_an_untied_head_is_unpacked_by_rows(tmp_path: Path) -> None:
    given: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": False, "attn_implementation": "eager"}
    untied = vary(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**(SIZES | given))))
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    quantised = by_mlx_lm(reranker(untied, tmp_path / "before"), tmp_path / "after", bits=4)
    assert "lm_head.scales" in tensors(quantised)
    assert_alike(meant(untied, quantised), quantised)


def test_what_a_path_leaves_out_is_its_modes_default(judging: Checkpoint, tmp_path: Path) -> None:
    own = {"group_size": 64, "bits": 4, "mode": "affine"}
    quantised = packed(
        judging, tmp_path, lambda path: own if path == DOWN.replace("down", "up") else True, mode="mxfp4"
    )
    before = rows_of(quantised)
    said = {**quantised.config["quantization"], DOWN.replace("down", "up"): {"bits": 4}}
    np.testing.assert_array_equal(rows_of(change(quantised, lambda held: None, quantization=said)), before)


def test_flat_keys_are_found_under_the_names_that_config_json_has(plain: Checkpoint, four_bits: Checkpoint) -> None:
    before = rows_of(four_bits)

    def flatten(held: dict[str, mx.array]) -> None:
        for name in list(held):
            held[name.removeprefix("model.")] = held.pop(name)

    np.testing.assert_array_equal(rows_of(change(four_bits, flatten)), before)


@pytest.mark.parametrize("how", [FORMATS["4 bits in 64s"], FORMATS["mxfp4"]], ids=["affine", "mxfp4"])
def test_16_bits_are_near_what_is_meant(model: Any, plain: Checkpoint, tmp_path: Path, how: dict[str, Any]) -> None:
    quantised = by_mlx_lm(plain, tmp_path, **how)
    rows = made_rows(LENGTHS, VOCABULARY)
    exact = by_transformers(meant(copy.deepcopy(model), quantised).model, quantised, rows)
    opened = load(quantised, device="cpu", dtype="bfloat16")
    got = rows_of(quantised, "bfloat16")
    assert opened.card.dtype == "bfloat16"
    # 8 bits of mantissa through 3 layers: 1e-2 is what this model shows, in 4 bits as in none
    assert SAME < distance(got, exact) < 0.03


def test_the_type_is_that_of_the_scales_and_float32_on_a_cpu(four_bits: Checkpoint) -> None:
    full, half = (load(four_bits, device="cpu", dtype=dtype) for dtype in ("auto", "bfloat16"))
    assert (full.card.dtype, half.card.dtype) == ("float32", "bfloat16")
    held = tensors(four_bits)
    floats = sum(x.nbytes for x in held.values() if x.dtype != mx.uint32)
    assert half.card.weight_bytes == sum(x.nbytes for x in held.values())
    assert full.card.weight_bytes == half.card.weight_bytes + floats  # what is packed stays packed


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_table_gives_the_type_it_was_made_for(mode: str) -> None:
    packing = Packing.read({"mode": mode, "group_size": 32})
    weight, scales, *biases = mx.quantize(mx.random.normal((5, 64)), packing.group, packing.bits, mode)
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        table, linear = Table(packing, 5, 64, dtype), Linear(packing, 5, 64, bias=True)
        for layer in (table, linear):
            assert (layer.weight.shape, layer.scales.shape) == (weight.shape, scales.shape)
            layer.weight, layer.scales = weight, scales if scales.dtype == mx.uint8 else scales.astype(dtype)
            if biases:
                layer.biases = biases[0].astype(dtype)
        linear.bias = mx.zeros((5,), dtype)
        assert table(mx.array([[1, 2]])).dtype == dtype
        assert linear(mx.zeros((2, 64), dtype)).dtype == dtype


# any family


def families() -> dict[str, Any]:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "hidden_size": 64, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": 66}
    one: dict[str, Any] = {"num_labels": 1}
    gemma: dict[str, Any] = {
        "num_key_value_heads": 1,
        "head_dim": 32,
        "sliding_window": 16,
        "use_bidirectional_attention": True,
    }
    return {
        "bert": lambda: transformers.BertModel(transformers.BertConfig(**sizes)),
        "bert without kinds": lambda: transformers.BertModel(transformers.BertConfig(**sizes, type_vocab_size=1)),
        "bert reranker": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **one)),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=VOCABULARY, dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=66
            )
        ),
        "gemma3": lambda: transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**sizes, **gemma)),
        "modernbert": lambda: transformers.ModernBertModel(
            transformers.ModernBertConfig(**sizes, local_attention=8, cls_token_id=1, sep_token_id=1)
        ),
        "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**sizes)),
        "nomic_bert": lambda: transformers.NomicBertModel(transformers.NomicBertConfig(**sizes)),
    }


@pytest.mark.parametrize("kind", families().keys())
def test_a_family_with_packed_weights_equals_itself_unpacked(tmp_path: Path, kind: str) -> None:
    before, after, plain = (tmp_path / name for name in ("before", "after", "plain"))
    checkpoint = save(alike.vary(families()[kind]()), before)
    if kind == "gemma3":
        torch.manual_seed(1)
        dense = {"dense.0.weight": torch.randn(96, 64) / 8, "dense.1.weight": torch.randn(32, 96) / 8}
        checkpoint = copied(checkpoint, before, lambda held: held.update(dense))
    after.mkdir()
    plain.mkdir()
    quantised = packed(checkpoint, after, lambda path: "relative" not in path)
    floats = copied(checkpoint, plain, lambda held: held.update(unpacked(quantised)))
    rows = alike.rows_for(checkpoint, *SOME)
    got, meant = (alike.by_mlx(one, rows) for one in (quantised, floats))
    assert sum(name.endswith(".scales") for name in tensors(quantised)) >= 9
    assert distance(got, meant) < (alike.LOGIT if kind == "bert reranker" else SAME)
    assert distance(got, alike.by_mlx(checkpoint, rows)) > SAME


# what can't be followed


def rescaled(value: float) -> Any:
    def edit(held: dict[str, mx.array]) -> None:
        scales = held[f"{DOWN}.scales"]
        held[f"{DOWN}.scales"] = mx.where(mx.arange(scales.size).reshape(scales.shape) == 3, value, scales).astype(
            scales.dtype
        )

    return edit


def said(checkpoint: Checkpoint, **changes: Any) -> dict[str, Any]:
    return {"quantization": {**(checkpoint.quantization or {}), **changes}}


@pytest.mark.parametrize(
    ("edit", "changes", "message"),
    [
        (None, {"bits": 8}, r"'model.*weight' holds 4 bits a weight, .*config.json says 8"),
        (None, {"group_size": 64}, r"scales' has a scale for every 32 weights, .*config.json says 64"),
        (None, {DOWN: {"group_size": 32, "bits": 6}}, rf"'{DOWN}.weight' holds 4 bits a weight, .*config.json says 6"),
        (None, {DOWN: False}, rf"holds '{DOWN}.scales', but .*config.json does not say that it is quantised"),
        (None, {"bits": 7}, "asks for 7 bits in groups of 32 for affine; MLX has 1, 2, 3, 4, 5, 6, 8 bits in groups of"),
        (None, {"group_size": 16}, "asks for 4 bits in groups of 16 for affine"),
        (None, {"mode": "mxfp4", "group_size": 64}, "asks for 4 bits in groups of 64 for mxfp4; MLX has 4 bits in groups of 32"),
        (None, {"mode": "int4"}, "asks for the quantisation mode 'int4'; MLX has affine, mxfp4, nvfp4, mxfp8"),
        (None, {"mode": "mxfp4"}, r"'model.*scales' holds .*bfloat16, not the .*uint8 of packed weights"),
        (lambda held: held.pop(f"{DOWN}.biases"), {}, "lacks the qwen3 tensor 'layers.1.mlp.down_proj.biases'"),
        (lambda held: held.pop(f"{DOWN}.scales"), {}, rf"'{DOWN}.weight' has the shape \(64, 12\), not \(64, 96\)"),
        (lambda held: held.pop(f"{DOWN}.scales"), {DOWN: {"group_size": 32, "bits": 4}}, "lacks the tensor 'layers.1.mlp.down_proj.scales', which"),
        (lambda held: held.update({f"{DOWN}.weight": held[f"{DOWN}.weight"].astype(mx.int32)}), {}, "holds .*int32, not the .*uint32 of packed weights"),
        (lambda held: held.update({f"{DOWN}.biases": held[f"{DOWN}.biases"][:, :2]}), {}, r"biases' has the shape \(64, 2\), not \(64, 3\)"),
        (lambda held: held.update({f"{DOWN}.global_scale": mx.ones((1,))}), {}, r"'model.layers.1.mlp.down_proj.global_scale', for which .* no place"),
        (rescaled(float("nan")), {}, rf"'{DOWN}.scales' holds NaN or infinity; fetch it again"),
        (rescaled(float("inf")), {}, rf"'{DOWN}.scales' holds NaN or infinity; fetch it again"),
        (None, {"quant_method": "awq"}, "is quantised with awq, .* mlx_lm.convert"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_sentence(
    four_bits: Checkpoint, edit: Any, changes: dict[str, Any], message: str
) -> None:
    wrong = change(four_bits, edit or (lambda held: None), **said(four_bits, **changes))
    with pytest.raises(CheckpointError, match=message) as raised:
        rows_of(wrong)
    assert "\n" not in str(raised.value)


def test_packed_weights_without_a_word_of_it_are_refused(four_bits: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"holds 'model.*scales', but .*does not say that it is quantised"):
        rows_of(replace(four_bits, quantization=None))


def test_quantised_activations_are_refused(four_bits: Checkpoint) -> None:
    wrong = replace(four_bits, config={**four_bits.config, "quantize_activations": True})
    with pytest.raises(CheckpointError, match="is quantised with activations too, which can't be followed"):
        rows_of(wrong)


@pytest.mark.parametrize(("mode", "group", "bad"), [("mxfp4", 32, 255), ("nvfp4", 16, 127), ("mxfp8", 32, 255)])
def test_a_nan_among_8_bit_scales_is_named(plain: Checkpoint, tmp_path: Path, mode: str, group: int, bad: int) -> None:
    quantised = by_mlx_lm(plain, tmp_path, mode=mode, group_size=group)
    rows_of(quantised)
    with pytest.raises(CheckpointError, match=rf"'{DOWN}\.scales' holds NaN or infinity"):
        rows_of(change(quantised, rescaled(bad)))


def test_a_nan_among_8_bit_weights_is_named(plain: Checkpoint, tmp_path: Path) -> None:
    def edit(held: dict[str, mx.array]) -> None:
        held[f"{DOWN}.weight"] = held[f"{DOWN}.weight"] | mx.array(0x7F00, mx.uint32)

    with pytest.raises(CheckpointError, match=rf"'{DOWN}\.scales' holds NaN or infinity"):
        rows_of(change(by_mlx_lm(plain, tmp_path, mode="mxfp8"), edit))


# mistakes


def test_a_scale_left_out_shows(model: Any, judging: Checkpoint, tmp_path: Path) -> None:
    quantised = by_mlx_lm(judging, tmp_path, bits=4)
    exact = meant(copy.deepcopy(model), quantised)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(exact, change(quantised, rescaled(0.0)))
