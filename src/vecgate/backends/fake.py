"""Deterministic rows from token ids, scriptable in tests: the only fake there is.

Stands in for a device, so it knows nothing of engines, HTTP or real models; it needs numpy alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vecgate.core import BackendCard, Batch, Checkpoint, Ids, Memory, Tokens, Vectors
from vecgate.errors import BackendFailed, NoRoom, OutOfMemory
from vecgate.ram import usable_bytes

NUMBER_BYTES = 24
"""What one number of a row takes per token while it is computed: the mixed cells, their successors, float64."""
HOLD_S = 60.0
"""Longest wait on `Script.hold`, so that a test that forgets to set it ends."""


@dataclass(slots=True)
class Script:
    """What a test tells the fake to do, and what the fake tells the test; read and written from any thread.

    hold: wait for it before computing. entered: set when a forward begins. failure: an exception for a row, or None.
    once: exceptions the next forwards raise, one each. nan_ids, zero_ids: a row holding one of them is not finite, or
    has no norm. most_tokens: a batch with more (padded) tokens raises OutOfMemory. forward_s: what a batch takes.
    rows: how many were computed. batches, threads: those of every forward, failed ones too.
    """

    hold: threading.Event | None = None
    failure: Callable[[Tokens], Exception | None] | None = None
    once: list[Exception] = field(default_factory=list)
    nan_ids: frozenset[int] = frozenset()
    zero_ids: frozenset[int] = frozenset()
    most_tokens: int | None = None
    forward_s: float = 0.0
    entered: threading.Event = field(default_factory=threading.Event)
    rows: int = 0
    batches: list[Batch] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    trims: int = 0
    closed: bool = False


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory_fraction: float = 0.8,
    others: Sequence[Checkpoint] = (),
    script: Script | None = None,
    dimensions: int | None = None,
    pad_lengths: tuple[int, ...] | None = None,
    batch_tokens: int = 2048,
) -> Fake:
    """A fake of the checkpoint's task. Width: `dimensions`, else the config's hidden_size, else 8; 1 for a reranker.

    device and dtype are those of every backend, and change nothing here. Raises NoRoom where the weights (of which
    nothing is read) and the longest row do not fit memory_fraction of the memory beside the weights of the
    others; a batch is cut to what does.
    """
    width = 1 if checkpoint.task == "rerank" else dimensions or int(checkpoint.config.get("hidden_size", 8))
    limit_bytes = int(memory_fraction * usable_bytes())
    room_tokens = _room_tokens(checkpoint, width, limit_bytes, sum(one.weight_bytes for one in others))
    card = BackendCard(
        "fake", "cpu", "float32", width, pad_lengths, min(batch_tokens, room_tokens), checkpoint.weight_bytes
    )
    followed = script or Script()
    followed.closed = False
    return Fake(card, followed, limit_bytes, rerank=checkpoint.task == "rerank", recorded=script is not None)


def _room_tokens(checkpoint: Checkpoint, width: int, limit_bytes: int, others: int) -> int:
    """How many tokens there is room for at once; raises NoRoom where they are fewer than the longest row's."""
    token_bytes = NUMBER_BYTES * width
    room_tokens = (limit_bytes - checkpoint.weight_bytes - others) // token_bytes
    beside = f", the other models {others}" if others else ""
    if room_tokens < checkpoint.max_tokens:
        raise NoRoom(
            f"{checkpoint.name} needs {checkpoint.weight_bytes} bytes for its weights and "
            f"{checkpoint.max_tokens * token_bytes} for its longest input{beside}: more than DEVICE_MEMORY_FRACTION "
            f"allows, {limit_bytes}."
        )
    return room_tokens


class Fake:
    """A backend whose rows depend on the row's own ids and on nothing else."""

    def __init__(self, card: BackendCard, script: Script, limit_bytes: int, *, rerank: bool, recorded: bool) -> None:
        self.card = card
        self._limit_bytes = limit_bytes
        self.script = script
        self._rerank = rerank
        self._recorded = recorded  # without a script nobody reads the batches, and a long run would hold them all

    def forward(self, batch: Batch) -> Vectors:
        self._follow(batch)
        rows = np.zeros((len(batch.rows), self.card.dimensions), np.float32)
        for index, row in enumerate(batch.rows):
            rows[index] = self._row(row)
        self.script.rows += len(batch.rows)
        return rows

    def memory(self) -> Memory:
        return Memory(active_bytes=0 if self.script.closed else self.card.weight_bytes, limit_bytes=self._limit_bytes)

    def trim(self) -> None:
        self.script.trims += 1

    def close(self) -> None:
        self.script.closed = True

    def _follow(self, batch: Batch) -> None:
        script = self.script
        if script.closed:
            raise BackendFailed("The model is closed.")
        if self._recorded:
            script.batches.append(batch)
            script.threads.append(threading.get_ident())
        script.entered.set()
        if script.hold is not None and not script.hold.wait(HOLD_S):
            raise BackendFailed(f"The fake was held for {HOLD_S:.0f} s.")
        if script.forward_s:
            threading.Event().wait(script.forward_s)
        if script.once:
            raise script.once.pop(0)
        most_tokens = script.most_tokens  # read once: another thread may be at it
        if most_tokens is not None and _padded(batch, self.card.pad_lengths) > most_tokens:
            raise OutOfMemory(f"The fake has room for {most_tokens} tokens.")
        for row in batch.rows if script.failure else ():
            error = script.failure(row) if script.failure else None
            if error is not None:
                raise error

    def _row(self, row: Tokens) -> Vectors:
        ids = set(row.ids.tolist())
        if ids & self.script.nan_ids:
            return np.full(self.card.dimensions, np.nan, np.float32)
        if ids & self.script.zero_ids:
            return np.zeros(self.card.dimensions, np.float32)
        return logit(row) if self._rerank else vector(row.ids, self.card.dimensions)


def vector(ids: Ids, dimensions: int) -> Vectors:
    """(D,) sum of one pseudo-random vector per id, earlier ids weighing a little more; shared ids mean a higher cosine."""
    if not len(ids):
        return np.zeros(dimensions, np.float32)
    cells = ids.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    cells = _mixed(cells + np.arange(1, dimensions + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    values = cells.astype(np.float64) / 2.0**63 - 1.0  # uniform in [-1, 1)
    weights = 1.0 + 0.25 / np.arange(1, len(ids) + 1)
    summed: Vectors = (weights @ values / len(ids)).astype(np.float32)
    return summed


def logit(row: Tokens) -> Vectors:
    """(1,) in [-4.x, 4]: the share of the query's distinct ids that the document has; among equals the shorter wins."""
    query, document = (set(part.tolist()) for part in np.split(row.ids, [row.second or len(row.ids)]))
    shared, extra = len(query & document), len(document - query)
    score = 8.0 * (shared - 0.5 * extra / (1 + extra)) / max(len(query), 1) - 4.0
    return np.array([score], np.float32)


def _mixed(cells: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    """splitmix64's finaliser, which makes neighbouring integers look unrelated."""
    cells = (cells ^ (cells >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    cells = (cells ^ (cells >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cells ^ (cells >> np.uint64(31))


def _padded(batch: Batch, pad_lengths: tuple[int, ...] | None) -> int:
    if pad_lengths is None:
        return sum(len(row) for row in batch.rows)
    longest = max((len(row) for row in batch.rows), default=0)
    return len(batch.rows) * next((length for length in pad_lengths if length >= longest), longest)
