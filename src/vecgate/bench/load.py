"""Sending: so many clients that each wait for their answer, or requests that come when they come.

Knows requests as bytes; what they ask and whether the answer is right is not judged while the clock runs.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from time import perf_counter, process_time

from vecgate.bench.wire import Broken, Connection

KEPT_BYTES = 256 * 2**20
"""Of answers, for checking them after the window."""
PAUSE_S = 0.02
"""After a failure, so that a server that refuses is not asked in a busy loop."""

Connect = Callable[[], Connection]


@dataclass(frozen=True, slots=True)
class Shot:
    """One request. ask: its index. kind: why there is no answer, or its status where that is not 200; None: answered.

    body: None where there is none to check or no room to keep it. timing: the Server-Timing header.
    """

    ask: int
    begin_s: float
    end_s: float
    kind: str | None
    body: bytes | None
    timing: str = ""
    late_s: float = 0.0


@dataclass(slots=True)
class Window:
    """The shots of a load, those before and after the window included, and the window itself. ended: a request has, in it."""

    shots: list[Shot] = field(default_factory=list)
    begin_s: float = 0.0
    end_s: float = 0.0
    client_cpu_s: float = 0.0
    kept_bytes: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def open(self) -> Iterator[None]:
        self.begin_s, cpu_s = perf_counter(), process_time()
        try:
            yield
        finally:
            self.end_s, self.client_cpu_s = perf_counter(), process_time() - cpu_s

    async def shoot(self, connection: Connection, ask: int, request: bytes, late_s: float = 0.0) -> bool:
        """Whether it was answered 200."""
        begin_s = perf_counter()
        try:
            answer = await connection.ask(request)
        except Broken as error:
            self._add(Shot(ask, begin_s, perf_counter(), str(error), None, late_s=late_s))
            return False
        end_s, good = perf_counter(), answer.status == 200
        body = answer.body if good and self.kept_bytes < KEPT_BYTES else None
        self.kept_bytes += len(body or b"")
        kind = None if good else str(answer.status)
        self._add(Shot(ask, begin_s, end_s, kind, body, answer.headers.get("server-timing", ""), late_s))
        return good

    def _add(self, shot: Shot) -> None:
        self.shots.append(shot)
        if self.begin_s:
            self.ended.set()


async def closed(
    connect: Connect,
    requests: Sequence[bytes],
    turn: Iterator[int],
    concurrency: int,
    *,
    warm_s: float,
    until: Callable[[], Awaitable[object]],
) -> Window:
    """So many clients, each with one request on its way, from `warm_s` before the window to its end and their last answer.

    until: what the window lasts as long as, once it has begun, or until a first request has ended in it.
    """
    window, going = Window(), True

    async def client() -> None:
        connection = connect()
        try:
            while going:
                ask = next(turn)
                if not await window.shoot(connection, ask, requests[ask]):
                    await asyncio.sleep(PAUSE_S)
        finally:
            connection.close()

    with _no_collection():
        clients = [asyncio.create_task(client()) for _ in range(concurrency)]
        try:
            await asyncio.sleep(warm_s)
            with window.open():
                await until()
                await window.ended.wait()  # a server may be slower than the window is long
            going = False
            await asyncio.gather(*clients)
        finally:
            await _end(clients)
    return window


async def poisson(
    connect: Connect,
    requests: Sequence[bytes],
    turn: Iterator[int],
    rate: float,
    *,
    warm_s: float,
    seconds: float,
    rng: Random,
) -> Window:
    """Requests at exponential intervals, whatever the server does: one that falls behind shows it in its latencies."""
    window, free, begun_s = Window(), list[Connection](), perf_counter()
    due_s = begun_s + rng.expovariate(rate)
    flying: set[asyncio.Task[None]] = set()

    async def fly(due_s: float) -> None:
        connection = free.pop() if free else connect()
        ask = next(turn)
        await window.shoot(connection, ask, requests[ask], perf_counter() - due_s)
        free.append(connection)

    async def arrive(end_s: float) -> None:
        nonlocal due_s
        while due_s < end_s:
            await asyncio.sleep(due_s - perf_counter())
            task = asyncio.create_task(fly(due_s))
            flying.add(task)
            task.add_done_callback(flying.discard)
            due_s += rng.expovariate(rate)

    with _no_collection():
        try:
            await arrive(begun_s + warm_s)
            with window.open():
                await arrive(begun_s + warm_s + seconds)
                await asyncio.sleep(max(0.0, begun_s + warm_s + seconds - perf_counter()))
            await asyncio.gather(*flying)
        finally:
            await _end(list(flying))
            for connection in free:
                connection.close()
    return window


async def all_of(connect: Connect, requests: Sequence[bytes], in_flight: int) -> Window:
    """Every request once, `in_flight` at a time; the window is as long as that takes."""
    window, left = Window(), iter(range(len(requests)))

    async def client() -> None:
        connection = connect()
        try:
            for ask in left:
                await window.shoot(connection, ask, requests[ask])
        finally:
            connection.close()

    clients = [asyncio.create_task(client()) for _ in range(in_flight)]
    try:
        with window.open():
            await asyncio.gather(*clients)
    finally:
        await _end(clients)
    return window


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector would stop the clients in the midst of a latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
