"""Small random models of transformers' own classes, and the rows that they give, in this process and in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.backends.contract import made_rows, one_by_one
from vecgate.backends.mlx.backend import load
from vecgate.core import Batch, Checkpoint, Task, Tokens, Vectors

VOCABULARY = 120
LENGTH = 64
LENGTHS = (2, 3, 9, 10, 17, 33, 33, LENGTH)
SOME = (3, 17, 40)
SAME = 5e-6
"""max |difference| of unit rows: float32 summed in another order. 1e-6 is what these models show."""
LOGIT = 1e-4
"""Of a logit, which has no unit length."""
OTHER = 1e-3
"""What a mistake must change at least."""
CALM = 0.12
"""Standard deviation of the layers' weights: small enough for float32 to agree with itself, see tests/backends/test_mlx.py."""


WIDE = ("embeddings", "relative_attention_bias", "classifier", "out_proj")
"""Tables, and what makes a logit."""


def vary(model: Any) -> Any:
    """Weights that show a mapping that forgets one: tables wide, layers calm, biases and norms away from 0 and 1."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                wide = any(part in name for part in WIDE)
                parameter.normal_(0, 1.0 if wide else CALM)
    return model.eval()


def save(model: Any, folder: Path, **saving: Any) -> Checkpoint:
    """The model in a folder, as a checkpoint pooled by its mean, or as a reranker if it has a head for it."""
    task: Task = "rerank" if type(model).__name__.endswith("ForSequenceClassification") else "embed"
    model.save_pretrained(folder, **saving)
    files = tuple(sorted(folder.glob("*.safetensors")))
    return Checkpoint(
        name=model.config.model_type,
        folder=folder,
        family=model.config.model_type,
        task=task,
        config=json.loads((folder / "config.json").read_text()),
        weights=files,
        max_tokens=LENGTH,
        pad_id=model.config.pad_token_id or 0,
        stored_dtype="float32",
        weight_bytes=sum(file.stat().st_size for file in files),
        token_types=getattr(model.config, "type_vocab_size", 0) > 1,
    )


def rows_for(checkpoint: Checkpoint, *lengths: int) -> tuple[Tokens, ...]:
    """Mixed lengths; with token types, the second half of each row is segment B."""
    return made_rows(lengths or LENGTHS, VOCABULARY, task="rerank" if checkpoint.token_types else "embed")


def by_transformers(model: Any, checkpoint: Checkpoint, rows: Sequence[Tokens]) -> Vectors:
    """One row at a time, so without padding: (N, D) pooled as the checkpoint says, or (N, 1) logits."""
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)  # a second thread only waits in models this small
    for row in rows:
        given = {"input_ids": torch.from_numpy(row.ids)[None].long()}
        if checkpoint.token_types and row.second is not None:
            given["token_type_ids"] = torch.from_numpy((np.arange(len(row)) >= row.second).astype(np.int64))[None]
        with torch.inference_mode():
            out = model(**given)
        if checkpoint.task == "rerank":
            found.append(out.logits[0].numpy())
        else:
            (mode,) = checkpoint.pooling
            found.append((out.last_hidden_state[0][0] if mode == "cls" else out.last_hidden_state[0].mean(0)).numpy())
    torch.set_num_threads(threads)
    return np.array(found)


def unit(rows: Vectors) -> Vectors:
    normal: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def by_mlx(checkpoint: Checkpoint, rows: Sequence[Tokens]) -> Vectors:
    return load(checkpoint, device="cpu").forward(Batch(tuple(rows)))


def assert_alike(model: Any, checkpoint: Checkpoint, *lengths: int) -> None:
    """Alone, in one mixed batch, and in another order, rows equal transformers'; so do a reranker's logits."""
    rows = rows_for(checkpoint, *lengths)
    expected, opened = by_transformers(model, checkpoint, rows), load(checkpoint, device="cpu")
    got = [one_by_one(opened, rows), opened.forward(Batch(rows)), opened.forward(Batch(rows[::-1]))[::-1]]
    within, show = (LOGIT, np.asarray) if checkpoint.task == "rerank" else (SAME, unit)
    assert apart(expected) > OTHER if checkpoint.task == "embed" else expected.std() > 0.1  # other texts, other rows
    for each in got:
        np.testing.assert_allclose(show(each), show(expected), rtol=0, atol=within)


def apart(rows: Vectors) -> float:
    """How far the two closest of the rows are from one another."""
    away = np.abs(rows[:, None] - rows[None]).max(-1)
    return float(away[~np.eye(len(rows), dtype=bool)].min())


def distance(one: Vectors, other: Vectors) -> float:
    """The largest difference of any two rows, of unit length if they are vectors."""
    show = unit if one.shape[1] > 1 else np.asarray
    return float(np.abs(show(one) - show(other)).max())


def copied(
    checkpoint: Checkpoint, folder: Path, change: Callable[[dict[str, Any]], Any] | None = None, **config: Any
) -> Checkpoint:
    """In another folder, in one file, with its tensors run through `change` and keys of its config set (None: absent)."""
    held: dict[str, torch.Tensor] = {}
    for file in checkpoint.weights:
        held.update(load_file(file))
    if change is not None:
        change(held)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "model.safetensors")
    given = {key: value for key, value in {**checkpoint.config, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(given))
    return replace(checkpoint, folder=folder, weights=(folder / "model.safetensors",), config=given)


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    """A change for `copied`: every tensor under another name."""

    def rename(held: dict[str, Any]) -> None:
        for name in list(held):
            held[change(name)] = held.pop(name)

    return rename
