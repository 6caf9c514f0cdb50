"""The same text gives the same row: whatever stands beside it, however it is laid out, among any calls, and after a restart.

Random mixes of calls on every backend, each row against the one that the text had alone before the restart. A number of a
unit row moves by 5e-6 at most, of all-MiniLM-L6-v2's by 1e-6, a logit by 1e-4, in float32.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mlx.core", reason="MLX is not installed", exc_type=ImportError)

import torch

from tests.families import LONG, TEXTS, TOLERANCE
from tests.tiny import build
from vecgate.backends import open_backend
from vecgate.core import Call, Vectors
from vecgate.engine import warmup
from vecgate.engine.checkpoint import read
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model

MINILM = 1e-6
QUERIES = (TEXTS[1], TEXTS[2])
ONES = [("torch", kind) for kind in ("bert", "modernbert", "qwen3", "gemma3", "bert-reranker")]
ONES += [("padded torch", kind) for kind in ("modernbert", "qwen3", "xlmr-reranker")]
ONES += [("mlx", kind) for kind in ("bert", "modernbert", "qwen3", "gemma3", "bert-reranker")]
POOL = [text for text in TEXTS if text][:16]
Mix = list[tuple[int, list[int]]]
"""Calls that wait together: which query (of a reranker), and the places of the texts."""


def mixes(texts: int) -> st.SearchStrategy[Mix]:
    """Of the first so many."""
    call = st.tuples(st.integers(0, 1), st.lists(st.integers(0, texts - 1), min_size=1, max_size=6))
    return st.lists(call, min_size=1, max_size=5)


@dataclass(frozen=True, slots=True)
class Running:
    """One checkpoint by an engine, and by others that were started after it: one usual, one of small batches. alone: by
    query, the first engine's rows of POOL, each text in a call of its own."""

    runner: asyncio.Runner
    engines: tuple[LocalEngine, ...]
    alone: tuple[Vectors, ...]
    tolerance: float

    def moved(self, mix: Mix, at: int) -> float:
        """The greatest |difference| of any number of any row of the mix."""
        engine = self.engines[at]

        async def together() -> list[Vectors]:
            calls = (_rows(engine, query, [POOL[place] for place in places]) for query, places in mix)
            return await asyncio.gather(*calls)

        found = self.runner.run(together())
        return max(float(np.abs(rows - self.alone[query][places]).max()) for (query, places), rows in zip(mix, found))


async def _rows(engine: LocalEngine, query: int, texts: Sequence[str]) -> Vectors:
    call = Call("same")
    if engine.status().models[0].task == "embed":
        return (await engine.embed(call, None, texts)).vectors
    ranking = await engine.rerank(call, None, QUERIES[query], texts)
    rows = np.empty((len(texts), 1), np.float32)
    rows[[*ranking.order], 0] = ranking.raw
    return rows


def started(stack: ExitStack, runner: asyncio.Runner, folder: Path, backend: str, **limits: Any) -> LocalEngine:
    """A fresh engine over the same files, ready."""
    made = read(folder)
    name = backend.rpartition(" ")[2]
    engine = LocalEngine(
        [Model(made, partial(open_backend, name, made, device="cpu", dtype="float32"), name)], **limits
    )
    stack.callback(engine.close)
    engine.start()
    runner.run(engine.settled())
    assert engine.status().state == "ready", engine.status().error
    return engine


def running(stack: ExitStack, folder: Path, backend: str, tolerance: float | None = None) -> Running:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on models this small the others only wait for one another
    stack.callback(torch.set_num_threads, threads)
    if backend == "padded torch":
        devices: Any = import_module("vecgate.backends.torch").devices
        cpu = devices.cpu
        stack.enter_context(patch.object(devices, "cpu", lambda fraction: replace(cpu(fraction), packs=False)))
    stack.enter_context(patch.object(warmup, "LENGTHS", (8,)))  # what a first forward costs is not tried here
    runner = stack.enter_context(asyncio.Runner())
    first = started(stack, runner, folder, backend)
    task = first.status().models[0].task
    queries = range(2) if task == "rerank" else range(1)

    async def alone(query: int) -> Vectors:
        return np.concatenate([await _rows(first, query, [text]) for text in POOL])

    rows = tuple(runner.run(alone(query)) for query in queries)
    others = [
        started(stack, runner, folder, backend),
        started(stack, runner, folder, backend, max_rows=3, batch_tokens=96),
    ]
    return Running(runner, (first, *others), rows * (2 // len(rows)), tolerance or TOLERANCE[task])


@pytest.fixture(scope="module", params=ONES, ids=lambda one: f"{one[1]}-{one[0].replace(' ', '-')}")
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    backend, kind = request.param
    with ExitStack() as stack:
        yield running(stack, build(kind, tmp_path_factory.mktemp(kind)), backend)


@settings(max_examples=12)
@given(mix=mixes(len(POOL)), at=st.integers(0, 2))
def test_a_text_has_one_row(one: Running, mix: Mix, at: int) -> None:
    assert one.moved(mix, at) <= one.tolerance


@pytest.fixture(scope="module", params=["torch", "mlx"])
def real(request: pytest.FixtureRequest, minilm: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        yield running(stack, minilm, request.param, MINILM)


@settings(max_examples=4)
@given(mix=mixes(8), at=st.integers(0, 2))
def test_a_text_has_one_row_of_the_default_model(real: Running, mix: Mix, at: int) -> None:
    assert real.moved(mix, at) <= real.tolerance


def test_texts_of_the_mixes_are_of_several_lengths_and_rows() -> None:
    """Else nothing here could fail."""
    assert len(set(POOL)) == len(POOL) > 12
    assert LONG in POOL
    assert len({len(text) for text in POOL}) > 8
