"""A share of each pass of the loop, then one turn a pass, in order, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vecgate.flight import Message, Receive, Scope, Send
from vecgate.guard import Guard
from vecgate.turns import Loop, Turns


async def passes(seen: list[str], count: int) -> None:
    """What is ready in each of the next passes of the loop."""
    for _ in range(count):
        seen.append("pass")
        await asyncio.sleep(0)


def test_who_comes_during_a_burst_does_not_wait_for_its_end() -> None:
    async def main() -> list[str]:
        turns, seen = Turns(share_s=0.0), list[str]()

        async def work(name: str) -> None:
            await turns.take()
            seen.append(name)

        burst = [asyncio.create_task(work(str(at))) for at in range(5)]
        await asyncio.gather(*burst, passes(seen, 6))
        return seen

    seen = asyncio.run(main())
    assert [one for one in seen if one != "pass"] == ["0", "1", "2", "3", "4"]
    assert not [at for at, one in enumerate(seen[:-1]) if one != "pass" and seen[at + 1] != "pass" and at > 0]


def test_who_is_alone_does_not_wait() -> None:
    async def main() -> None:
        turns = Turns()
        for _ in range(3):
            turn = turns.take()
            try:
                turn.send(None)
            except StopIteration:
                pass
            else:
                raise AssertionError("it waited")
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(main())


def test_within_the_share_of_a_pass_nobody_waits_and_after_it_all_do() -> None:
    async def main() -> list[str]:
        turns, seen = Turns(share_s=3600.0), list[str]()

        async def work(name: str) -> None:
            await turns.take()
            seen.append(name)

        async def end_share() -> None:
            turns._until_s = 0.0

        burst = [asyncio.create_task(one) for one in (work("0"), work("1"), end_share(), work("2"), work("3"))]
        await asyncio.gather(*burst, passes(seen, 4))
        return seen

    assert asyncio.run(main()) == ["0", "1", "pass", "pass", "2", "pass", "3", "pass"]


def test_a_turn_that_is_not_wanted_any_more_goes_to_the_next() -> None:
    async def main() -> list[int]:
        turns, seen = Turns(share_s=0.0), list[int]()

        async def work(at: int) -> None:
            await turns.take()
            seen.append(at)

        tasks = [asyncio.create_task(work(at)) for at in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait_for(tasks[3], 10)
        return seen

    assert asyncio.run(main()) == [0, 3]


@pytest.mark.parametrize("max_in_flight", [100, 0])
def test_a_probe_is_answered_in_the_middle_of_a_burst_served_or_refused(max_in_flight: int) -> None:
    told: list[str] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(guard: Guard, method: str, path: str) -> None:
        waiting: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await asyncio.Future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.append(f"{message['status']} {path}")

        head = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"localhost")], "client": None}
        await guard(head, receive, send)

    async def main() -> None:
        guard = Guard(app, render=lambda _path, _error: (429, {}, b""), max_in_flight=max_in_flight, share_s=0.0)
        burst = [asyncio.create_task(ask(guard, "POST", "/embed")) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.gather(ask(guard, "GET", "/health/live"), *burst)

    asyncio.run(main())
    assert told.count("200 /embed" if max_in_flight else "429 /embed") == 50
    assert told.index("200 /health/live") < 10


class Watcher:
    """As much of granian's as the loop looks at."""

    def __init__(self, path: str) -> None:
        self.scope = {"type": "http", "method": "GET", "path": path}


def is_first(scope: dict[str, object]) -> bool:
    return scope["path"] == "/first"


def run_on(loop: Loop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())


def test_a_burst_begins_in_parts_and_in_order_and_a_probe_before_it() -> None:
    loop, seen = Loop(is_first, starts=3), list[str]()

    async def main() -> None:
        for at in range(8):
            loop.call_soon_threadsafe(lambda one: seen.append(one.scope["path"]), Watcher(f"{at}"))
        loop.call_soon_threadsafe(lambda one: seen.append(one.scope["path"]), Watcher("/first"))
        await passes(seen, 5)

    run_on(loop, main)
    parts = " ".join(seen).split("pass")
    assert [part.split() for part in parts if part.strip()] == [["0", "1", "2", "/first"], ["3", "4", "5"], ["6", "7"]]


def test_every_start_of_many_threads_begins_once() -> None:
    loop, seen = Loop(is_first, starts=2), list[str]()

    async def main() -> None:
        def hand_over(thread: int) -> None:
            for at in range(200):
                loop.call_soon_threadsafe(lambda one: seen.append(one.scope["path"]), Watcher(f"{thread} {at}"))

        await asyncio.gather(*(asyncio.to_thread(hand_over, thread) for thread in range(4)))
        await passes([], 401)

    run_on(loop, main)
    assert sorted(seen) == sorted(f"{thread} {at}" for thread in range(4) for at in range(200))
    for thread in range(4):
        own = [one for one in seen if one.startswith(f"{thread} ")]
        assert own == sorted(own, key=lambda one: int(one.split()[1]))


def test_a_start_that_raises_costs_no_other_its_turn() -> None:
    loop, seen, told = Loop(is_first), list[str](), list[str]()

    def begin(one: Watcher) -> None:
        if one.scope["path"] == "1":
            raise RuntimeError("not this one")
        seen.append(one.scope["path"])

    async def main() -> None:
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        for at in range(4):
            loop.call_soon_threadsafe(begin, Watcher(f"{at}"))
        await passes([], 3)

    run_on(loop, main)
    assert seen == ["0", "2", "3"]
    assert told == ["not this one"]


def test_what_is_no_start_is_asyncios_alone() -> None:
    loop, seen = Loop(is_first, starts=1), list[int]()

    async def main() -> None:
        handle = loop.call_soon_threadsafe(seen.append, 1)
        loop.call_soon_threadsafe(seen.append, 2)
        handle.cancel()
        await passes([], 2)

    run_on(loop, main)
    assert seen == [2]
