"""More than the device can do, over a socket: what is admitted is answered, what would wait in vain is told so at once,
and whoever leaves takes their work along."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.near import Answered, Near, head, near, until
from vecgate.backends import fake
from vecgate.core import Tokens
from vecgate.engine.tokenizer import Tokenizer

LIMIT_S = 60.0
BURST = 800
"""`make soak` sends more."""
PATH = "/v1/embeddings"
TEXT = " ".join(["paris"] * 20)  # cut to the model's 12 tokens
MANY = {"input": [TEXT] * 1000}  # 12,000 tokens
ONE = {"input": TEXT}


def run(cwd: Path, scene: Callable[[Near], Awaitable[None]], **names: str) -> None:
    """The scene over a server whose warm-up took its time (at most 240 tokens a second, as it is believed), and whose device is then held."""
    script = fake.Script(forward_s=0.2)

    async def play() -> None:
        async with asyncio.timeout(LIMIT_S), near(cwd, script, VECGATE_BATCH_TOKENS="1200", **names) as server:
            script.forward_s, script.rows, script.hold = 0.0, 0, threading.Event()
            script.batches.clear()
            script.entered.clear()
            await scene(server)

    asyncio.run(play())


async def held(server: Near, body: Any) -> asyncio.Task[Answered]:
    """A request whose first batch the device has begun."""
    task = asyncio.create_task(server.post(PATH, body))
    await asyncio.to_thread(server.script.entered.wait, LIMIT_S)
    return task


def release(server: Near) -> None:
    assert server.script.hold is not None
    server.script.hold.set()


def test_of_a_burst_each_is_answered(tmp_path: Path) -> None:
    answered: list[Answered] = []

    async def one(server: Near) -> None:
        answered.append(await server.post(PATH, ONE))

    async def scene(server: Near) -> None:
        tasks = [asyncio.create_task(one(server)) for _ in range(BURST)]
        while server.guard.in_flight + len(answered) < BURST or not answered:
            assert (await server.get("/health/live")).status == 200
        release(server)
        await asyncio.gather(*tasks)
        counts = Counter(one.status for one in answered)
        assert set(counts) == {200, 429}
        assert counts.total() == BURST
        assert counts[200] == server.script.rows
        refused = [one for one in answered if one.status == 429]
        assert all(1 <= int(one.headers["retry-after"]) <= 60 for one in refused)
        assert "REQUEST_TIMEOUT" in refused[0].json["error"]["message"]
        assert await server.metric('vecgate_shed_total{reason="queue"}') == counts[429]
        assert await server.metric("vecgate_queue_items") == 0

    run(tmp_path, scene, REQUEST_TIMEOUT="20")


def test_hundreds_of_single_texts_at_once_are_all_embedded(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        tasks = [asyncio.create_task(server.post(PATH, ONE)) for _ in range(300)]
        await asyncio.to_thread(server.script.entered.wait, LIMIT_S)
        release(server)
        assert {one.status for one in await asyncio.gather(*tasks)} == {200}

    run(tmp_path, scene)


def test_an_empty_queue_takes_what_is_larger_than_the_deadline_allows(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        release(server)
        answer = await server.post(PATH, MANY)  # 50 s at the rate that is known
        assert answer.status == 200
        assert len(answer.json["data"]) == 1000

    run(tmp_path, scene, REQUEST_TIMEOUT="20")


def test_what_would_wait_in_vain_is_refused_before_its_body_and_a_query_is_not(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        first = await held(server, MANY)
        refused = await server.answer(*await server.connect(head(PATH, 1_000_000)))  # and no body
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        query = asyncio.create_task(server.post(PATH, ONE))
        await until(lambda: server.guard.in_flight > 1)
        assert (await server.get("/v1/models")).status == 200
        release(server)
        assert (await query).status == (await first).status == 200
        assert await server.metric('vecgate_shed_total{reason="queue"}') == 1

    run(tmp_path, scene, REQUEST_TIMEOUT="20")


def test_a_body_of_unknown_length_is_judged_once_it_is_there(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        first = await held(server, MANY)
        data = json.dumps(MANY).encode()
        connected = await server.connect(head(PATH, None), b"%x\r\n" % len(data), data, b"\r\n0\r\n\r\n")
        assert (await server.answer(*connected)).status == 429
        release(server)
        assert (await first).status == 200

    run(tmp_path, scene, REQUEST_TIMEOUT="20")


# clients that leave


async def left(server: Near) -> None:
    """Until nobody is in flight, and nothing waits."""
    await until(lambda: not server.guard.in_flight)
    await server.waiting(0)


def test_of_a_giant_whose_client_leaves_no_more_is_computed(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        data = json.dumps({"input": [TEXT] * 2000}).encode()
        _, writer = await server.connect(head(PATH, len(data)), data)
        await asyncio.to_thread(server.script.entered.wait, LIMIT_S)
        await server.waiting(2000 - 100)  # the rest of one batch
        writer.close()
        await left(server)
        release(server)
        assert (await server.post(PATH, {"input": ["dogs", "bark"]})).status == 200
        assert [len(batch.rows) for batch in server.script.batches] == [100, 2]
        assert await server.metric('vecgate_dropped_rows_total{model="small"}') == 1900

    run(tmp_path, scene)


def test_of_a_call_whose_client_leaves_while_it_is_tokenised_nothing_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    steps: list[int] = []
    encode_steps = Tokenizer.encode_steps

    def slowly(self: Tokenizer, *given: Any, **more: Any) -> Iterator[list[Tokens]]:
        for step in encode_steps(self, *given, **more):
            steps.append(len(step))
            begun.set()
            go.wait(LIMIT_S)
            yield step

    async def scene(server: Near) -> None:
        release(server)
        monkeypatch.setattr(Tokenizer, "encode_steps", slowly)
        data = json.dumps({"input": [TEXT] * 2000}).encode()
        _, writer = await server.connect(head(PATH, len(data)), data)
        await asyncio.to_thread(begun.wait, LIMIT_S)
        writer.close()
        await left(server)
        go.set()
        monkeypatch.undo()
        assert (await server.post(PATH, ONE)).status == 200
        assert len(steps) == 1
        assert server.script.rows == 1

    run(tmp_path, scene)


@pytest.mark.parametrize("sent", [b"", b'{"input": ["a", "b"'])
def test_of_a_body_whose_client_leaves_nothing_is_computed(tmp_path: Path, sent: bytes) -> None:
    async def scene(server: Near) -> None:
        release(server)
        _, writer = await server.connect(head(PATH, 1000), sent)
        await until(lambda: server.guard.in_flight == 1)
        writer.close()
        await left(server)
        assert (server.script.rows, server.guard.body_bytes) == (0, 0)

    run(tmp_path, scene)


def test_a_storm_of_clients_that_leave_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scene(server: Near) -> None:
        first = await held(server, ONE)
        data = json.dumps({"input": [TEXT] * 10}).encode()
        writers = [(await server.connect(head(PATH, len(data)), data))[1] for _ in range(300)]
        await server.waiting(3000)
        for writer in writers:
            writer.close()
        while server.guard.in_flight > 1:
            assert (await server.get("/health/live")).status == 200
        await server.waiting(0)
        release(server)
        assert (await first).status == 200
        assert server.script.rows == 1

    run(tmp_path, scene)
