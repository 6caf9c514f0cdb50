import asyncio
import gc
from collections.abc import Callable, Coroutine
from itertools import count, cycle
from random import Random
from typing import Any

import pytest

from vecgate.bench import load
from vecgate.bench.load import Window
from vecgate.bench.wire import Answer, Broken, Connection

GOOD = Answer(200, {"server-timing": "forward;dur=1"}, b"row")


class Scripted(Connection):
    """Connections of one test: what each request gets, how many were on their way at once, how many are open."""

    def __init__(self, answer: Callable[[bytes], Coroutine[Any, Any, Answer]]) -> None:
        self.answer = answer
        self.flying = self.most = self.open = 0
        self.asked: list[bytes] = []

    def connect(self) -> Connection:
        self.open += 1
        return self

    async def ask(self, request: bytes) -> Answer:
        self.asked.append(request)
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            return await self.answer(request)
        finally:
            self.flying -= 1

    def close(self) -> None:
        self.open -= 1


async def soon(_request: bytes) -> Answer:
    await asyncio.sleep(0)
    return GOOD


def closed(server: Scripted, concurrency: int, requests: int) -> Window:
    """A window that lasts until so many were asked."""

    async def until() -> None:
        while len(server.asked) < requests:  # noqa: ASYNC110  counts rounds of the loop, no time
            await asyncio.sleep(0)

    return asyncio.run(
        load.closed(server.connect, [b"a", b"b"], iter([0, 1] * 10_000), concurrency, warm_s=0, until=until)
    )


def test_so_many_clients_each_have_one_request_on_its_way() -> None:
    server = Scripted(soon)
    window = closed(server, 5, 100)
    assert (server.most, server.open) == (5, 0)
    assert len(window.shots) == len(server.asked) >= 100
    assert {shot.ask for shot in window.shots} == {0, 1}
    assert all(shot.body == b"row" and shot.kind is None and shot.timing == "forward;dur=1" for shot in window.shots)
    assert window.begin_s < window.end_s


def test_the_window_lasts_until_a_request_has_ended_in_it() -> None:
    asked = asyncio.Event()

    async def late(_request: bytes) -> Answer:
        await asked.wait()
        return await soon(_request)

    async def until() -> None:
        asyncio.get_running_loop().call_later(0.01, asked.set)

    server = Scripted(late)
    window = asyncio.run(load.closed(server.connect, [b"a"], cycle([0]), 1, warm_s=0, until=until))
    assert any(window.begin_s <= shot.end_s <= window.end_s for shot in window.shots)


def test_failures_are_kept_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PAUSE_S", 0.0)

    async def badly(request: bytes) -> Answer:
        await asyncio.sleep(0)
        if request == b"a":
            raise Broken("closed")
        return Answer(503, {}, b"busy")

    window = closed(Scripted(badly), 2, 10)
    assert {shot.kind for shot in window.shots} == {"closed", "503"}
    assert {shot.body for shot in window.shots} == {None}


def test_answers_beyond_what_may_be_kept_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "KEPT_BYTES", 3 * len(GOOD.body))
    window = closed(Scripted(soon), 1, 10)
    assert [shot.body for shot in window.shots][:5] == [b"row"] * 3 + [None] * 2


def test_no_garbage_is_collected_while_the_clock_runs() -> None:
    seen = []

    async def look(_request: bytes) -> Answer:
        await asyncio.sleep(0)
        seen.append(gc.isenabled())
        return GOOD

    closed(Scripted(look), 1, 3)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_clients_end_where_the_window_fails() -> None:
    server = Scripted(soon)

    async def until() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(load.closed(server.connect, [b"a"], iter([0] * 10_000), 3, warm_s=0, until=until))
    assert (server.flying, server.open) == (0, 0)


def test_random_arrivals_wait_for_no_answer() -> None:
    release = asyncio.Event()

    async def when_all_are_there(_request: bytes) -> Answer:
        if server.flying == 5:
            release.set()
        await release.wait()
        return GOOD

    server = Scripted(when_all_are_there)
    window = asyncio.run(
        load.poisson(server.connect, [b"a"], iter([0] * 10_000), 500.0, warm_s=0.0, seconds=0.2, rng=Random(1))
    )
    assert server.most >= 5
    assert server.open == 0
    assert all(shot.kind is None and shot.late_s >= 0 for shot in window.shots)


def test_every_call_of_a_bulk_is_sent_once() -> None:
    server = Scripted(soon)
    requests = [b"%d" % number for number in range(20)]
    window = asyncio.run(load.all_of(server.connect, requests, 4))
    assert sorted(server.asked) == sorted(requests)
    assert sorted(shot.ask for shot in window.shots) == list(range(20))
    assert (server.most, server.open) == (4, 0)
    assert all(window.begin_s <= shot.begin_s <= shot.end_s <= window.end_s for shot in window.shots)


def test_late_requests_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(load, "perf_counter", lambda: next(ticks) * 0.01)  # every look at the clock takes 10 ms
    window = asyncio.run(
        load.poisson(Scripted(soon).connect, [b"a"], iter([0] * 10_000), 20.0, warm_s=0.0, seconds=1.0, rng=Random(1))
    )
    assert max(shot.late_s for shot in window.shots) >= 0.01
