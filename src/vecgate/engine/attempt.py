"""One batch on the device, however it ends: a row or an error for every item.

Runs on the device thread; knows no queue.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vecgate.core import Batch, Vectors
from vecgate.engine.waiting import Item, Limits
from vecgate.errors import BackendFailed, OutOfMemory, VecgateError
from vecgate.traits import Backend

log = logging.getLogger("vecgate.batcher")

Outcome = Vectors | VecgateError | None
"""A row (D,), why there is none, or None: its call left before it was computed."""


class Unusable(BackendFailed):
    """A row that is not finite, or an embedding without any direction."""


@dataclass(slots=True)
class Attempt:
    """A batch's way over the device.

    outcomes: one per item. again: more than one forward was needed. nonfinite: rows that were not usable at first, those that were on the second try too.
    no_room: computed tokens of the smallest batch, of several rows, that the device had no memory for.
    """

    backend: Backend
    limits: Limits
    outcomes: dict[Item, Outcome] = field(default_factory=dict)
    again: bool = False
    nonfinite: int = 0
    no_room: int | None = None

    def run(self, items: Sequence[Item]) -> None:
        """Items come shortest row first. A batch without room is run again in halves, one that fails otherwise row by
        row, so that one bad row fails one call; a row that is not usable is tried once more, alone."""
        found = _forward(self.backend, items)
        if isinstance(found, OutOfMemory):
            self._without_room(items)
        elif isinstance(found, VecgateError):
            self._failed(items, found)
        else:
            self.outcomes.update(zip(items, found, strict=True))
            self._look_at(items)

    def _without_room(self, items: Sequence[Item]) -> None:
        self.again = True
        self.backend.trim()
        if len(items) > 1:
            tokens = self.limits.computed(len(items[-1]), sum(map(len, items)), len(items))
            self.no_room = min(tokens, self.no_room or tokens)
            middle = len(items) // 2
            self._again((items[:middle], items[middle:]))
        else:
            self._alone(items[0], _forward(self.backend, items))

    def _failed(self, items: Sequence[Item], error: VecgateError) -> None:
        if len(items) == 1:
            self.outcomes[items[0]] = error
            return
        self.again = True
        log.warning("A batch of %d rows failed and is run again row by row.", len(items))
        self._again([item] for item in items)

    def _again(self, parts: Iterable[Sequence[Item]]) -> None:
        """Each part as a batch of its own, without the rows whose call has left meanwhile."""
        for part in parts:
            left = [item for item in part if not item.ticket.gone]
            self.outcomes.update((item, None) for item in part if item.ticket.gone)
            if left:
                self.run(left)

    def _look_at(self, items: Sequence[Item]) -> None:
        for item in items:
            if not _usable(self.outcomes[item]):
                self.again = True
                self.nonfinite += 1
                self._alone(item, None if item.ticket.gone else _forward(self.backend, [item]))

    def _alone(self, item: Item, found: list[Vectors] | VecgateError | None) -> None:
        """The end of a row's second try."""
        outcome = found[0] if isinstance(found, list) else found
        if isinstance(outcome, np.ndarray) and not _usable(outcome):
            outcome = Unusable("The model gave no usable row for this input.", lasting=True)
        self.outcomes[item] = outcome


def _forward(backend: Backend, items: Sequence[Item]) -> list[Vectors] | VecgateError:
    """The rows of one forward, or why it failed as a whole.

    An error comes back without its frames: they would keep the failed batch's tensors alive during the next attempt.
    """
    try:
        rows = backend.forward(Batch(tuple(item.tokens for item in items)))
        if rows.shape[0] != len(items):
            raise BackendFailed(f"The model gave {rows.shape[0]} rows for {len(items)}.")
    except Exception as error:  # noqa: BLE001 - whatever a model or its library throws costs only the rows that cause it
        log.error("A forward of %d rows failed: %s", len(items), type(error).__name__, extra=where(error))
        failed = error if isinstance(error, VecgateError) else BackendFailed("The model failed on this input.")
        failed.__cause__ = failed.__context__ = None
        return failed.with_traceback(None)
    return list(rows)


def _usable(row: Outcome) -> bool:
    """Finite, and not all zero where it is a direction (a reranker's logit may be zero)."""
    return isinstance(row, np.ndarray) and bool(np.isfinite(row).all() and (row.shape[0] == 1 or row.any()))


def where(error: BaseException) -> dict[str, dict[str, str]]:
    """For the log: where it happened, without its message, which may hold a client's text."""
    return {"fields": {"stack": "".join(traceback.format_tb(error.__traceback__))}}
