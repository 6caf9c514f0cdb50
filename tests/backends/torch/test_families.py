"""Every family of the table against plain transformers, one row at a time; whatever else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.backends import made
from tests.backends.contract import made_rows, one_by_one
from vecgate.backends import BOTH, TORCH
from vecgate.backends.torch import devices, load
from vecgate.core import Batch, Checkpoint, Tokens, Vectors
from vecgate.errors import CheckpointError, ConfigError

CLOSE = 5e-6
"""Of unit rows, sdpa in a padded batch against eager attention alone, both in float32: 9e-7 was seen."""
LOGIT = 1e-4
"""Of logits up to 5; 2e-6 was seen."""
PADDED = {(family, task) for family in ("deberta-v2", "gemma2", "mpnet", "t5") for task in BOTH} | {
    ("eurobert", "rerank")
}
"""Whose rows can't stand side by side; all others' must. EuroBERT's own head reads every token."""
DECODERS = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several would only wait for each other over models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(longest: int = made.LENGTH) -> tuple[Tokens, ...]:
    """From the shortest to the longest; two are filled up with ids that stand for pads, within and at the end."""
    found = list(made_rows((2, 9, 33, 33, longest), made.VOCABULARY))
    found[2].ids[[5, 6, -1]] = 0
    found[3].ids[[5, 6, -1]] = 1
    return tuple(found)


def alone(model: PreTrainedModel, row: Tokens) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(row.ids.astype(np.int64))[None])


def means(model: Any) -> Vectors:
    return np.stack([alone(model, row).last_hidden_state[0].mean(0).numpy() for row in rows()])


def unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def forwards(checkpoint: Checkpoint) -> Iterator[Vectors]:
    """Packed where the family can, on a device that only pads, and alone."""
    opened = load(checkpoint, device="cpu")
    assert (opened.card.pad_lengths is None) is ((checkpoint.family, checkpoint.task) not in PADDED)
    with pytest.MonkeyPatch.context() as patch:
        padding = replace(devices.cpu(0.8), packs=False)
        patch.setattr(devices, "cpu", lambda fraction: padding)
        padded = load(checkpoint, device="cpu")
    assert padded.card.pad_lengths is not None
    yield opened.forward(Batch(rows()))
    yield padded.forward(Batch(rows()))
    yield one_by_one(opened, rows())


def check_rows(checkpoint: Checkpoint, expected: Vectors) -> None:
    for got in forwards(checkpoint):
        np.testing.assert_allclose(unit(got), unit(expected), rtol=0, atol=CLOSE)


def check_logits(checkpoint: Checkpoint, expected: Any) -> None:
    assert np.ptp(expected) > 0.1  # or the rows could be any
    for got in forwards(checkpoint):
        assert got.shape == (len(rows()), 1)
        np.testing.assert_allclose(got[:, 0], expected, rtol=0, atol=LOGIT)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Checkpoint]]:
    """A family's sequence classifier, in memory and on disk, built once."""

    @cache
    def make(family: str) -> tuple[PreTrainedModel, Checkpoint]:
        model = made.build(family, "classifier")
        return model, made.save(model, tmp_path_factory.mktemp(family), task="rerank")

    return make


Classifier = Callable[[str], tuple[PreTrainedModel, Checkpoint]]
RERANKERS = sorted(family for family, tasks in TORCH.items() if "rerank" in tasks)


@pytest.mark.parametrize("family", RERANKERS)
def test_a_family_reranks_as_transformers_does(family: str, classifier: Classifier) -> None:
    model, checkpoint = classifier(family)
    model.config.pad_token_id = made.VOCABULARY - 1 if family in LAST else model.config.pad_token_id
    check_logits(checkpoint, [alone(model, row).logits[0, 0].item() for row in rows()])


LAST = {*DECODERS, "gemma3_text"}
"""Families whose class in transformers takes the last token that is no pad, by its id: here no id is the pad's."""


@pytest.mark.parametrize(
    ("family", "pooling", "packs"),
    [("eurobert", "bos", True), ("eurobert", "mean", True), ("eurobert", "late", False), ("modernbert", "mean", True)],
)
def test_a_head_pools_as_its_config_says(family: str, pooling: str, packs: bool, tmp_path: Path) -> None:
    """late: of every token's logit, so that one state a row is not enough."""
    model = made.build(family, "classifier", classifier_pooling=pooling)
    checkpoint = made.save(model, tmp_path, task="rerank")
    opened = load(checkpoint, device="cpu")
    assert (opened.card.pad_lengths is None) is packs
    expected = [alone(model, row).logits[0, 0].item() for row in rows()]
    np.testing.assert_allclose(opened.forward(Batch(rows()))[:, 0], expected, rtol=0, atol=LOGIT)


