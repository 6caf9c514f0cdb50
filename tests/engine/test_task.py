"""What a checkpoint is for: declared, found by its signs, or refused with the flag that says it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.engine import decoder
from vecgate.core import Task
from vecgate.engine.checkpoint import read
from vecgate.errors import CheckpointError

FLAT, PREFIXED = ("norm.weight", "layers.0.q.weight"), ("model.norm.weight", "model.layers.0.q.weight")
ENDED, PLAIN = "$A <|endoftext|>", "$A"


@pytest.mark.parametrize(
    ("name", "tensors", "single", "task"),
    [
        ("a", FLAT, ENDED, "embed"),  # Qwen3-Embedding as its authors publish it
        ("a", FLAT, PLAIN, "embed"),
        ("a", PREFIXED, ENDED, "embed"),  # its conversions
        ("Qwen3-Embedding-0.6B-mlx", PREFIXED, PLAIN, "embed"),
        ("Qwen3-Reranker-0.6B", PREFIXED, PLAIN, "rerank"),
        ("qwen3-re-ranker", PREFIXED, PLAIN, "rerank"),
    ],
)
def test_the_signs_of_a_causal_model(
    name: str, tensors: tuple[str, ...], single: str, task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vecgate.engine")
    assert read(decoder.make(tmp_path / name, tensors=tensors, single=single)).task == task
    assert f"{name} is taken for a model that {task}s: it" in caplog.text


@pytest.mark.parametrize(
    ("name", "tensors", "single", "words"),
    [
        ("a", PREFIXED, PLAIN, "nothing says whether it embeds or reranks; say what it is for with --task embed or"),
        ("Reranker", FLAT, PLAIN, r"may embed \(its tensors have no prefix\) or rerank \(it is called Reranker\)"),
        (
            "Reranker",
            PREFIXED,
            ENDED,
            r"may embed \(its tokenizer ends a text with <\|endoftext\|>\) or rerank .*--task",
        ),
    ],
)
def test_signs_that_are_missing_or_contradict_are_refused(
    name: str, tensors: tuple[str, ...], single: str, words: str, tmp_path: Path
) -> None:
    folder = decoder.make(tmp_path / name, tensors=tensors, single=single)
    with pytest.raises(CheckpointError, match=words):
        read(folder)
    assert {read(folder, task=task).task for task in ("embed", "rerank")} == {"embed", "rerank"}


def test_what_is_said_comes_first_and_a_doubt_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = decoder.make(tmp_path / "Qwen3-Embedding-0.6B", tensors=FLAT, single=ENDED)
    assert read(folder, task="rerank").yes_id is not None
    assert "is to rerank, but its files look as if it were to embed: its tensors have no prefix" in caplog.text


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["Qwen3Model"]}, "embed"),
        ({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}, "rerank"),
        ({"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}, "rerank"),
    ],
)
def test_an_architecture_may_say_it(config: dict[str, Any], task: Task, tmp_path: Path) -> None:
    assert read(decoder.make(tmp_path / "a", **config)).task == task


def test_modules_json_says_it(tmp_path: Path) -> None:
    scored = decoder.scored(decoder.make(tmp_path / "embedder"), messages=False)
    assert read(scored).task == "rerank"
    pooled = decoder.make(tmp_path / "reranker")
    names = ("Transformer", "Pooling")
    listed = [
        {"path": where, "type": f"sentence_transformers.models.{name}"} for where, name in zip(("", "1_P"), names)
    ]
    decoder.write(pooled / "modules.json", listed)
    decoder.write(pooled / "1_P" / "config.json", {"pooling_mode_lasttoken": True})
    assert (read(pooled).task, read(pooled).pooling) == ("embed", ("last",))
    with pytest.raises(CheckpointError, match=r"modules\.json pools tokens, so reranker embeds; it can't rerank"):
        read(pooled, task="rerank")


def test_pickle_hides_the_tensors_and_the_rest_still_tells(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "a", tensors=FLAT)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing says whether"):
        read(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").rename(folder / "part-1.bin")
    index = {"weight_map": {"norm.weight": "part-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = read(folder, allow_pickle=True)
    assert (found.task, [path.name for path in found.weights]) == ("embed", ["part-1.bin"])
    (folder / "part-1.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"part-1\.bin is missing, though pytorch_model\.bin\.index\.json lists it"
    ):
        read(folder, allow_pickle=True)
