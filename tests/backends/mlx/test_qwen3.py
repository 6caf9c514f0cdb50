"""Qwen3 on MLX: transformers' own model, in every layout its checkpoints have; each ingredient left out must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed (Linux: pip install 'mlx[cpu]')", exc_type=ImportError)

import mlx.core as mx
import torch
import transformers

from tests.backends.mlx.alike import OTHER, copied, distance, renamed
from tests.backends.mlx.decoders import NO, SIZES, YES, assert_alike, embedder, reranker, rows_of, vary
from vecgate.backends.mlx import causal, qwen3
from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


def config(**more: Any) -> Any:
    given: dict[str, Any] = {"head_dim": 32, "tie_word_embeddings": True, "rope_theta": 1e6}
    return transformers.Qwen3Config(**(SIZES | given | {"attn_implementation": "eager"} | more))


@pytest.fixture(scope="module")
def model() -> Any:
    return vary(transformers.Qwen3Model(config()))


@pytest.fixture(scope="module")
def checkpoint(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return embedder(model, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def judge() -> Any:
    return vary(transformers.Qwen3ForCausalLM(config()))


@pytest.fixture(scope="module")
def judging(judge: Any, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return reranker(judge, tmp_path_factory.mktemp("qwen3-judge"))


def test_rows_equal_transformers(model: Any, checkpoint: Checkpoint) -> None:
    assert_alike(model, checkpoint)


@pytest.mark.parametrize(
    "more",
    [
        {"attention_bias": True},
        {"tie_word_embeddings": False, "hidden_act": "gelu_pytorch_tanh"},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
        WINDOWS,
        {**WINDOWS, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {"is_causal": False},
        {"is_causal": False, **WINDOWS},
    ],
    ids=["bias", "untied", "linear", "window", "layer types", "both ways", "both ways in a window"],
)
def test_what_the_config_asks_for_is_followed(tmp_path: Path, more: dict[str, Any]) -> None:
    model = vary(transformers.Qwen3Model(config(**more)))
    checkpoint = embedder(model, tmp_path)
    assert_alike(model, checkpoint)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (renamed(lambda name: f"model.{name}"), {}),
        (lambda held: held.update({"lm_head.weight": torch.zeros(120, 64)}), {"tie_word_embeddings": False}),
        (lambda held: held.update({"rotary_emb.inv_freq": torch.zeros(16)}), {}),
        (None, {"rope_parameters": None, "rope_theta": 1000000, "rope_scaling": None}),
        (None, {"layer_types": None, "sliding_window": 4, "max_window_layers": 0}),  # use_sliding_window is false
    ],
    ids=["prefix", "head", "buffer", "old rope", "no layer types"],
)
def test_other_layouts_give_the_same_rows(checkpoint: Checkpoint, tmp_path: Path, change: Any, keys: Any) -> None:
    np.testing.assert_array_equal(rows_of(copied(checkpoint, tmp_path, change, **keys)), rows_of(checkpoint))


def test_shards_are_one_model(model: Any, checkpoint: Checkpoint, tmp_path: Path) -> None:
    sharded = embedder(model, tmp_path, max_shard_size="60KB")
    assert len(sharded.weights) > 2
    np.testing.assert_array_equal(rows_of(sharded), rows_of(checkpoint))


# rerankers


def test_yes_less_no_equals_transformers(judge: Any, judging: Checkpoint) -> None:
    assert_alike(judge, judging)
    assert_alike(judge, replace(judging, no_id=None))


def test_a_head_of_its_own_beats_the_table(tmp_path: Path) -> None:
    untied = vary(transformers.Qwen3ForCausalLM(config(tie_word_embeddings=False)))
    assert_alike(untied, reranker(untied, tmp_path))


def test_a_head_in_the_file_counts_whatever_the_config_says_of_ties(judging: Checkpoint, tmp_path: Path) -> None:
    head = torch.randn(120, 64)
    own = copied(judging, tmp_path, lambda held: held.update({"lm_head.weight": head}))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32", attn_implementation="eager")
    assert_alike(model, own)
    assert distance(rows_of(own), rows_of(judging)) > OTHER


def test_a_classifier_equals_transformers_and_the_difference_of_two_rows(
    judge: Any, judging: Checkpoint, tmp_path: Path
) -> None:
    table = judge.model.embed_tokens.weight.detach()
    row = (table[YES] - table[NO])[None].clone()
    one = copied(
        judging, tmp_path, lambda held: held.update({"score.weight": row}), id2label={"0": "x"}, num_labels=1,
        architectures=["Qwen3ForSequenceClassification"],
    )  # fmt: skip
    one = replace(one, yes_id=None, no_id=None)
    model = transformers.Qwen3ForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert_alike(model, one)
    np.testing.assert_allclose(rows_of(one), rows_of(judging), rtol=0, atol=1e-5)


def test_the_whole_vocabulary_is_never_scored(judging: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scored = causal.Head.__call__

    def look(self: causal.Head, hidden: mx.array, rows: Any) -> mx.array:
        seen.append((self.rows.weight.shape, self.rows.weight.dtype))
        return scored(self, hidden, rows)

    monkeypatch.setattr(causal.Head, "__call__", look)
    got = rows_of(judging, "bfloat16")
    assert seen == [((2, 64), mx.float32)]
    assert (got.view(np.uint32) & 0xFFFF).any()  # a logit in bfloat16 would have no low bits


def test_bfloat16_is_near(checkpoint: Checkpoint, judging: Checkpoint) -> None:
    # 8 bits of mantissa over 3 layers; a mistake in a type's path shows as more
    assert distance(rows_of(checkpoint, "bfloat16"), rows_of(checkpoint)) < 0.03
    assert distance(rows_of(judging, "bfloat16"), rows_of(judging)) < 0.3


# mistakes


def left_out(monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    if mistake == "causal mask":
        monkeypatch.setattr(causal, "visible", lambda rows, **given: rows.mask)
    elif mistake == "q and k norms":
        monkeypatch.setattr(
            qwen3.Attention,
            "__call__",
            lambda self, x, turn, mask: self.o_proj(
                causal.attend(
                    causal.heads(self.q_proj(x), 4),
                    causal.heads(self.k_proj(x), 2),
                    causal.heads(self.v_proj(x), 2),
                    turn,
                    32**-0.5,
                    mask,
                )
            ),
        )
    elif mistake == "rotary":
        monkeypatch.setattr(causal, "rotary", lambda *given: lambda x: x)
    else:
        raise AssertionError(mistake)


@pytest.mark.parametrize("mistake", ["causal mask", "q and k norms", "rotary"])
def test_a_mistake_shows(model: Any, checkpoint: Checkpoint, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out(monkeypatch, mistake)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(model, checkpoint)


def test_a_window_that_is_one_wider_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vary(transformers.Qwen3Model(config(**WINDOWS)))
    checkpoint = embedder(model, tmp_path)
    reaches = causal.reaches
    monkeypatch.setattr(
        qwen3, "reaches", lambda *given, **more: tuple(reach and reach + 1 for reach in reaches(*given, **more))
    )
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(model, checkpoint)


@pytest.mark.parametrize("wrong", ["first token", "one too early", "no before yes"])
def test_a_wrong_token_or_row_shows(
    judge: Any, judging: Checkpoint, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = causal.Head.__call__
    moved: dict[str, Callable[[mx.array], mx.array]] = {
        "first token": mx.ones_like,
        "one too early": lambda lengths: lengths - 1,
        "no before yes": lambda lengths: lengths,
    }

    def score(self: causal.Head, hidden: mx.array, rows: Any) -> mx.array:
        return scored(self, hidden, replace(rows, lengths=moved[wrong](rows.lengths)))

    monkeypatch.setattr(causal.Head, "__call__", score)
    swapped = wrong == "no before yes"
    with pytest.raises(AssertionError, match="Not equal"):
        assert_alike(judge, replace(judging, yes_id=NO, no_id=YES) if swapped else judging)


# checkpoints that can't be followed


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "of the type 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rotary positions that .* 'qwen3' does not have"),
        ({"rope_parameters": {"rope_type": "linear"}}, "without a number that they need .*factor"),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": "x"}}, "without a number"),
        ({"partial_rotary_factor": 0.5}, "has a partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "4 attention heads are no multiple of 3"),
        ({"layer_types": ["sliding_attention"] * 3}, "layers with a window, but use_sliding_window is off"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 3 layers"),
        ({"layer_types": ["chunked_attention"] * 3}, "a layer of the type 'chunked_attention'"),
        ({"head_dim": 16}, r"'layers.0.self_attn.q_proj.weight' has the shape \(128, 64\), not \(64, 64\)"),
        ({"num_hidden_layers": 2, "layer_types": None}, "'layers.2.input_layernorm.weight', for which .* no place"),
        ({"num_hidden_layers": 4, "layer_types": None}, "lacks the qwen3 tensor 'layers.3"),
        ({"attention_bias": True}, "lacks the qwen3 tensor 'layers.0.self_attn..*bias'"),
        ({"hidden_act": "swiglu"}, "asks for the activation 'swiglu'"),
        ({"vocab_size": 121}, r"'embed_tokens.weight' has the shape \(120, 64\), not \(121, 64\)"),
    ],
)  # fmt: skip
def test_a_config_it_cant_follow_is_one_sentence(checkpoint: Checkpoint, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        rows_of(replace(checkpoint, config={**checkpoint.config, **keys}))
    assert str(checkpoint.folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reranker_without_what_it_scores_with_is_refused(judging: Checkpoint, checkpoint: Checkpoint) -> None:
    untied = replace(judging, config={**judging.config, "tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"lacks the qwen3 tensor 'lm_head\.weight'"):
        rows_of(untied)
    with pytest.raises(CheckpointError, match=r"lacks the qwen3 tensor 'score\.weight'"):
        rows_of(replace(judging, yes_id=None))
    with pytest.raises(
        CheckpointError, match=r"'model.embed_tokens.weight' has the shape \(120, 64\), not \(9694, 64\)"
    ):
        rows_of(replace(judging, yes_id=9693))