@pytest.mark.parametrize("family", RERANKERS)
def test_a_family_embeds_as_transformers_does(family: str, classifier: Classifier) -> None:
    """Out of a file with a head, whose names have the model's prefix."""
    model, checkpoint = classifier(family)
    check_rows(replace(checkpoint, task="embed"), means(model.base_model))


@pytest.mark.parametrize("family", sorted(TORCH.keys() - set(RERANKERS)))
def test_a_family_that_only_embeds_does_so_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = made.build(family, "encoder" if family == "t5" else "base")
    check_rows(made.save(model, tmp_path), means(model))


def test_bare_names_load_as_well(classifier: Classifier) -> None:
    for family in ("qwen3", "bert"):
        model, checkpoint = classifier(family)
        bare = made.save(model.base_model, checkpoint.folder / "bare")
        assert not any(name.startswith(("model.", "bert.")) for name in made.tensors(bare))
        check_rows(bare, means(model.base_model))


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_that_is_not_causal_reads_both_ways(family: str, tmp_path: Path) -> None:
    """gte-Qwen2's `is_causal: false`; the first token alone is pooled, which a causal model gives no other to see."""
    (row,) = made_rows((12,), made.VOCABULARY)
    other = replace(row, ids=np.concatenate([row.ids[:-1], [7]]).astype(np.int32))
    model = made.build(family, is_causal=False)
    checkpoint = made.save(model, tmp_path)
    check_rows(checkpoint, means(model))
    first, second = load(replace(checkpoint, pooling=("cls",)), device="cpu").forward(Batch((row, other)))
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.parametrize(("family", "value"), [("mistral", 64), ("gemma3_text", 64), ("modernbert", 64)])
def test_a_local_window_is_the_configs(family: str, value: int, classifier: Classifier) -> None:
    """Only texts longer than the window show it."""
    _, checkpoint = classifier(family)
    key = "local_attention" if family == "modernbert" else "sliding_window"
    wide = replace(checkpoint, folder=checkpoint.folder / "wide")
    wide.folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (wide.folder / name).write_bytes((checkpoint.folder / name).read_bytes())
    made.configure(wide, **{key: value})
    narrow, broad = (
        load(replace(one, task="embed"), device="cpu").forward(Batch(rows())) for one in (checkpoint, wide)
    )
    np.testing.assert_allclose(narrow[:2], broad[:2], rtol=0, atol=1e-4)
    assert np.abs(narrow[-1] - broad[-1]).max() > 1e-2


# decoders that rerank


def causal(folder: Path, *, tied: bool = True, family: str = "qwen3") -> tuple[Checkpoint, Any]:
    """A causal language model that reranks by ids 9 and 8, and the logits of all ids after each row's last token."""
    model = made.build(family, "causal", tie_word_embeddings=tied)
    logits = np.stack([alone(model, row).logits[0, -1].numpy() for row in rows()])
    return made.save(model, folder, task="rerank", yes_id=9, no_id=8), logits


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        ("qwen3", True),
        ("qwen3", False),
        ("qwen2", False),
        ("llama", False),
        ("mistral", True),
        ("gemma", True),
        ("phi3", False),
    ],
)
def test_a_causal_language_model_scores_by_two_rows_of_its_head(family: str, tied: bool, tmp_path: Path) -> None:
    checkpoint, logits = causal(tmp_path, tied=tied, family=family)
    assert ("lm_head.weight" in made.tensors(checkpoint)) is not tied
    check_logits(checkpoint, logits[:, 9] - logits[:, 8])
    if family == "qwen3":
        check_logits(replace(checkpoint, no_id=None), logits[:, 9])


def test_the_vocabulary_is_never_scored(tmp_path: Path) -> None:
    checkpoint, _ = causal(tmp_path, tied=False)
    opened = load(checkpoint, device="cpu")
    assert type(opened._model).__name__ == "Qwen3Model"
    assert [tuple(one.shape) for one in opened._after.parameters()] == [(1, 32)]


