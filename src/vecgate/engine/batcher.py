"""The batcher: `take`, the pure policy, and Batcher, the queues with the one thread that owns the device.

Rows of all calls wait in one queue per model; whenever the device is free the next batch is whatever waits, up to a
token budget. No timer, no polling. Knows Tokens and Backend, neither texts nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

import numpy as np

from vecgate.core import Backend, Batch, BatchReport, Queue, Tokens, Vectors
from vecgate.errors import BackendFailed, VecgateError

log = logging.getLogger("vecgate.batcher")
T = TypeVar("T")

WINDOW_ROWS = 1024
"""Waiting rows that `take` looks at: enough to sort by length, few enough to stay far below a forward's time."""
HUNG_AFTER_S = 120.0
"""A forward this long that is also 20 times longer than any before it counts as hung."""


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
    """One call's rows on their way: made on the loop, filled in by the device thread, awaited by the call."""

    def __init__(self, count: int, batch_size: int | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.batch_size = batch_size
        self.vectors: Vectors | None = None
        self.left = count
        self.count = count
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
    """One model's queue."""

    model: str
    backend: Backend
    limits: Limits
    waiting: deque[Item] = field(default_factory=deque)


class Batcher:
    """The queues and the device thread: load, forward, trim and close of every model happen on this thread only."""

    def __init__(self, on_batch: Callable[[BatchReport], None] | None = None) -> None:
        self._on_batch = on_batch or (lambda report: None)
        self._lanes: dict[str, Lane] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._busy_since: float | None = None
        self._longest_s = 0.0
        self._tokens_per_s: float | None = None
        self._running: list[Item] = []
        self.on_death: Callable[[BaseException], None] = lambda error: None
        self._thread = threading.Thread(target=self._live, name="vecgate-device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Let the current batch end, refuse what waits, stop the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def run(self, job: Callable[[], T]) -> Future[T]:
        """`job()` on the device thread, before any waiting batch."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - not handled here: the future hands it to whoever waits
                future.set_exception(error)

        with self._wake:
            self._jobs.append(call)
            self._wake.notify()
        return future

    def open(self, model: str, backend: Backend, limits: Limits) -> None:
        """A queue for a loaded model."""
        with self._wake:
            self._lanes[model] = Lane(model, backend, limits)

    async def submit(self, model: str, rows: Sequence[Tokens], batch_size: int | None = None) -> Ticket:
        """Wait for every row; `ticket.vectors` is (N, D) in the order of `rows`. Cancelling drops what still waits.

        Raises BackendFailed when a row of this call failed.
        """
        ticket = Ticket(len(rows), batch_size)
        if not rows:
            return ticket
        items = [Item(tokens, ticket, index) for index, tokens in enumerate(rows)]
        with self._wake:
            if self._closed:
                raise BackendFailed("The engine is shutting down.")
            self._lanes[model].waiting.extend(items)
            self._wake.notify()
        try:
            await ticket.done
        finally:
            self._drop(model, ticket)
        return ticket

    def _drop(self, model: str, ticket: Ticket) -> None:
        """Take a call's waiting rows out of the queue once nobody waits for them."""
        ticket.gone = True
        if ticket.left == 0:
            return
        with self._wake:
            lane = self._lanes[model]
            kept = deque(item for item in lane.waiting if item.ticket is not ticket)
            dropped = len(lane.waiting) - len(kept)
            lane.waiting = kept
        if dropped:
            self._on_batch(BatchReport(model, 0, 0, 0, 0.0, (), dropped_rows=dropped))

    def queue(self) -> Queue:
        with self._wake:
            rows = [len(item) for lane in self._lanes.values() for item in lane.waiting]
        return Queue(len(rows), sum(rows), self._tokens_per_s)

    @property
    def busy_s(self) -> float | None:
        since = self._busy_since
        return None if since is None else monotonic() - since

    @property
    def alive(self) -> bool:
        busy_s = self.busy_s or 0.0
        return self._thread.is_alive() and not (busy_s > HUNG_AFTER_S and busy_s > 20 * self._longest_s)

    def _live(self) -> None:
        """The device thread; whatever ends it is told to every waiting call and to `on_death`."""
        error: BaseException = BackendFailed("The engine is shutting down.")
        try:
            while self._step():
                pass
        except BaseException as death:
            log.critical("The device thread died: %r", death, exc_info=True)
            error = BackendFailed("The device thread died.")
            self.on_death(death)
        finally:
            with self._wake:
                self._closed = True
                waiting = [item for lane in self._lanes.values() for item in lane.waiting]
                for lane in self._lanes.values():
                    lane.waiting.clear()
            self._answer(self._running + waiting, error)

    def _step(self) -> bool:
        with self._wake:
            while not (self._closed or self._jobs or any(lane.waiting for lane in self._lanes.values())):
                self._wake.wait()
            if self._closed and not self._jobs:
                return False
            job = self._jobs.popleft() if self._jobs else None
            lane, items = (None, []) if job else self._next()
        if job is not None:
            job()
        elif lane is not None and items:
            self._run(lane, items)
        return True

    def _next(self) -> tuple[Lane, list[Item]]:
        """The lane whose head has waited longest, and its next batch, taken out of the queue; the lock is held."""
        lane = min(
            (lane for lane in self._lanes.values() if lane.waiting), key=lambda lane: lane.waiting[0].ticket.queued_s
        )
        window = [lane.waiting.popleft() for _ in range(min(len(lane.waiting), WINDOW_ROWS))]
        window = [item for item in window if not item.ticket.gone]
        if not window:
            return lane, []
        chosen = take(window, lane.limits)
        taken = set(chosen)
        lane.waiting.extendleft(window[i] for i in reversed(range(len(window))) if i not in taken)
        return lane, [window[i] for i in chosen]

    def _run(self, lane: Lane, items: list[Item]) -> None:
        self._running = items
        self._busy_since = started_s = monotonic()
        try:
            outcomes = self._forward(lane, items)
        finally:
            self._busy_since = None
        took_s = monotonic() - started_s
        self._longest_s = max(self._longest_s, took_s)
        self._running = []
        self._report(lane, items, outcomes, started_s, took_s)
        for ticket in {item.ticket for item in items}:
            ticket.started_s = ticket.started_s or started_s
            ticket.forward_s += took_s
        self._deliver(items, outcomes)

    def _forward(self, lane: Lane, items: list[Item]) -> list[Vectors | VecgateError]:
        """One row or error per item; a batch that fails is run again row by row, so that one bad row fails one call."""
        try:
            rows = lane.backend.forward(Batch(tuple(item.tokens for item in items)))
        except Exception as error:  # whatever a model or its library throws must cost only the rows that cause it
            if len(items) == 1:
                log.error("A row of %d tokens failed.", len(items[0]), exc_info=True)
                return [error if isinstance(error, VecgateError) else BackendFailed("The model failed on this input.")]
            why = type(error).__name__  # its message may hold a client's text
            log.warning("A batch of %d rows failed (%s) and is run again row by row.", len(items), why)
            alone = [item for item in items if not item.ticket.gone]
            answers = {item: self._forward(lane, [item])[0] for item in alone}
            return [answers.get(item, BackendFailed("Its call had left.")) for item in items]
        return [row if np.isfinite(row).all() else _nonfinite() for row in rows]

    def _report(
        self,
        lane: Lane,
        items: list[Item],
        outcomes: list[Vectors | VecgateError],
        started_s: float,
        took_s: float,
    ) -> None:
        total = sum(len(item) for item in items)
        rate = total / max(took_s, 1e-6)
        self._tokens_per_s = rate if self._tokens_per_s is None else 0.8 * self._tokens_per_s + 0.2 * rate
        self._on_batch(
            BatchReport(
                model=lane.model,
                rows=len(items),
                tokens=total,
                padded_tokens=lane.limits.computed(len(items[-1]), total, len(items)),
                forward_s=took_s,
                queue_s=tuple(started_s - item.ticket.queued_s for item in items),
                failed_rows=sum(isinstance(outcome, VecgateError) for outcome in outcomes),
                nonfinite_rows=sum(isinstance(outcome, _NonFinite) for outcome in outcomes),
            )
        )

    def _deliver(self, items: list[Item], outcomes: list[Vectors | VecgateError]) -> None:
        """Rows into their call's matrix; one wake-up per loop for all calls that are complete or failed."""
        failed: dict[VecgateError, list[Item]] = {}
        complete = []
        for item, outcome in zip(items, outcomes, strict=True):
            ticket = item.ticket
            if isinstance(outcome, VecgateError):
                failed.setdefault(outcome, []).append(item)
                continue
            if ticket.vectors is None:
                ticket.vectors = np.empty((ticket.count, outcome.shape[0]), np.float32)
            ticket.vectors[item.index] = outcome
            ticket.left -= 1
            if ticket.left == 0:
                complete.append(item)
        if complete:
            self._answer(complete, None)
        for error, bad in failed.items():
            self._answer(bad, error)

    def _answer(self, items: list[Item], error: BaseException | None) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        for ticket in dict.fromkeys(item.ticket for item in items):
            by_loop.setdefault(ticket.loop, []).append(ticket)
        for loop, tickets in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, tickets, error)


class _NonFinite(BackendFailed):
    pass


def _nonfinite() -> _NonFinite:
    return _NonFinite("The model gave a row that is not finite for this input.")


def _wake(tickets: list[Ticket], error: BaseException | None) -> None:
    """On the loop: end the calls that still wait."""
    for ticket in tickets:
        if ticket.done.done():
            continue
        if error is None:
            ticket.done.set_result(None)
        else:
            ticket.done.set_exception(error)
