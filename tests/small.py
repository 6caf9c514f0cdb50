"""A model of no weights: a word-level tokenizer on disk and a Checkpoint for the fake backend, ready in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vecgate.backends import fake
from vecgate.core import BatchReport, Checkpoint, Task
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model

WORDS = ("paris", "berlin", "is", "the", "capital", "of", "france", "germany", "dogs", "bark", "what", "a", "cat", "?")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "poison", "query:", "passage:")
MAX_TOKENS = 12


def checkpoint(folder: Path, task: Task = "embed", words: Sequence[str] = WORDS, **changes: Any) -> Checkpoint:
    """`[CLS] A [SEP] B [SEP]`, one token a word, 12 at most; named "small" or "judge"."""
    vocabulary = {word: at for at, word in enumerate((*SPECIALS, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    made = Checkpoint(
        name="small" if task == "embed" else "judge",
        folder=folder,
        family="fake",
        task=task,
        config={},
        weights=(),
        max_tokens=MAX_TOKENS,
        pad_id=0,
        stored_dtype="float32",
        weight_bytes=0,
        normalize=True,
        prompts={"query": "query: ", "passage": "passage: "},
    )
    return replace(made, **changes)


def folder(
    path: Path,
    task: Task = "embed",
    dimensions: int = 8,
    *,
    words: Sequence[str] = WORDS,
    max_tokens: int = MAX_TOKENS,
) -> Path:
    """The same model as files that checkpoint.read reads, for what begins with MODEL_NAME; its weights are no numbers."""
    checkpoint(path, task, words)
    head = {"architectures": ["BertForSequenceClassification"], "num_labels": 1} if task == "rerank" else {}
    size = {"hidden_size": dimensions, "max_position_embeddings": max_tokens}
    files: dict[str, Any] = {
        "config.json": {"model_type": "bert", "pad_token_id": 0, **size, **head},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "passage": "passage: "}},
    }
    if task == "embed":
        files["modules.json"] = [
            {
                "idx": at,
                "name": str(at),
                "path": f"{at}_{kind}" if at else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for at, kind in enumerate(("Transformer", "Pooling"))
        ]
        files["1_Pooling/config.json"] = {"pooling_mode_mean_tokens": True}
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content))
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return path


def model(read: Checkpoint, script: fake.Script | None = None, **options: Any) -> Model:
    """The checkpoint on a fake backend that follows the script."""
    return Model(read, partial(fake.load, read, script=script or fake.Script(), **options), "fake", "asked for")


class Served:
    """`with Served(model, ...) as engine`: a started LocalEngine; `reports` holds what on_batch was told."""

    def __init__(self, *models: Model, **options: Any) -> None:
        self.reports: list[BatchReport] = []
        self.engine = LocalEngine(models, on_batch=self.reports.append, **options)

    def __enter__(self) -> LocalEngine:
        self.engine.start()
        return self.engine

    def __exit__(self, *raised: object) -> None:
        self.engine.close()
