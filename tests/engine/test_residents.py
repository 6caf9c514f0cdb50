"""Models on their way onto the device and off it: room for all or for some, unloaded when idle, loaded again when asked for."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from tests import small
from vecgate.backends import fake
from vecgate.core import Call, Checkpoint
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model
from vecgate.errors import BackendFailed, CheckpointError, DeadlineExceeded, NoRoom, NotReady
from vecgate.traits import Backend

T = TypeVar("T")
CALL = Call("test", 20.0)
SOON_MIN = 1e-5
"""Idle for so long means: as soon as the loop turns."""
LONG_MIN = 60.0


@dataclass(slots=True)
class Opened:
    """One model's backends: a new script for every load, what each load was told, and an error that the next ones raise."""

    read: Checkpoint
    scripts: list[fake.Script] = field(default_factory=list)
    others: list[tuple[str, ...]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, others: tuple[Checkpoint, ...] = ()) -> Backend:
        assert self.gate.wait(10)
        self.others.append(tuple(one.name for one in others))
        if self.errors:
            raise self.errors.pop(0)
        self.scripts.append(fake.Script())
        return fake.load(self.read, script=self.scripts[-1])

    def model(self, backend: str = "fake") -> Model:
        return Model(self.read, self, backend)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(small.checkpoint(tmp_path / "small"))