def test_a_score_in_bfloat16_keeps_its_low_bits(tmp_path: Path) -> None:
    checkpoint, logits = causal(tmp_path)
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows()))
    assert (got.view(np.uint32) & 0xFFFF).any()
    assert np.corrcoef(got[:, 0], logits[:, 9] - logits[:, 8])[0, 1] > 0.99


def test_a_head_that_stands_beside_a_tied_table_is_the_head(tmp_path: Path) -> None:
    """transformers keeps both where they differ, whatever config.json says."""
    checkpoint, logits = causal(tmp_path, tied=False)
    made.configure(checkpoint, tie_word_embeddings=True)
    check_logits(checkpoint, logits[:, 9] - logits[:, 8])


def test_an_untied_head_must_be_in_the_files(tmp_path: Path) -> None:
    checkpoint, _ = causal(tmp_path, tied=False)
    made.rewrite(checkpoint, lambda held: held.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"model.safetensors lacks the qwen3 tensor 'lm_head.weight'\.$"):
        load(checkpoint, device="cpu")
    opened = load(
        replace(checkpoint, task="embed", yes_id=None), device="cpu"
    )  # which needs no head: Qwen3-Embedding-8B
    assert opened.card.dimensions == 32


@pytest.mark.parametrize("yes", [-1, made.VOCABULARY])
def test_an_answer_outside_the_head_is_refused(yes: int, tmp_path: Path) -> None:
    checkpoint, _ = causal(tmp_path)
    with pytest.raises(CheckpointError, match=rf"'model.embed_tokens.weight' has .* no rows \[{yes}, 8\] of 32"):
        load(replace(checkpoint, yes_id=yes), device="cpu")


def test_capped_logits_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = causal(tmp_path, family="gemma2")
    with pytest.raises(CheckpointError, match="final_logit_softcapping"):
        load(checkpoint, device="cpu")


@pytest.mark.parametrize("extra", ["lm_head.bias", "score.bias"])
def test_a_bias_of_the_head_is_refused(extra: str, tmp_path: Path) -> None:
    checkpoint, _ = causal(tmp_path)
    made.rewrite(checkpoint, lambda held: held.update({extra: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=f"'{extra}' is not supported"):
        load(checkpoint, device="cpu")


def test_a_decoders_classifier_must_be_in_the_files(classifier: Classifier, tmp_path: Path) -> None:
    model, _ = classifier("qwen3")
    checkpoint = made.save(model, tmp_path, task="rerank")
    for change, said in (
        (lambda held: held.update({"score.weight": torch.ones(2, 32)}), "has the shape"),
        (lambda held: held.update({"score.weight": torch.full((1, 32), float("nan"))}), "'score.weight' holds NaN"),
        (lambda held: held.pop("score.weight"), "lacks the qwen3 tensor 'score.weight'"),
    ):
        made.rewrite(checkpoint, change)
        with pytest.raises(CheckpointError, match=said):
            load(checkpoint, device="cpu")


# nomic_bert as its authors wrote it

THEIRS = {
    "model_type": "nomic_bert",
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_inner": 48,
    "n_positions": made.LENGTH,
    "activation_function": "swiglu",
    "layer_norm_epsilon": 1e-12,
    "rotary_emb_base": 1000,
    "vocab_size": 120,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "prenorm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "type_vocab_size": 2,
    "causal": False,
    "max_trained_positions": 64,
}


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Checkpoint]:
    model = made.build("nomic_bert", layer_norm_eps=1e-12)
    return model, made.save(model, tmp_path_factory.mktemp("nomic"))


def theirs(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    config = {**THEIRS, **changes}
    (checkpoint.folder / "config.json").write_text(json.dumps(config))
    return replace(checkpoint, config=config)


@pytest.mark.parametrize("base", [1000, 500])
def test_nomic_as_its_authors_wrote_it(base: int, nomic: tuple[PreTrainedModel, Checkpoint]) -> None:
    model, checkpoint = nomic
    assert "encoder.layers.1.attn.Wqkv.weight" in made.tensors(checkpoint)
    expected = means(model)
    written = theirs(checkpoint, rotary_emb_base=base)
    if base == 1000:
        check_rows(written, expected)
    got = load(written, device="cpu").forward(Batch(rows()))
    assert (np.abs(unit(got) - unit(expected)).max() < CLOSE) == (base == 1000)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "gelu"),
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_interleaved", True),
        ("prenorm", True),
        ("qkv_proj_bias", True),
        ("num_experts", 8),
        ("rotary_scaling_factor", 2),
    ],
)
def test_what_nomic_can_not_do_here_is_refused(key: str, value: Any, nomic: tuple[PreTrainedModel, Checkpoint]) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {key}.* is not supported for nomic_bert"):
        load(theirs(nomic[1], **{key: value}), device="cpu")


