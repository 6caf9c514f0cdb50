"""A device that gives nonsense, lacks memory, hangs or is lost, behind a running server: what each client is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.near import Near, near
from tests.small import SPECIALS
from vecgate.backends import fake
from vecgate.engine import batcher
from vecgate.errors import DeviceLost

LIMIT_S = 60.0
PATH = "/v1/embeddings"
POISON = SPECIALS.index("poison")


def run(cwd: Path, scene: Callable[[Near], Awaitable[None]], **names: str) -> None:
    async def play() -> None:
        async with asyncio.timeout(LIMIT_S), near(cwd, fake.Script(), **names) as server:
            server.script.batches.clear()
            server.script.entered.clear()
            await scene(server)

    asyncio.run(play())


async def together(server: Near, *texts: str) -> list[asyncio.Task[tuple[int, dict[str, str], str]]]:
    """A request for each text; all of them wait behind one that the device has begun, and are then one batch."""
    server.script.hold = threading.Event()
    first = asyncio.create_task(server.post(PATH, {"input": "dogs"}))
    await asyncio.to_thread(server.script.entered.wait, LIMIT_S)

    async def one(text: str) -> tuple[int, dict[str, str], str]:
        answer = await server.post(PATH, {"input": text})
        return answer.status, answer.headers, answer.body.decode()

    tasks = [asyncio.create_task(one(text)) for text in texts]
    await server.waiting(len(texts))
    server.script.hold.set()
    await first
    return tasks


@pytest.mark.parametrize("kind", ["nan_ids", "zero_ids"])
def test_a_row_that_is_no_number_costs_its_own_request_only(tmp_path: Path, kind: str) -> None:
    async def scene(server: Near) -> None:
        setattr(server.script, kind, frozenset({POISON}))
        tasks = await together(server, "paris", "poison", "berlin")
        (well, _, _), (bad, headers, body), (fine, _, _) = await asyncio.gather(*tasks)
        assert (well, bad, fine) == (200, 500, 200)
        assert headers["x-should-retry"] == "false"
        assert "null" not in body.replace('"param":null', "").replace('"code":null', "")
        assert [len(batch.rows) for batch in server.script.batches] == [1, 3, 1]
        assert await server.metric('vecgate_nonfinite_rows_total{model="small"}') == 1
        assert await server.metric('vecgate_failed_rows_total{model="small"}') == 1
        again = await server.post(PATH, {"input": "poison"})  # never from a cache
        assert again.status == 500
        setattr(server.script, kind, frozenset())
        assert (await server.post(PATH, {"input": "poison"})).status == 200

    run(tmp_path, scene)


def test_a_device_without_room_answers_all_in_smaller_batches(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        server.script.most_tokens = 12
        tasks = await together(server, *["paris is the capital of france"] * 6)
        assert {status for status, _, _ in await asyncio.gather(*tasks)} == {200}
        assert [len(batch.rows) for batch in server.script.batches] == [1, 6, 3, 1, 2, 1, 1, 3, 1, 2, 1, 1]
        assert await server.metric('vecgate_batch_limit_tokens{kind="now",model="small"}') == 8
        assert await server.metric('vecgate_batch_limit_tokens{kind="configured",model="small"}') == 2048

    run(tmp_path, scene)


def test_a_device_that_is_lost_ends_every_call_and_readiness(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        lost = DeviceLost("The device fell off the bus.")
        server.script.failure = lambda tokens: lost if POISON in tokens.ids else None  # type: ignore[assignment,return-value]
        tasks = await together(server, "paris", "poison", "berlin")
        for status, headers, body in await asyncio.gather(*tasks):
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert "going down" in body
            assert "bus" not in body
        assert (await server.post(PATH, {"input": "paris"})).status == 503
        for path, status in (("/health", 503), ("/health/live", 503), ("/health/ready", 503)):
            answer = await server.get(path)
            assert (answer.status, answer.json["status"]) == (status, "failed")
        assert await server.metric('vecgate_state{state="failed"}') == 1

    run(tmp_path, scene)


def test_a_device_that_hangs_is_told_and_comes_back_if_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(server: Near) -> None:
        assert (await server.get("/health/live")).status == 200
        monkeypatch.setattr(batcher, "HUNG_AFTER_S", 0.0)
        monkeypatch.setattr(batcher, "HUNG_TIMES", 0.0)
        server.script.hold = threading.Event()
        task = asyncio.create_task(server.post(PATH, {"input": "dogs"}))
        await asyncio.to_thread(server.script.entered.wait, LIMIT_S)
        for path in ("/health", "/health/live", "/health/ready"):
            answer = await server.get(path)
            assert (answer.status, answer.json["status"]) == (503, "failed")
        assert await server.metric("vecgate_device_alive") == 0
        server.script.hold.set()
        assert (await task).status == 200
        assert (await server.get("/health/live")).status == 200

    run(tmp_path, scene)
