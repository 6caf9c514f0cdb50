"""Calls side by side: in their order, few at a time, none left behind; and their work as one report."""

import asyncio

import pytest

from vecgate.core import Applied
from vecgate.errors import Overloaded
from vecgate.protocols.gather import AT_ONCE, side_by_side, together


def test_results_come_in_the_order_of_the_calls_however_they_end() -> None:
    async def go() -> list[int]:
        gates = [asyncio.Event() for _ in range(3)]

        async def call(at: int) -> int:
            if at < 2:
                await gates[at + 1].wait()  # the last ends first
            gates[at].set()
            return at

        return await side_by_side([lambda at=at: call(at) for at in range(3)])  # type: ignore[misc]

    assert asyncio.run(go()) == [0, 1, 2]


def test_no_more_than_so_many_at_once() -> None:
    running = most = 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    asyncio.run(side_by_side([call] * (3 * AT_ONCE)))
    assert most == AT_ONCE


def test_the_first_error_ends_the_others_before_it_is_told() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        raise Overloaded("full")

    with pytest.raises(Overloaded, match="full"):
        asyncio.run(side_by_side([waits, fails, waits]))
    assert ended == ["cancelled", "cancelled"]


def test_who_leaves_takes_all_calls_along() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def go() -> None:
        task = asyncio.create_task(side_by_side([waits, waits]))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["cancelled", "cancelled"]

    asyncio.run(go())


def test_the_report_adds_counts_and_takes_the_longest_wait() -> None:
    one = Applied("m", None, (3, 4), (3, 9), 0.5, 0.25, 1.0, query_tokens=2, space="s")
    two = Applied("m", None, (5,), (5,), 0.25, 0.5, 2.0, query_tokens=1, space="s")
    assert together([one, two]) == Applied("m", None, (3, 4, 5), (3, 9, 5), 0.5, 0.75, 2.0, query_tokens=3, space="s")
