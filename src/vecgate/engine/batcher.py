"""The batcher: the queues with the one thread that owns the device.

Rows of all calls wait in one queue per model (waiting.py); whenever the device is free the next batch is whatever waits, up
to a token budget. No timer, no polling. Knows Tokens and Backend, neither texts nor HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import numpy as np

from vecgate.core import BatchReport, Memory, Queue, Tokens
from vecgate.engine.attempt import Attempt, Outcome, where
from vecgate.engine.probe import Probe
from vecgate.engine.waiting import Item, Lane, Limits, Ticket
from vecgate.errors import NotReady, VecgateError
from vecgate.traits import Backend

log = logging.getLogger("vecgate.batcher")
T = TypeVar("T")

HUNG_AFTER_S = 120.0
HUNG_TIMES = 20.0
"""A forward this long that is also so many times longer than any before it counts as hung."""
STUCK_AFTER_S = 600.0
"""One that has hung this long is not waited for any more."""
MEMORY_EVERY_S = 0.25
"""How often the device's memory is read, between two batches."""
TRIM_OVER = 0.9
"""Cached device memory is given back once it and what is in use exceed this share of the bound."""
IDLE_S = 10.0
"""And once the device has had nothing to do for so long."""


class Batcher:
    """The queues and the device thread: load, forward, trim and close of every model happen on this thread only."""

    def __init__(self, on_batch: Callable[[BatchReport], None] | None = None) -> None:
        self._on_batch = on_batch or (lambda report: None)
        self._lanes: dict[str, Lane] = {}
        self._level_s = 0.0
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._wake = threading.Condition()
        self._closed = self._ended = False
        self._busy_since: float | None = None
        self._longest_s = 0.0
        self._running: list[Item] = []
        self.memory: Memory | None = None
        self._memory_read_s = 0.0
        self._untrimmed = False
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
        """`job()` on the device thread, before any waiting batch; who stops waiting for it does not stop it.

        It fails with NotReady where the thread ends before it.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # several may wait for it, and one of them may leave
        with self._wake:
            if self._ended:
                future.set_exception(_ended())
            else:
                self._jobs.append((future, job))
                self._wake.notify()
        return future

    def open(
        self,
        model: str,
        backend: Backend,
        limits: Limits,
        tokens_per_s: float | None = None,
        probe: Probe | None = None,
    ) -> None:
        """A queue for a loaded model; the rate is a first guess, and so is the budget where there is a probe."""
        with self._wake:
            self._lanes[model] = Lane(model, backend, limits, probe, tokens_per_s=tokens_per_s)
            self._untrimmed = True  # what the warm-up left
            self._wake.notify()

    async def submit(self, model: str, rows: Sequence[Tokens], batch_size: int | None = None) -> Ticket:
        """Wait for every row; `ticket.vectors` is (N, D) in the order of `rows`. Cancelling drops what still waits.

        Raises BackendFailed when a row of this call failed, NotReady when the device thread has ended.
        """
        ticket = Ticket(rows, batch_size)
        if not rows:
            return ticket
        with self._wake:
            if self._closed:
                raise _ended()
            self._enter(self._lanes[model], ticket)
            self._wake.notify()
        try:
            await ticket.done
        finally:
            self._leave(model, ticket)
        return ticket

    def _enter(self, lane: Lane, ticket: Ticket) -> None:
        """A lane that was empty begins where the one served last stood: time it did not need is not saved up."""
        if not lane.calls:
            lane.spent_s = max(lane.spent_s, self._level_s)
        lane.add(ticket)

    @contextmanager
    def coming(self, model: str, tokens: int) -> Iterator[None]:
        """About so many tokens are being made ready for `submit`: they count as waiting."""
        lane = self._lanes[model]
        lane.coming_tokens += tokens
        try:
            yield
        finally:
            lane.coming_tokens -= tokens

    def wait_s(self, tokens: int, model: str | None = None) -> float:
        """Seconds until the device has done what goes before a new call of so many tokens, for that model, or for the one
        with the least to do; 0 until the rates are known."""
        if model is not None:
            return self._lanes[model].ahead_s(tokens)
        return min((lane.ahead_s(tokens) for lane in self._lanes.values()), default=0.0)

    def budget(self, model: str) -> tuple[int, int] | None:
        """Computed tokens of a batch, as they should be and as they are now; None until the model is open."""
        lane = self._lanes.get(model)
        return None if lane is None else (lane.most_tokens, lane.limits.tokens)

    def _leave(self, model: str, ticket: Ticket) -> None:
        """Nobody waits for the call any more: what it has waiting is forgotten at once."""
        ticket.gone = True
        if ticket.left == 0:
            return
        with self._wake:
            dropped = self._lanes[model].drop(ticket)
        if dropped:
            self._on_batch(BatchReport(model, 0, 0, 0, 0.0, (), dropped_rows=dropped))

    def queue(self) -> Queue:
        lanes = tuple(self._lanes.values())
        rates = [lane.tokens_per_s for lane in lanes if lane.tokens_per_s is not None]
        return Queue(
            items=sum(lane.rows for lane in lanes),
            tokens=sum(lane.tokens for lane in lanes),
            tokens_per_s=max(rates, default=None),
            wait_s=sum(lane.wait_s for lane in lanes),
        )

    @property
    def busy_s(self) -> float | None:
        since = self._busy_since
        return None if since is None else monotonic() - since

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._hangs(HUNG_AFTER_S)

    @property
    def stuck(self) -> bool:
        """Whether the forward under way has hung for so long that it will not end."""
        return self._hangs(STUCK_AFTER_S)

    def _hangs(self, after_s: float) -> bool:
        busy_s = self.busy_s or 0.0
        return busy_s > after_s and busy_s > HUNG_TIMES * self._longest_s

    def _live(self) -> None:
        """The device thread; whatever ends it is told to every waiting call and to `on_death`."""
        try:
            while self._step():
                pass
        except BaseException as death:  # noqa: BLE001 - logged, told to every call, and the process ends
            log.critical("The device thread died: %s", type(death).__name__, extra=where(death))
            self.on_death(death)
        finally:
            with self._wake:
                self._closed = self._ended = True
                jobs = [future for future, _ in self._jobs]
                waiting = [ticket for lane in self._lanes.values() for ticket in lane.calls]
                for lane in self._lanes.values():
                    for ticket in waiting:
                        lane.drop(ticket)
            for future in jobs:
                future.set_exception(_ended())
            self._answer([*(item.ticket for item in self._running), *waiting], _ended())

    def _step(self) -> bool:
        with self._wake:
            while not (self._closed or self._jobs or any(lane.calls for lane in self._lanes.values())):
                if not self._wake.wait(IDLE_S if self._untrimmed else None):
                    break
            if self._closed and not self._jobs:
                return False
            job = self._jobs.popleft() if self._jobs else None
            waiting = [lane for lane in self._lanes.values() if lane.calls]
            if job is None and waiting:
                lane = min(waiting, key=lambda lane: lane.spent_s)
                self._level_s = lane.spent_s
                items = self._running = lane.next()
        if job is not None:
            _do(*job)
        elif waiting:
            self._run(lane, items)
        else:
            self._rest()
        return True

    def _run(self, lane: Lane, items: list[Item]) -> None:
        self._busy_since = started_s = monotonic()
        attempt = Attempt(lane.backend, lane.limits)
        try:
            attempt.run(items)
        finally:
            self._busy_since = None
        took_s = monotonic() - started_s
        self._longest_s = max(self._longest_s, took_s)
        for ticket in {item.ticket for item in items}:
            ticket.started_s = ticket.started_s or started_s
            ticket.forward_s += took_s
        self._learn(lane, items, attempt, took_s)
        self._report(lane, items, attempt, started_s, took_s)
        self._deliver(lane, [attempt.outcomes[item] for item in items], items)
        self._running = []
        if not (attempt.again or attempt.no_room):
            self._try(lane, items, monotonic() - started_s)
        self._untrimmed = True
        self._watch_memory(lane)

    def _try(self, lane: Lane, items: list[Item], took_s: float) -> None:
        probe = lane.probe
        with self._wake:
            found = lane.tried(items, took_s)
        if probe is not None and found is not None:
            log.info("%s is fastest, or nearly so, with %d tokens a batch.", lane.model, found)
            probe.on_found(found)

    def _learn(self, lane: Lane, items: list[Item], attempt: Attempt, took_s: float) -> None:
        """What a batch says of the device: its rate, and whether it has room."""
        with self._wake:
            lane.spent_s += took_s
            if attempt.no_room is not None:
                lane.shrink(attempt.no_room)
                told = lane.model, lane.limits.tokens, lane.most_tokens
                log.warning("%s has no room for its batches: %d tokens each for now, instead of %d.", *told)
            elif not attempt.again:
                lane.measure(items, took_s)
                lane.recover(items)

    def _watch_memory(self, lane: Lane) -> None:
        if monotonic() - self._memory_read_s < MEMORY_EVERY_S:
            return
        self.memory = memory = lane.backend.memory()
        self._memory_read_s = monotonic()
        lane.enough_bytes = memory.enough_bytes
        if _keeps_too_much(memory, max(one.enough_bytes or 0 for one in self._lanes.values())):
            lane.backend.trim()

    def _rest(self) -> None:
        """Nothing has come for a while: what is kept for reuse goes back."""
        self._untrimmed = False
        for lane in self._lanes.values():
            lane.backend.trim()
            self.memory = lane.backend.memory()

    def _report(self, lane: Lane, items: list[Item], attempt: Attempt, started_s: float, took_s: float) -> None:
        outcomes = attempt.outcomes.values()
        total = sum(len(item) for item in items)
        self._on_batch(
            BatchReport(
                model=lane.model,
                rows=len(items),
                tokens=total,
                padded_tokens=lane.limits.computed(len(items[-1]), total, len(items)),
                forward_s=took_s,
                queue_s=tuple(started_s - item.ticket.queued_s for item in items),
                failed_rows=sum(isinstance(outcome, VecgateError) for outcome in outcomes),
                nonfinite_rows=attempt.nonfinite,
                dropped_rows=sum(outcome is None for outcome in outcomes),
            )
        )

    def _deliver(self, lane: Lane, outcomes: list[Outcome], items: list[Item]) -> None:
        """Rows into their call's matrix; one wake-up per loop for all calls that are complete."""
        failed: dict[VecgateError, list[Ticket]] = {}
        complete = []
        for item, outcome in zip(items, outcomes, strict=True):
            ticket = item.ticket
            if isinstance(outcome, VecgateError):
                failed.setdefault(outcome, []).append(ticket)
            elif outcome is not None:
                if ticket.vectors is None:
                    ticket.vectors = np.empty((ticket.count, outcome.shape[0]), np.float32)
                ticket.vectors[item.index] = outcome
                ticket.left -= 1
                if ticket.left == 0:
                    complete.append(ticket)
        self._answer(complete, None)
        for error, tickets in failed.items():
            with self._wake:
                for ticket in tickets:
                    lane.drop(ticket)  # nobody will see its other rows
            self._answer(tickets, error)

    def _answer(self, tickets: Iterable[Ticket], error: BaseException | None) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        for ticket in dict.fromkeys(tickets):
            by_loop.setdefault(ticket.loop, []).append(ticket)
        for loop, waiting in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, waiting, error)


def _keeps_too_much(memory: Memory, enough_bytes: int) -> bool:
    """enough_bytes: the most that a model likes to have kept; they may share what is kept."""
    held = memory.active_bytes + memory.cache_bytes
    over = memory.limit_bytes is not None and held > TRIM_OVER * memory.limit_bytes
    more = memory.enough_bytes is not None and memory.cache_bytes > enough_bytes
    return memory.cache_bytes > 0 and (over or more)


def _do(future: Future[T], job: Callable[[], T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001 - not handled here: the future hands it to whoever waits
        future.set_exception(error)


def _ended() -> NotReady:
    return NotReady("The server is going down; try again in a few seconds.")


def _wake(tickets: list[Ticket], error: BaseException | None) -> None:
    """On the loop: end the calls that still wait."""
    for ticket in tickets:
        if ticket.done.done():
            continue
        if error is None:
            ticket.done.set_result(None)
        else:
            ticket.done.set_exception(error)