def with_engine(models: list[Model], use: Callable[[LocalEngine], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        with small.Served(*models, **options) as engine:
            await engine.settled()
            async with asyncio.timeout(20):
                return await use(engine)

    return asyncio.run(run())


async def until(engine: LocalEngine, state: str, at: int = 0) -> None:
    """Until the model is in that state, and the device has done what it was told."""
    while engine.status().models[at].state != state:  # noqa: ASYNC110 - the device thread sets it
        await asyncio.sleep(0.001)
    await asyncio.wrap_future(engine._batcher.run(lambda: None))


@pytest.mark.parametrize("error", [None, CheckpointError("no weights")])
def test_nothing_is_collected_while_a_model_loads(opened: Opened, error: Exception | None) -> None:
    seen: list[bool] = []

    def load(others: tuple[Checkpoint, ...] = ()) -> Backend:
        seen.append(gc.isenabled())
        if error is not None:
            raise error
        return opened(others)

    async def use(_: LocalEngine) -> None:
        assert (seen, gc.isenabled()) == ([False], True)

    with_engine([Model(opened.read, load, "fake")], use)


# unloading


def test_a_model_nobody_asks_for_is_unloaded_and_loaded_again_by_the_next_request(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        before = await engine.embed(CALL, None, ["a cat"])
        await until(engine, "unloaded")
        card, status = engine.status().models[0], engine.status()
        assert (status.state, status.error, card.dimensions, card.dtype) == ("ready", None, 8, "float32")
        assert opened.scripts[0].closed
        assert status.memory is not None
        assert status.memory.active_bytes == 0
        loads = len(opened.scripts)  # 1, or 2 where a busy machine let the idle time pass before the first request
        after = await engine.embed(CALL, None, ["a cat"])
        np.testing.assert_array_equal(before.vectors, after.vectors)
        assert len(opened.scripts) == loads + 1
        await until(engine, "unloaded")  # and so on

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_without_the_setting_nothing_is_unloaded(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        await engine.embed(CALL, None, ["a cat"])
        assert engine._residents._alarms == {}

    with_engine([opened.model()], use)


def test_a_model_that_nobody_ever_asked_for_is_unloaded_too(opened: Opened) -> None:
    with_engine([opened.model()], lambda engine: until(engine, "unloaded"), idle_unload_min=SOON_MIN)


def test_only_the_idle_one_of_two_goes(opened: Opened, tmp_path: Path) -> None:
    judge = Opened(small.checkpoint(tmp_path / "judge", "rerank"))

    async def use(engine: LocalEngine) -> None:
        async with engine._ready("small"):
            await until(engine, "unloaded", at=1)
            assert [card.state for card in engine.status().models] == ["ready", "unloaded"]
            assert engine.status().state == "ready"
            loads = len(opened.scripts), len(judge.scripts)
            await engine.rerank(CALL, None, "a cat", ["dogs"])
            assert (len(opened.scripts), len(judge.scripts)) == (loads[0], loads[1] + 1)

    with_engine([opened.model(), judge.model()], use, idle_unload_min=SOON_MIN)


def test_a_request_puts_the_unloading_off(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        residents, (model,) = engine._residents, engine._models.values()
        await asyncio.sleep(0)
        first = residents._alarms[model]
        async with engine._ready("small"):
            assert first.cancelled()
            assert residents._alarms == {}
            await engine.embed(CALL, None, ["a cat"])  # another one's end is not the end of this one
            assert residents._alarms == {}
        assert residents._alarms[model].when() > first.when()

    with_engine([opened.model()], use, idle_unload_min=LONG_MIN)


def test_a_request_that_comes_while_it_is_unloaded_waits_for_both(opened: Opened) -> None:
    """The device is still at work when the model is to go and when it is asked for again."""

    async def use(engine: LocalEngine) -> None:
        held = threading.Event()
        engine._batcher.run(lambda: held.wait(10))
        (model,) = engine._models.values()
        engine._residents._unload(model)
        assert engine.status().models[0].state == "unloaded"
        assert not opened.scripts[0].closed
        asked = asyncio.create_task(engine.embed(CALL, None, ["a cat"]))
        await asyncio.sleep(0)
        held.set()
        assert (await asked).vectors.shape == (1, 8)
        assert [script.closed for script in opened.scripts] == [True, False]

    with_engine([opened.model()], use, idle_unload_min=LONG_MIN)


def test_requests_that_come_while_it_loads_again_share_that_load(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        await until(engine, "unloaded")
        opened.gate.clear()
        asked = [asyncio.create_task(engine.embed(CALL, None, ["a cat"])) for _ in range(5)]
        await asyncio.sleep(0.01)
        status = engine.status()
        assert (status.state, status.models[0].state) == ("ready", "loading")
        assert engine.wait_s(10) == 0.0
        asked[0].cancel()  # the one that asked for the load
        opened.gate.set()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one).__name__ for one in done] == ["CancelledError"] + 4 * ["Embeddings"]
        assert len(opened.scripts) == 2

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_the_deadline_counts_while_it_loads(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        await until(engine, "unloaded")
        opened.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await engine.embed(Call("test", 0.01), None, ["a cat"])
        opened.gate.set()
        await engine.embed(CALL, None, ["a cat"])
        assert len(opened.scripts) == 2

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_a_load_that_fails_later_is_told_and_tried_again(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        await until(engine, "unloaded")
        opened.errors.append(CheckpointError("/models/x/model.safetensors is gone."))
        with pytest.raises(NotReady, match="'small' was unloaded and could not be loaded again") as refused:
            await engine.embed(CALL, None, ["a cat"])
        assert refused.value.retry_after_s is not None
        status = engine.status()
        assert (status.state, status.models[0].state, status.error) == (
            "ready",
            "unloaded",
            "model.safetensors is gone.",
        )
        engine._models["small"].rest_until_s = 0.0
        assert (await engine.embed(CALL, None, ["a cat"])).vectors.shape == (1, 8)
        assert engine.status().error is None

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_a_load_that_fails_slowly_is_not_tried_again_at_once(opened: Opened) -> None:
    """Or it would keep the device from the other models."""

    async def use(engine: LocalEngine) -> None:
        await until(engine, "unloaded")
        model = engine._models["small"]
        opened.errors.append(CheckpointError("It is gone."))
        with pytest.raises(NotReady):
            await engine.embed(CALL, None, ["a cat"])
        model.rest_until_s += 30.0
        with pytest.raises(NotReady) as refused:
            await engine.embed(CALL, None, ["a cat"])
        assert refused.value.retry_after_s in (30, 31)
        assert len(opened.others) == 2

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_what_is_loaded_again_is_verified_again_and_freed_where_it_fails(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        first = engine.status().models[0].verification
        await until(engine, "unloaded")
        await engine.embed(CALL, None, ["a cat"])
        second = engine.status().models[0].verification
        assert first is not None
        assert second is not None
        assert second.at > first.at
        await until(engine, "unloaded")
        engine._residents._open_queue = broken
        with pytest.raises(NotReady):
            await engine.embed(CALL, None, ["a cat"])
        assert opened.scripts[2].closed

    def broken(_model: Model, _backend: Backend) -> None:
        raise BackendFailed("The rows are not right.")

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN, verify="quick")


def test_files_that_changed_meanwhile_are_not_served_under_the_old_fingerprint(opened: Opened) -> None:
    async def use(engine: LocalEngine) -> None:
        space = (await engine.embed(CALL, None, ["a cat"])).applied.space
        await until(engine, "unloaded")
        await engine.embed(CALL, None, ["a cat"])
        assert engine.status().models[0].space == space
        await until(engine, "unloaded")
        tokenizer = opened.read.folder / "tokenizer.json"
        tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
        with pytest.raises(NotReady):
            await engine.embed(CALL, None, ["a cat"])
        assert engine.status().error == "The files of small have changed since the start; restart to serve them."

    with_engine([opened.model()], use, idle_unload_min=SOON_MIN)


def test_the_end_while_it_loads_again_is_told_to_who_waits(opened: Opened) -> None:
    async def run() -> None:
        with small.Served(opened.model(), idle_unload_min=SOON_MIN) as engine:
            await engine.settled()
            await until(engine, "unloaded")
            opened.gate.clear()
            held = asyncio.create_task(engine.embed(CALL, None, ["a cat"]))
            await asyncio.sleep(0.01)
        opened.gate.set()
        assert isinstance((await asyncio.gather(held, return_exceptions=True))[0], NotReady)

    asyncio.run(run())


def test_the_end_while_it_is_unloaded_leaves_nothing_running(opened: Opened) -> None:
    async def run() -> threading.Thread:
        with small.Served(opened.model(), idle_unload_min=LONG_MIN) as engine:
            await engine.settled()
            await asyncio.sleep(0)
            engine._residents._unload(engine._models["small"])
        return engine._batcher._thread

    assert not asyncio.run(run()).is_alive()
    assert opened.scripts[0].closed


# room


def three(tmp_path: Path) -> list[Opened]:
    names = ("one", "two", "three")
    return [Opened(small.checkpoint(tmp_path / name, name=name, weight_bytes=100)) for name in names]


def test_each_leaves_room_for_those_that_are_not_loaded(tmp_path: Path) -> None:
    made = three(tmp_path)

    async def use(engine: LocalEngine) -> None:
        for at in range(3):
            await until(engine, "unloaded", at)
        await engine.embed(CALL, "two", ["a cat"])

    with_engine([one.model() for one in made], use, idle_unload_min=SOON_MIN)
    assert [one.others[0] for one in made] == [("two", "three"), ("three",), ()]
    assert made[1].others[1] == ("one", "three")


def test_a_loaded_model_of_another_backend_counts_as_one_that_needs_room(tmp_path: Path) -> None:
    made = three(tmp_path)

    async def nothing(_engine: LocalEngine) -> None:
        pass

    with_engine([made[0].model("mlx"), made[1].model("torch"), made[2].model("mlx")], nothing)
    assert [one.others[0] for one in made] == [("two", "three"), ("one", "three"), ("two",)]


def test_the_last_that_do_not_fit_fail_with_the_arithmetic_and_the_others_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = three(tmp_path)
    for one in made:
        one.read = replace(one.read, weight_bytes=10_000)
    monkeypatch.setattr(fake, "usable_bytes", lambda: 30_000)  # at 0.8: two, and a batch

    async def use(engine: LocalEngine) -> None:
        status = engine.status()
        assert [card.state for card in status.models] == ["ready", "ready", "failed"]
        assert status.state == "failed"
        assert status.error == (
            "There is no room for three beside the others: one needs 10000 bytes for its weights and 2304 for its longest "
            "input, the other models 20000: more than DEVICE_MEMORY_FRACTION allows, 24000."
        )
        assert (await engine.embed(CALL, "two", ["a cat"])).vectors.shape == (1, 8)
        with pytest.raises(NotReady, match="'three' failed to load"):
            await engine.embed(CALL, "three", ["a cat"])

    models = [Model(one.read, partial(fake.load, one.read), "fake") for one in made]
    with_engine(models, use)


def test_a_model_that_does_not_fit_alone_fails_alone(tmp_path: Path) -> None:
    made = three(tmp_path)
    made[0].errors += [NoRoom("It is too large.")] * 3

    async def use(engine: LocalEngine) -> list[str]:
        return [card.state for card in engine.status().models]

    assert with_engine([one.model() for one in made], use) == ["failed", "ready", "ready"]
