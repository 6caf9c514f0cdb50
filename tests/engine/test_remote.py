"""RemoteEngine over engines of this process: the same answers, names, errors, deadlines; what it knows of its replicas."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tests import small
from tests.protocols.stub import StubEngine
from vecgate.backends import fake
from vecgate.core import BatchReport, Call
from vecgate.engine import merging, remote
from vecgate.engine.local import LocalEngine
from vecgate.engine.merging import ALONE, Lost
from vecgate.engine.parcel import Desk, Parcel
from vecgate.engine.remote import RemoteEngine, Trip
from vecgate.errors import (
    BackendFailed,
    DeadlineExceeded,
    InputTooLong,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    Overloaded,
    SpaceMismatch,
    VecgateError,
    WrongTask,
)
from vecgate.traits import Engine, Owned

T = TypeVar("T")
CALL = Call("id", 5.0)
ALIASES = (("ada", "small", None), ("asked", "small:query", 4), ("judge-v1", "judge", None))
TEXTS = ["paris is the capital of france", "dogs bark", "what ?", "a cat a cat a cat a cat a cat a cat"]


class Replica:
    """A LocalEngine behind its desk; `dies` after that many answers, each of which is made and lost."""

    def __init__(
        self, engine: Engine, name: str = "one", dies: int = 0, reports: deque[BatchReport] | None = None
    ) -> None:
        self.desk, self.dies, self.answers = Desk(name, engine, reports), dies, 0

    async def trip(self, data: bytes) -> bytes:
        self.answers += 1
        answer = await self.desk.answer(data)
        if self.dies:
            self.dies -= 1
            raise Lost
        return answer


def run(work: Coroutine[Any, Any, T]) -> T:
    async def in_time() -> T:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(in_time())


class Pair:
    """`async with Pair(folder) as (local, remote)`: a ready LocalEngine with a model and a reranker, and the way to it."""

    def __init__(self, folder: Path, script: fake.Script | None = None, **options: Any) -> None:
        self.script = script or fake.Script()
        models = [
            small.model(small.checkpoint(folder / "small"), self.script),
            small.model(small.checkpoint(folder / "judge", "rerank"), self.script),
        ]
        reports: deque[BatchReport] = deque()
        self.local = LocalEngine(models, aliases=ALIASES, on_batch=reports.append)
        self.replica = Replica(self.local, reports=reports)
        self.batches: list[BatchReport] = []
        self.sheds = 0
        options.setdefault("on_batch", self.batches.append)
        self.remote = RemoteEngine(self.replica.trip, aliases=ALIASES, on_shed=self._shed, **options)
        self._ready = asyncio.Event()
        self.remote.on_ready = self._ready.set

    def _shed(self) -> None:
        self.sheds += 1

    async def __aenter__(self) -> tuple[LocalEngine, RemoteEngine]:
        self.local.start()
        await self.local.settled()
        self.remote.start()
        await self._ready.wait()
        return self.local, self.remote

    async def __aexit__(self, *_: object) -> None:
        self.remote.close()
        self.local.close()


def on_both(folder: Path, use: Callable[[Engine], Awaitable[T]]) -> tuple[T, T]:
    async def both() -> tuple[T, T]:
        async with Pair(folder) as (local, far):
            return await use(local), await use(far)

    return run(both())


async def nothing(_: bytes) -> bytes:
    raise NotReady("nobody is there")


def test_it_is_an_engine_and_the_apps_own() -> None:
    assert isinstance(RemoteEngine(nothing), Engine)
    assert isinstance(RemoteEngine(nothing), Owned)
    assert not isinstance(StubEngine(), Owned)


def test_rows_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    async def use(engine: Engine) -> Any:
        found = await engine.embed(CALL, "asked", TEXTS, cut="start", max_tokens=8)
        return found.vectors.tolist(), found.applied.tokens, found.applied.original, found.applied.role

    here, there = on_both(tmp_path, use)
    assert here == there
    assert np.shape(there[0]) == (4, 4)


def test_rankings_are_the_same(tmp_path: Path) -> None:
    async def use(engine: Engine) -> Any:
        pairs = await engine.rerank(CALL, "judge-v1", "what ?", TEXTS, top_n=3)
        cosines = await engine.rerank(CALL, None, "what ?", TEXTS, method="similarity")
        return [(one.order, one.raw, one.scores, one.method, one.applied.tokens) for one in (pairs, cosines)]

    here, there = on_both(tmp_path, use)
    assert here == there


def test_tokens_are_the_same(tmp_path: Path) -> None:
    async def use(engine: Engine) -> Any:
        pieces = await engine.tokenize("ada", TEXTS)
        return pieces, await engine.decode(None, [one.ids for one in pieces])

    here, there = on_both(tmp_path, use)
    assert here == there


def test_names_roles_and_cards_are_the_same(tmp_path: Path) -> None:
    async def use(engine: Engine) -> Any:
        def said(model: str | None, role: str | None) -> str:
            try:
                return engine.prompt(model, role)
            except (InvalidRequest, ModelNotFound) as error:
                return str(error)

        asked = [
            ("ada", "query"),
            ("asked", None),
            ("small:passage", "query"),
            ("x", None),
            ("judge-v1", "x"),
            (None, "x"),
        ]
        return engine.resolve("ADA"), engine.resolve(None, "rerank"), [said(*one) for one in asked]

    here, there = on_both(tmp_path, use)
    assert here == there

    async def cards() -> None:
        async with Pair(tmp_path) as (local, far):
            assert [one.name for one in far.status().models] == ["small", "judge"]
            assert [one.aliases for one in far.status().models] == [one.aliases for one in local.status().models]

    run(cards())


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ModelNotFound, {"model": "x"}),
        (WrongTask, {"model": "judge"}),
        (InvalidRequest, {"dimensions": 99}),
        (InvalidRequest, {"role": "x"}),
        (InputTooLong, {"cut": "refuse", "inputs": ["a cat " * 20]}),
        (SpaceMismatch, {"call": Call("id", 5.0, "another-space")}),
    ],
)
def test_errors_are_the_same(tmp_path: Path, kind: type[VecgateError], given: dict[str, Any]) -> None:
    given = {"call": CALL, "model": None, "inputs": TEXTS, **given}

    async def use(engine: Engine) -> VecgateError:
        with pytest.raises(kind) as caught:
            await engine.embed(**given)
        return caught.value

    here, there = on_both(tmp_path, use)
    assert (type(here), str(here), vars(here)) == (type(there), str(there), vars(there))


def test_a_number_that_can_t_be_packed_is_its_own_call_s_error(tmp_path: Path) -> None:
    async def use() -> list[Any]:
        async with Pair(tmp_path) as (_, far):
            calls = (far.embed(CALL, None, ["cat"], dimensions=width) for width in (4, 10**30, -(10**30)))
            return await asyncio.gather(*calls, return_exceptions=True)

    fine, *refused = run(use())
    assert fine.vectors.shape == (1, 4)
    assert [type(one) for one in refused] == [InvalidRequest, InvalidRequest]


def test_calls_that_wait_share_a_trip(tmp_path: Path) -> None:
    async def use() -> int:
        pair = Pair(tmp_path)
        async with pair as (_, far):
            pair.remote._watch.cancel()  # type: ignore[union-attr]
            pair.replica.answers = 0
            await asyncio.gather(*(far.embed(CALL, None, [text]) for text in TEXTS * 5))
            return pair.replica.answers

    assert run(use()) == 3


def test_a_replica_that_ends_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FIRST_PAUSE_S", 0.001)

    async def use() -> None:
        pair = Pair(tmp_path)
        async with pair as (local, far):
            pair.replica.dies = 3
            found = await asyncio.gather(*(far.embed(CALL, None, [text]) for text in TEXTS))
            here = await local.embed(CALL, None, TEXTS)
            assert np.array_equal(np.concatenate([one.vectors for one in found]), here.vectors)
            assert pair.replica.dies == 0

    run(use())


def test_a_deadline_holds_whoever_is_late(tmp_path: Path) -> None:
    async def never(_: bytes) -> bytes:
        await asyncio.sleep(60)
        raise AssertionError

    async def use() -> None:
        async with Pair(tmp_path) as (_, far):
            far._trip = never
            with pytest.raises(DeadlineExceeded, match=r"longer than 0\.01 s"):
                await far.embed(Call("id", 0.01), None, ["a cat"])

    run(use())


def test_a_retry_has_only_what_is_left_of_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FIRST_PAUSE_S", 0.05)
    left: list[float] = []

    class Noting(StubEngine):
        async def embed(self, call: Call, *given: Any, **more: Any) -> Any:
            left.append(call.timeout_s)
            return await super().embed(call, *given, **more)

    async def use() -> None:
        replica = Replica(Noting(), dies=1)
        far = RemoteEngine(replica.trip, status=StubEngine().status())
        await far.embed(CALL, None, ["cat"])

    run(use())
    assert len(left) == 2
    assert left[1] <= left[0] - 0.05


def test_a_client_that_leaves_takes_its_rows_from_the_queue(tmp_path: Path) -> None:
    async def use() -> list[str]:
        ended: list[str] = []

        class Slow(StubEngine):
            async def embed(self, *_: Any, **__: Any) -> Any:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ended.append("embed")
                    raise

        far = RemoteEngine(Replica(Slow()).trip, status=StubEngine().status())
        task = asyncio.ensure_future(far.embed(CALL, None, ["cat " * ALONE]))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        return ended

    assert run(use()) == ["embed"]


def test_a_full_replica_is_overloaded_and_counted(tmp_path: Path) -> None:
    async def full(_: bytes) -> bytes:
        raise Overloaded("too much waits", 2)

    async def use() -> int:
        pair = Pair(tmp_path)
        async with pair as (_, far):
            far._trip = full
            with pytest.raises(Overloaded, match="too much waits"):
                await far.embed(CALL, None, ["a cat"])
        return pair.sheds

    assert run(use()) == 1


def test_a_failing_batch_fails_its_call_with_the_models_error(tmp_path: Path) -> None:
    async def use(engine: Engine) -> Any:
        found = await asyncio.gather(
            *(engine.embed(CALL, None, [text]) for text in ("a cat", "poison")), return_exceptions=True
        )
        return [(isinstance(one, BackendFailed), getattr(one, "lasting", None)) for one in found]

    async def both() -> Any:
        script = fake.Script(nan_ids=frozenset([small.SPECIALS.index("poison")]))
        async with Pair(tmp_path, script) as (local, far):
            return await use(local), await use(far)

    here, there = run(both())
    assert here == there == [(False, None), (True, True)]


def test_its_metrics_get_the_replicas_batches(tmp_path: Path) -> None:
    async def use() -> list[BatchReport]:
        pair = Pair(tmp_path)
        async with pair as (_, far):
            await far.embed(CALL, None, TEXTS)
            await far._exchange(Parcel())
        return pair.batches

    assert sum(report.rows for report in run(use())) == len(TEXTS)


def test_before_any_replica_answered_it_is_loading_and_refuses() -> None:
    async def use() -> None:
        far = RemoteEngine(nothing)
        far.start()
        await asyncio.sleep(0)
        status = far.status()
        assert (status.state, status.models, status.alive) == ("loading", (), True)
        for asked in (far.embed(CALL, None, ["a"]), far.rerank(CALL, None, "a", ["b"]), far.tokenize(None, ["a"])):
            with pytest.raises(NotReady, match="No engine has answered"):
                await asked
        far.close()

    run(use())


def test_without_news_of_any_replica_it_is_loading_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> list[str]:
        far = RemoteEngine(Replica(StubEngine()).trip, status=StubEngine().status())
        found = [far.status().state]
        await far.embed(CALL, None, ["cat"])
        found.append(far.status().state)
        monkeypatch.setattr(remote, "FRESH_S", 0.0)
        return [*found, far.status().state]

    assert run(use()) == ["loading", "ready", "loading"]


def test_a_look_that_nobody_foresaw_to_fail_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote, "LOOK_S", 0.001)
    replica, broken = Replica(StubEngine()), iter([True])

    async def trip(data: bytes) -> bytes:
        if next(broken, False):
            raise RuntimeError("a text")
        return await replica.trip(data)

    async def use() -> None:
        far, ready = RemoteEngine(trip), asyncio.Event()
        far.on_ready = ready.set
        far.start()
        await ready.wait()
        far.close()

    run(use())
    assert [record.getMessage() for record in caplog.records] == [
        "The replicas could not be asked how they are: RuntimeError."
    ]


def test_it_is_ready_once_and_draining_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOOK_S", 0.001)

    async def use() -> None:
        told: list[str] = []
        pair = Pair(tmp_path)
        known = pair.remote.on_ready
        pair.remote.on_ready = lambda: (told.append("ready"), known())  # type: ignore[func-returns-value, assignment]
        async with pair as (_, far):
            await asyncio.sleep(0.02)
            far.drain()
            assert far.status().state == "draining"
        assert told == ["ready"]

    run(use())


def test_what_waits_is_summed_over_the_replicas(tmp_path: Path) -> None:
    async def use() -> None:
        engines = [Replica(StubEngine(), name) for name in ("one", "two")]
        turn = iter([0, 1])

        async def trip(data: bytes) -> bytes:
            return await engines[next(turn)].trip(data)

        far = RemoteEngine(trip, status=StubEngine().status())
        for _ in engines:
            await far.embed(CALL, None, ["cat"])
        assert len(far._fresh()) == 2
        assert far._post.lanes == 3
        assert far.status().queue.items == 0
        assert far.wait_s(10) == 0.0

    run(use())


def test_a_trip_is_a_function_of_bytes() -> None:
    trip: Trip = Replica(StubEngine()).trip
    assert run(RemoteEngine(trip, status=StubEngine().status()).embed(CALL, None, ["cat"])).vectors.shape == (1, 8)
