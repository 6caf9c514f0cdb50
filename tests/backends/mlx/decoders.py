"""Small random decoders of transformers' own classes, and the rows and logits that they give, in this process and float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.backends.contract import made_rows, one_by_one
from tests.backends.mlx.alike import CALM, LENGTH, LOGIT, OTHER, SAME, apart, save, unit
from vecgate.backends.mlx.backend import load
from vecgate.core import Batch, Checkpoint, Tokens, Vectors

VOCABULARY = 120
LENGTHS = (2, 5, 9, 16, 17, 33, LENGTH)
YES, NO = 7, 11
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
"""Widths are multiples of 32, so that every layer can be quantised."""


def vary(model: Any) -> Any:
    """Weights that show a mapping that forgets one, and calm enough for float32 to agree with itself."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(0, 0.5 if "embed" in name or "score" in name else CALM)
    return model.eval()


def embedder(model: Any, folder: Path, **saving: Any) -> Checkpoint:
    """Pooled at the last token."""
    return replace(save(model, folder, **saving), task="embed", pooling=("last",))


def reranker(model: Any, folder: Path, **saving: Any) -> Checkpoint:
    """With its classifier, or by yes and no."""
    checkpoint = replace(save(model, folder, **saving), task="rerank")
    if type(model).__name__.endswith("ForCausalLM"):
        checkpoint = replace(checkpoint, yes_id=YES, no_id=NO)
    return checkpoint


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads of torch wait for one another longer than they compute, in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_transformers(model: Any, checkpoint: Checkpoint, rows: Sequence[Tokens]) -> Vectors:
    """One row at a time, so without padding: (N, D) pooled by the checkpoint's word, or (N, 1) logits."""
    found = []
    for row in rows:
        with torch.inference_mode(), one_thread():
            out = model(torch.from_numpy(row.ids)[None].long())
        if checkpoint.task == "embed":
            hidden = out.last_hidden_state[0].float().numpy()
            found.append(hidden[-1] if checkpoint.pooling == ("last",) else hidden.mean(0))
        elif checkpoint.yes_id is None:
            found.append(out.logits[0].float().numpy())
        else:
            logits = out.logits[0, -1].float().numpy()
            found.append(logits[[YES]] - (0 if checkpoint.no_id is None else logits[[NO]]))
    return np.array(found)


def assert_alike(model: Any, checkpoint: Checkpoint, within: float | None = None) -> None:
    """Alone, in one mixed batch, and in another order, rows or logits equal transformers'."""
    rows = made_rows(LENGTHS, VOCABULARY)
    expected, opened = by_transformers(model, checkpoint, rows), load(checkpoint, device="cpu", dtype="float32")
    ways: tuple[Callable[[], Vectors], ...] = (
        lambda: opened.forward(Batch(rows)),
        lambda: one_by_one(opened, rows),
        lambda: opened.forward(Batch(rows[::-1]))[::-1],
    )
    usual, show = (LOGIT, np.asarray) if checkpoint.task == "rerank" else (SAME, unit)
    assert apart(show(expected)) > OTHER  # different texts, different rows
    for way in ways:
        np.testing.assert_allclose(show(way()), show(expected), rtol=0, atol=within or usual)


def rows_of(checkpoint: Checkpoint, dtype: str = "float32") -> Vectors:
    """Of the usual lengths, in one batch."""
    return load(checkpoint, device="cpu", dtype=dtype).forward(Batch(made_rows(LENGTHS, VOCABULARY)))
