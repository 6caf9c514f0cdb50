"""What waits for the device: one queue per model, and `take`, the pure policy that makes a batch of it.

Knows nothing of threads: whoever adds and takes holds the lock.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

from vecgate.core import Backend, Tokens, Vectors

WINDOW_ROWS = 1024
"""Waiting rows that `take` looks at: enough to sort by length, few enough to stay far below a forward's time."""
WINDOW_BATCHES = 4
"""A call with a batch size shows at most this many of its batches in the window, so that others are seen too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one batch: computed tokens (pads included), rows, and the lengths rows are padded to."""

    tokens: int
    rows: int
    pad_lengths: tuple[int, ...] | None = None

    def computed(self, longest: int, total: int, rows: int) -> int:
        """Tokens that the device will really compute for `rows` rows."""
        return total if self.pad_lengths is None else rows * padded(longest, self.pad_lengths)


def padded(length: int, pad_lengths: Sequence[int]) -> int:
    """The shortest of the ascending `pad_lengths` that holds `length`; the length itself beyond the last."""
    at = bisect_left(pad_lengths, length)
    return pad_lengths[at] if at < len(pad_lengths) else length


class Ticket:
    """One call's rows on their way: made on the loop, filled in by the device thread, awaited by the call.

    waiting: rows not yet taken. gone: nobody waits for it any more.
    """

    def __init__(self, rows: Sequence[Tokens], batch_size: int | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.batch_size = batch_size
        self.vectors: Vectors | None = None
        self.count = self.left = len(rows)
        self.waiting = deque(Item(tokens, self, index) for index, tokens in enumerate(rows))
        self.gone = False
        self.queued_s = monotonic()
        self.started_s: float | None = None
        self.forward_s = 0.0

    @property
    def queue_s(self) -> float:
        """Seconds from submit until the first row's forward."""
        return (self.started_s or monotonic()) - self.queued_s


@dataclass(slots=True, eq=False)
class Item:
    """One waiting row."""

    tokens: Tokens
    ticket: Ticket
    index: int

    def __len__(self) -> int:
        return len(self.tokens)


def take(window: Sequence[Item], limits: Limits) -> list[int]:
    """Indices of the next batch out of `window` (arrival order), shortest row first.

    The oldest row is always in, so nothing starves. It is joined by the rows nearest to it in length: shorter ones
    first, since they cost no more padding, then longer ones, while the budget of computed tokens and the row limits
    (of the batch, of each call) hold. A row over the budget runs alone.
    """
    order = sorted(range(len(window)), key=lambda i: (len(window[i]), i))
    head = order.index(0)
    chosen = [0]
    total = longest = len(window[0])
    per_call = {window[0].ticket: 1}
    for i in (*reversed(order[:head]), *order[head + 1 :]):
        if len(chosen) == limits.rows:
            break
        item = window[i]
        grown = max(longest, len(item))
        if limits.computed(grown, total + len(item), len(chosen) + 1) > limits.tokens:
            if len(item) >= longest:
                break
            continue
        mine = per_call.get(item.ticket, 0)
        if item.ticket.batch_size is not None and mine >= item.ticket.batch_size:
            continue
        chosen.append(i)
        per_call[item.ticket] = mine + 1
        total, longest = total + len(item), grown
    return sorted(chosen, key=lambda i: (len(window[i]), i))


@dataclass(slots=True)
class Lane:
    """One model's queue: the calls that have rows waiting, oldest first, and how much that is in all."""

    model: str
    backend: Backend
    limits: Limits
    calls: dict[Ticket, None] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0

    def add(self, ticket: Ticket) -> None:
        self.calls[ticket] = None
        self._count(ticket.waiting, 1)

    def drop(self, ticket: Ticket) -> int:
        """Forget a call's waiting rows; how many they were."""
        if ticket not in self.calls:
            return 0
        del self.calls[ticket]
        dropped = len(ticket.waiting)
        self._count(ticket.waiting, -1)
        ticket.waiting.clear()
        return dropped

    def next(self) -> list[Item]:
        """The next batch, taken out of the queue."""
        window: list[Item] = []
        for ticket in self.calls:
            most = WINDOW_ROWS - len(window)
            if ticket.batch_size is not None:
                most = min(most, WINDOW_BATCHES * ticket.batch_size)
            window.extend(islice(ticket.waiting, most))
            if len(window) == WINDOW_ROWS:
                break
        items = [window[i] for i in take(window, self.limits)]
        self._count(items, -1)
        taken = set(items)
        for ticket, seen in Counter(item.ticket for item in window).items():
            shown = [ticket.waiting.popleft() for _ in range(seen)]
            ticket.waiting.extendleft(item for item in reversed(shown) if item not in taken)
            if not ticket.waiting:
                del self.calls[ticket]
        return items

    @property
    def since_s(self) -> float:
        """When the call that waits longest came."""
        return next(iter(self.calls)).queued_s

    def _count(self, items: Iterable[Item], sign: int) -> None:
        for item in items:
            self.rows += sign
            self.tokens += sign * len(item)
