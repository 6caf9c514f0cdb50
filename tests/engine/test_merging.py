"""Post: what goes together, what goes alone, what is sent again, what ends when nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from vecgate.engine import merging
from vecgate.engine.merging import ALONE, TOGETHER, TRIES, Lost, Post
from vecgate.errors import BackendFailed, ModelNotFound, NotReady, Overloaded

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    async def in_time() -> T:
        async with asyncio.timeout(10):
            return await work

    return asyncio.run(in_time())


class Far:
    """A far side that answers each content with itself; `held` until `free` is set; `losses` trips are lost before."""

    def __init__(self, *, held: bool = False, losses: int = 0, poison: object = None) -> None:
        self.trips: list[list[Any]] = []
        self.ended = 0
        self.free = asyncio.Event()
        self.losses, self.poison = losses, poison
        if not held:
            self.free.set()

    async def send(self, contents: Sequence[Any]) -> Sequence[Any]:
        self.trips.append(list(contents))
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.ended += 1
            raise
        if self.losses or self.poison in contents:
            self.losses = max(0, self.losses - 1)
            raise Lost
        return contents


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FIRST_PAUSE_S", 0.0001)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def asking(post: Post, contents: Sequence[Any], kind: str = "a", size: int = 10) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(post.ask(kind, content, size)) for content in contents]
    await turns()
    return tasks


def test_what_waits_while_one_is_under_way_goes_together() -> None:
    async def use() -> None:
        far = Far(held=True)
        post = Post(far.send, lanes=1)
        tasks = await asking(post, [1, 2, 3, 4])
        assert far.trips == [[1]]
        assert post.waiting == 3
        far.free.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3, 4]
        assert far.trips == [[1], [2, 3, 4]]
        assert post.waiting == 0

    run(use())


def test_each_kind_has_lanes_of_its_own() -> None:
    async def use() -> None:
        far = Far(held=True)
        post = Post(far.send, lanes=2)
        tasks = await asking(post, [1, 2, 3]) + await asking(post, [4, 5], "b")
        assert far.trips == [[1], [2], [4], [5]]
        far.free.set()
        await asyncio.gather(*tasks)
        assert far.trips[4:] == [[3]]

    run(use())


def test_a_trip_has_a_most() -> None:
    async def use() -> None:
        far = Far(held=True)
        tasks = await asking(Post(far.send, lanes=1), range(TOGETHER + 3))
        far.free.set()
        await asyncio.gather(*tasks)
        assert [len(trip) for trip in far.trips] == [1, TOGETHER, 2]

    run(use())


def test_a_large_one_goes_alone_and_at_once() -> None:
    async def use() -> None:
        far = Far(held=True)
        post = Post(far.send, lanes=1)
        tasks = await asking(post, [1, 2]) + await asking(post, ["large"], size=ALONE)
        assert far.trips == [[1], ["large"]]
        far.free.set()
        await asyncio.gather(*tasks)

    run(use())


def test_one_that_leaves_the_queue_is_not_sent() -> None:
    async def use() -> None:
        far = Far(held=True)
        tasks = await asking(Post(far.send, lanes=1), [1, 2, 3])
        tasks[1].cancel()
        await turns()
        far.free.set()
        await asyncio.wait(tasks)
        assert far.trips == [[1], [3]]

    run(use())


def test_a_trip_ends_once_nobody_waits_for_it() -> None:
    async def use() -> None:
        far = Far(held=True)
        first, *others = await asking(post := Post(far.send, lanes=1), [1, 2, 3])
        first.cancel()
        await turns()
        assert far.ended == 1
        assert far.trips[1:] == [[2, 3]]
        others[0].cancel()
        await turns()
        assert far.ended == 1
        far.free.set()
        assert await others[1] == 3
        assert post.waiting == 0

    run(use())


def test_an_outcome_that_is_an_error_is_its_own_callers_alone() -> None:
    async def send(contents: Sequence[Any]) -> Sequence[Any]:
        return [ModelNotFound("no") if content == 2 else content for content in contents]

    async def use() -> None:
        found = await asyncio.gather(*(Post(send).ask("a", n, 1) for n in (1, 2, 3)), return_exceptions=True)
        assert [found[0], found[2]] == [1, 3]
        assert isinstance(found[1], ModelNotFound)

    run(use())


def test_a_trip_that_fails_fails_all_of_its_items() -> None:
    async def send(contents: Sequence[Any]) -> Sequence[Any]:
        await asyncio.sleep(0)
        raise Overloaded("full", 3)

    async def use() -> None:
        post = Post(send, lanes=1)
        found = await asyncio.gather(*(post.ask("a", n, 1) for n in range(3)), return_exceptions=True)
        assert [getattr(one, "retry_after_s", None) for one in found] == [3, 3, 3]

    run(use())


def test_what_was_lost_is_sent_again() -> None:
    async def use() -> None:
        far = Far(losses=1, held=True)
        tasks = await asking(Post(far.send, lanes=1), [1, 2, 3])
        far.free.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]
        assert sorted(map(str, far.trips)) == ["[1]", "[1]", "[2, 3]"]

    run(use())


def test_one_that_ends_who_takes_it_takes_few_and_its_mates_come_through() -> None:
    async def use() -> None:
        far = Far(poison="poison", held=True)
        tasks = await asking(Post(far.send, lanes=1), [0, 1, "poison", 2])
        far.free.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [0, 1, 2]
        assert isinstance(found[2], BackendFailed)
        assert found[2].lasting
        assert sum("poison" in trip for trip in far.trips) == TRIES

    run(use())


def test_one_that_left_while_it_was_lost_is_not_sent_again() -> None:
    async def use() -> None:
        far = Far(losses=1)
        (task,) = await asking(Post(far.send), [1])
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)
        assert far.trips == [[1]]

    run(use())


def test_the_queue_is_bounded() -> None:
    async def use() -> None:
        far = Far(held=True)
        post = Post(far.send, lanes=1, most=2)
        tasks = await asking(post, [1, 2, 3])
        with pytest.raises(Overloaded, match="2 calls wait"):
            await post.ask("a", 4, 1)
        far.free.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]

    run(use())


def test_the_end_of_the_post_ends_its_trips_and_tells_all_who_wait() -> None:
    async def use() -> None:
        far = Far(held=True)
        post = Post(far.send, lanes=1)
        tasks = await asking(post, [1, 2, 3]) + await asking(post, ["large"], size=ALONE)
        post.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in found] == [NotReady] * 4
        await turns()
        assert (far.trips, far.ended, post.waiting) == ([[1], ["large"]], 2, 0)
        assert (post._queues, post._under_way, post._trips) == ({}, {}, set())

    run(use())


def test_what_was_lost_is_not_sent_again_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        monkeypatch.setattr(merging, "FIRST_PAUSE_S", 0.01)
        far = Far(losses=1)
        post = Post(far.send)
        (task,) = await asking(post, [1])
        post.close()
        with pytest.raises(NotReady, match="going down"):
            await task
        await asyncio.sleep(0.05)
        assert far.trips == [[1]]

    run(use())


def test_nothing_starts_after_the_end() -> None:
    async def use() -> None:
        far = Far()
        post = Post(far.send)
        post.close()
        for size in (1, ALONE):
            with pytest.raises(NotReady, match="going down"):
                await post.ask("a", 1, size)
        assert far.trips == []

    run(use())


def test_a_trip_that_is_lost_by_the_end_itself_is_not_made_again() -> None:
    async def send(_: Sequence[Any]) -> Sequence[Any]:
        trips.append(1)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise Lost from None
        raise AssertionError("nobody waits for so long")

    async def use() -> None:
        post = Post(send)
        (task,) = await asking(post, [1])
        post.close()
        with pytest.raises(NotReady):
            await task
        await asyncio.sleep(0.01)
        assert (trips, post._pausing) == ([1], set())

    trips = list[int]()
    run(use())


def test_nothing_is_kept_of_a_kind_that_is_done() -> None:
    async def use() -> None:
        post = Post(Far().send)
        await asyncio.gather(*(post.ask(f"kind {n}", n, 1) for n in range(20)))
        await turns()
        assert (post._queues, post._under_way, post._trips) == ({}, {}, set())

    run(use())
