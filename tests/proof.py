"""Both sides of the comparison: the reference in its own process, and a checkpoint served by the engine on one backend."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Literal
from unittest.mock import patch

import numpy as np
import torch

from tests.families import Case
from tests.tiny import build
from vecgate.backends import open_backend
from vecgate.core import Call, Checkpoint, Vectors
from vecgate.engine import warmup
from vecgate.engine.checkpoint import read
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model, prompt_of

SCRIPT = Path(__file__).parents[1] / "src" / "vecgate" / "engine" / "reference.py"
POLL_S = 0.01
MIXED = 8
"""Rows of a batch, the next in length to one another: all at once, every row would be as long as the longest."""
Way = Literal["alone", "mixed", "shuffled", "concurrent"]
WAYS: tuple[Way, ...] = ("alone", "mixed", "shuffled", "concurrent")


class Reference:
    """`with Reference(folder, cases) as reference`: builds every kind while the process computes those that are built."""

    def __init__(self, folder: Path, cases: Sequence[Case]) -> None:
        self._folder = folder
        self._cases = cases
        self._answers = folder / "answers"
        self._built: Queue[Case | None] = Queue()

    def __enter__(self) -> Reference:
        self._answers.mkdir(parents=True)
        self._log = (self._folder / "reference.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, SCRIPT, "--cases", self._answers],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._thread = threading.Thread(target=self._tell)
        self._thread.start()
        for case in self._cases:
            for kind in {case.kind, case.twin or case.kind}:
                if not self.folder(kind).exists():
                    build(kind, self.folder(kind))
            self._built.put(case)
        self._built.put(None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._log.close()

    def _tell(self) -> None:
        """Hand over each case that is built; on a thread, since a pipe holds only a few."""
        lines = self._process.stdin
        assert lines is not None
        with suppress(BrokenPipeError), lines:
            while case := self._built.get():
                lines.write(json.dumps(case.told(self.folder(case.twin or case.kind))).encode() + b"\n")
                lines.flush()

    def folder(self, kind: str) -> Path:
        return self._folder / kind

    def checkpoint(self, case: Case) -> Checkpoint:
        return read(self.folder(case.kind), case.name)

    def rows(self, case: Case) -> Vectors:
        """(N, D) in the order of what is asked: of length 1 from an embedder, logits from a reranker."""
        rows: Vectors = self._answer(case)["rows"]
        return rows if case.task == "rerank" else unit(rows)

    def ids(self, case: Case) -> list[list[int]]:
        found = self._answer(case)
        return [part.tolist() for part in np.split(found["ids"], np.cumsum(found["lengths"])[:-1])]

    def _answer(self, case: Case) -> dict[str, np.ndarray]:
        path = self._answers / f"{case.kind}.npz"
        while not path.exists():
            ended = self._process.poll()
            if ended is not None and not path.exists():
                raise AssertionError((self._folder / "reference.log").read_text()[-3000:])
            time.sleep(POLL_S)
        with np.load(path) as held:
            return dict(held)


class Served:
    """`with Served(checkpoint, "mlx") as served`: the engine with this model alone, loaded, asked as a protocol asks it.

    torch gets one thread: on models this small the others only wait for one another, which takes ten times as long.
    """

    def __init__(self, checkpoint: Checkpoint, backend: str, dtype: str = "auto") -> None:
        opened = partial(open_backend, backend, checkpoint, device="cpu", dtype=dtype)
        self._model = Model(replace(checkpoint), opened, backend)
        self._engine = LocalEngine([self._model], max_rows=MIXED)

    def __enter__(self) -> Served:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._runner = asyncio.Runner()
        with patch.object(warmup, "LENGTHS", (8,)):
            self._engine.start()
            self._runner.run(self._engine.settled())
        assert self._model.state == "ready", self._model.error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._engine.close()
        self._runner.close()
        torch.set_num_threads(self._threads)

    def ids(self, case: Case) -> list[list[int]]:
        """Every row's token ids as the engine makes them, in the order of what is asked."""
        checkpoint, words = self._model.checkpoint, self._model.tokenizer
        most = checkpoint.max_tokens
        if case.task == "rerank":
            return [words.encode_pairs(query, [text], most, "end")[0].ids.tolist() for query, text in case.pairs]
        asked = [(prompt_of(checkpoint, role)[1], text) for role, text in case.asked]
        return [words.encode([text], prompt, most, "end")[0].ids.tolist() for prompt, text in asked]

    def rows(self, case: Case, way: Way, places: Sequence[int] | None = None) -> Vectors:
        """(N, D) in the order of what is asked, or of these places in it."""
        asked: list[tuple[str | None, str]] = [*case.pairs] if case.task == "rerank" else case.asked
        asked = asked if places is None else [asked[place] for place in places]
        ask = self._logits if case.task == "rerank" else self._vectors
        order = np.random.default_rng(5).permutation(len(asked)) if way == "shuffled" else np.arange(len(asked))
        groups = _grouped([asked[at] for at in order], single=way in ("alone", "concurrent"))
        found = self._runner.run(_together(ask, groups) if way == "concurrent" else _one_after_the_other(ask, groups))
        rows = np.empty((len(asked), found[0].shape[1]), np.float32)
        for (_, _, at), part in zip(groups, found, strict=True):
            rows[order[at]] = part
        return rows

    async def _vectors(self, role: str | None, texts: Sequence[str]) -> Vectors:
        return (await self._engine.embed(Call("proof"), None, texts, role=role)).vectors

    async def _logits(self, query: str | None, documents: Sequence[str]) -> Vectors:
        ranking = await self._engine.rerank(Call("proof"), None, query or "", documents)
        rows = np.empty((len(documents), 1), np.float32)
        rows[[*ranking.order], 0] = ranking.raw
        return rows


Group = tuple[str | None, list[str], list[int]]
Ask = Callable[[str | None, Sequence[str]], Awaitable[Vectors]]


def _grouped(asked: Sequence[tuple[str | None, str]], *, single: bool) -> list[Group]:
    """(role or query, texts, their places) of each call: one a text, or one a role."""
    if single:
        return [(role, [text], [at]) for at, (role, text) in enumerate(asked)]
    groups: dict[str | None, Group] = {}
    for at, (role, text) in enumerate(asked):
        _, texts, places = groups.setdefault(role, (role, [], []))
        texts.append(text)
        places.append(at)
    return [*groups.values()]


async def _one_after_the_other(ask: Ask, groups: Sequence[Group]) -> list[Vectors]:
    return [await ask(role, texts) for role, texts, _ in groups]


async def _together(ask: Ask, groups: Sequence[Group]) -> list[Vectors]:
    return [*await asyncio.gather(*(ask(role, texts) for role, texts, _ in groups))]


def unit(rows: Vectors) -> Vectors:
    wide = rows.astype(np.float64)
    normal: Vectors = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return normal
