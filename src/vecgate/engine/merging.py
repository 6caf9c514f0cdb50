"""Post: sends what waits together, so that what a trip costs is paid once for many; and again what was lost on the way.

Knows neither what it sends nor how.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vecgate.errors import BackendFailed, NotReady, Overloaded

TOGETHER = 128
"""Most items of one trip."""
ALONE = 8_000
"""An item of this size (characters) or more travels alone and at once: what it takes to compute is far more than a trip
costs, nobody waits for it, and to cancel it is to cancel its trip."""
TRIES = 6
"""Trips of one item: should it be what ends those that take it, it ends no more of them."""
FIRST_PAUSE_S = 0.1
"""Before the second trip; twice as long before each further one."""


class Lost(Exception):
    """Whoever took the trip ended before it answered. All we ask is a pure function, so it may be asked again."""


@dataclass(slots=True, eq=False)
class Item:
    """What waits for an outcome. trip, mates: once it is under way, and with whom."""

    content: Any
    size: int
    outcome: asyncio.Future[Any]
    tries: int = 0
    trip: asyncio.Task[Sequence[Any]] | None = None
    mates: Sequence[Item] = ()


Send = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
"""Contents -> an outcome for each, in their order, of which an exception is raised where it is awaited. Raises Lost."""


@dataclass(slots=True, eq=False)
class Post:
    """`ask` gives the outcome of one item. At most `lanes` trips of a kind are under way; what comes meanwhile waits and
    goes together. most: items that wait, over all kinds; more are Overloaded."""

    send: Send
    lanes: int = 2
    most: int = 4_096
    waiting: int = 0
    _queues: dict[Hashable, deque[Item]] = field(default_factory=dict)
    _under_way: Counter[Hashable] = field(default_factory=Counter)
    _trips: set[asyncio.Task[Sequence[Any]]] = field(default_factory=set)
    _pausing: set[Item] = field(default_factory=set)
    _closed: bool = False

    async def ask(self, kind: Hashable, content: Any, size: int) -> Any:
        """What comes back for it. Cancelled, it leaves the queue; and its trip ends, once nobody waits for that. Raises
        NotReady once the post is closed."""
        if self._closed:
            raise _going_down()
        item = Item(content, size, asyncio.get_running_loop().create_future())
        if size >= ALONE:
            self._start(None, [item])
        elif self.waiting >= self.most:
            raise Overloaded(f"{self.waiting} calls wait for an engine, the most at once; try again in 1 s.", 1)
        else:
            self._queues.setdefault(kind, deque()).append(item)
            self.waiting += 1
            self._next(kind)
        try:
            return await item.outcome
        finally:
            if item.trip and not item.trip.done() and all(mate.outcome.done() for mate in item.mates):
                item.trip.cancel()

    def close(self) -> None:
        """End every trip and start no other; whoever waits, in the queue or between two trips too, is told."""
        self._closed = True
        left = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        self.waiting = 0
        for item in (*left, *self._pausing):
            _settle(item, _going_down())
        self._pausing.clear()
        for trip in self._trips:
            trip.cancel()

    def _next(self, kind: Hashable) -> None:
        """Start trips for what waits of the kind, while there are lanes."""
        queue = self._queues.get(kind)
        while queue and self._under_way[kind] < self.lanes:
            taken = [queue.popleft() for _ in range(min(TOGETHER, len(queue)))]
            self.waiting -= len(taken)
            if items := [item for item in taken if not item.outcome.done()]:
                self._under_way[kind] += 1
                self._start(kind, items)
        if not queue and not self._under_way[kind]:
            self._queues.pop(kind, None)
            del self._under_way[kind]

    def _start(self, kind: Hashable | None, items: Sequence[Item]) -> None:
        """kind: whose lane it takes (None: nobody's)."""
        trip: asyncio.Task[Sequence[Any]] = asyncio.ensure_future(self._sent(items))
        self._trips.add(trip)
        for item in items:
            item.trip, item.mates = trip, items
            item.tries += 1
        trip.add_done_callback(partial(self._ended, kind, items))

    async def _sent(self, items: Sequence[Item]) -> Sequence[Any]:
        return await self.send([item.content for item in items])

    def _ended(self, kind: Hashable | None, items: Sequence[Item], trip: asyncio.Task[Sequence[Any]]) -> None:
        self._trips.discard(trip)
        if kind is not None:
            self._under_way[kind] -= 1
            self._next(kind)
        error = asyncio.CancelledError() if trip.cancelled() else trip.exception()
        if self._closed and isinstance(error, asyncio.CancelledError | Lost):
            error = _going_down()
        if isinstance(error, Lost):
            self._again(items)
            return
        outcomes = trip.result() if error is None else [error] * len(items)
        for item, outcome in zip(items, outcomes, strict=True):
            _settle(item, outcome)

    def _again(self, items: Sequence[Item]) -> None:
        """After a pause, all together once more, then each alone: one of them may be what ends who takes it."""
        left = [item for item in items if not item.outcome.done()]
        if not left:
            return
        tries = left[0].tries
        if tries == TRIES:
            told = f"{tries} engines in turn ended while they worked on this request; it is not tried again."
            for item in left:
                _settle(item, BackendFailed(told, lasting=True))
            return
        self._pausing.update(left)
        for group in [left] if tries == 1 else [[item] for item in left]:
            asyncio.get_running_loop().call_later(FIRST_PAUSE_S * 2 ** (tries - 1), self._restart, group)

    def _restart(self, items: Sequence[Item]) -> None:
        self._pausing.difference_update(items)
        if left := [item for item in items if not item.outcome.done()]:
            self._start(None, left)


def _going_down() -> NotReady:
    return NotReady("The server is going down; try again in a few seconds.")


def _settle(item: Item, outcome: Any) -> None:
    if item.outcome.done():
        return
    if isinstance(outcome, asyncio.CancelledError):
        item.outcome.cancel()
    elif isinstance(outcome, BaseException):
        item.outcome.set_exception(outcome)
    else:
        item.outcome.set_result(outcome)