def test_a_scaled_rope_is_exact_up_to_the_trained_length(nomic: tuple[PreTrainedModel, Checkpoint]) -> None:
    written = replace(theirs(nomic[1], rotary_scaling_factor=2), max_tokens=64)
    assert load(written, device="cpu").card.dimensions == 32


def test_a_missing_tensor_of_nomic_is_told_by_its_own_name(nomic: tuple[PreTrainedModel, Checkpoint]) -> None:
    _, checkpoint = nomic
    held = load_file(checkpoint.weights[0])
    for name in ("encoder.layers.1.attn.Wqkv.weight", "encoder.layers.1.mlp.fc11.weight", "emb_ln.bias"):
        made.rewrite(checkpoint, lambda kept, name=name: kept.pop(name))
        with pytest.raises(CheckpointError, match=f"lacks the nomic_bert tensor '{name}'\\.$"):
            load(theirs(checkpoint), device="cpu")
        made.rewrite(checkpoint, lambda kept: kept.update(held))


# what is refused


@pytest.mark.parametrize("family", ["bart", "brand-new", "mt5", "whisper", "clip"])
def test_a_family_that_was_not_shown_to_be_right_is_refused_by_name(family: str, nomic: Any) -> None:
    with pytest.raises(
        CheckpointError, match=rf"can't embed with the family '{family}'; it can with albert, bert,.*\.$"
    ):
        load(replace(nomic[1], family=family), device="cpu")
    with pytest.raises(CheckpointError, match="can't rerank with the family 't5'; it can with albert"):
        load(replace(nomic[1], family="t5", task="rerank"), device="cpu")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_that_depends_on_the_batch_is_refused_where_it_would(kind: str, tmp_path: Path) -> None:
    """Up to the length it was trained for, such a rope is like any other."""
    factors = {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 48, **factors}
    checkpoint = made.save(made.build("llama", rope_parameters=rope), tmp_path)
    with pytest.raises(CheckpointError, match=f"more than 48 tokens .* rope_type '{kind}'; set max_seq_length to 48"):
        load(checkpoint, device="cpu")
    opened = load(replace(checkpoint, max_tokens=48), device="cpu")
    short = rows(48)
    np.testing.assert_allclose(opened.forward(Batch(short)), one_by_one(opened, short), rtol=0, atol=CLOSE)


def test_every_family_of_the_table_is_one_of_transformers() -> None:
    assert set(CONFIG_MAPPING.keys()) >= TORCH.keys()


@pytest.mark.parametrize("family", TORCH)
def test_transformers_lets_no_tensor_be_missing(family: str) -> None:
    """Its classes may list names whose absence it does not report."""
    for kind in ("base", *(["classifier"] if "rerank" in TORCH[family] else [])):
        with torch.device("meta"):
            assert not made.build(family, kind)._keys_to_ignore_on_load_missing


@pytest.mark.parametrize(
    ("quantization", "config", "said"),
    [
        ({"bits": 4, "group_size": 64}, {}, r"quantised for MLX.*BACKEND=mlx on Apple Silicon.*unquantised"),
        ({"quant_method": "gptq", "bits": 4}, {}, r"quantised by gptq, which no backend reads.*unquantised"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, r"quantised by fp8"),
    ],
)
def test_quantised_weights_are_refused_with_the_remedy(
    quantization: Any, config: dict[str, Any], said: str, nomic: Any
) -> None:
    checkpoint = replace(nomic[1], quantization=quantization, config={**nomic[1].config, **config})
    with pytest.raises(CheckpointError, match=said):
        load(checkpoint, device="cpu")


def test_float16_is_refused_where_it_overflows(classifier: Classifier) -> None:
    for family in ("gemma3_text", "qwen3"):
        with pytest.raises(ConfigError, match=f"overflows in the family '{family}'"):
            load(classifier(family)[1], device="cpu", dtype="float16")
