"""The soak can fail: what is not the right answer is counted as wrong, and what is none as lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.soak.abuse import bad_requests
from tests.soak.calls import Call, Calls
from tests.soak.tally import Tally, rows
from tests.soak.texts import Oracle, folder, troubled
from tests.soak.wire import Answer, Connection, Lost, Place
from tests.whole import Whole


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(folder(tmp_path_factory.mktemp("soak") / "m"))


@pytest.fixture
def calls(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.setattr("tests.soak.calls.TROUBLE", 0.0)
    return Calls(oracle, 0)


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers, orjson.dumps(body))


def outcomes(call: Call, *answers: Answer) -> list[str]:
    return [call.judge(one)[0] for one in answers]


def test_a_row_that_is_off_in_another_place_or_missing_is_wrong(calls: Calls, oracle: Oracle) -> None:
    call = calls.plain("tei", "/embed", "inputs", 3, lambda told: told)
    texts = orjson.loads(call.data.partition(b"\r\n\r\n")[2])["inputs"]
    right = oracle.rows(texts).tolist()
    off = [[*right[0][:-1], right[0][-1] + 1e-3], *right[1:]]
    nan = [[None, *right[0][1:]], *right[1:]]
    told = outcomes(call, answer(right), answer(right[::-1]), answer(right[:2]), answer(off), answer(nan), answer({}))
    assert told == ["right", *["wrong"] * 5]


def test_a_failure_is_wrong_unless_it_was_asked_for(calls: Calls, oracle: Oracle) -> None:
    fine = calls.openai(1, "float")
    asked = Call(fine.kind, fine.data, fine.check, "nan!")
    assert outcomes(fine, answer({"error": 1}, 500), answer({}, 429), answer({}, 429, **{"retry-after": "3"})) == [
        "wrong",
        "wrong",
        "refused",
    ]
    assert outcomes(asked, answer({"error": 1}, 500), answer({"error": 1}, 400)) == ["scripted", "wrong"]
    row = oracle.row(oracle.short[0]).tolist()
    assert outcomes(asked, answer({"data": [{"index": 0, "embedding": row}]})) == ["wrong"]


def test_the_oracle_says_what_the_server_says(tmp_path: Path, calls: Calls) -> None:
    models = {"MODEL_NAME": str(folder(tmp_path / "m")), "CROSS_ENCODER_MODEL": str(folder(tmp_path / "r", "rerank"))}
    told = []
    with Whole(tmp_path, None, **models) as app:
        for call in (calls.next() for _ in range(150)):
            head, _, body = call.data.partition(b"\r\n\r\n")
            method, path, _ = head.decode().split(" ", 2)
            got = app.ask(method, path, content=body, headers={"content-type": "application/json"})
            told.append(call.judge(Answer(got.status_code, dict(got.headers), got.content)))
    assert set(told) == {("right", "")}


def test_trouble_survives_the_cut(oracle: Oracle) -> None:
    assert troubled(oracle.pool[-1], "nan!").split()[1] == "nan!"


def test_every_kind_of_bad_input_has_a_name() -> None:
    kinds = bad_requests()
    assert len({name for name, _, _ in kinds}) == len(kinds) > 25


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"rubbish\r\n\r\n"])
def test_no_whole_answer_is_lost(said: bytes) -> None:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            async with Connection(Place(host, port)) as one:
                with pytest.raises(Lost):
                    await one.ask(b"GET / HTTP/1.1\r\n\r\n")

    asyncio.run(main())


def test_the_table_counts_and_tells_why() -> None:
    tally = Tally()
    tally.add("query", "right", 0.5)
    tally.add("query", "wrong", why="a row is off")
    assert (tally.clean, tally.requests, tally.of("wrong"), tally.told) == (False, 2, 1, ["wrong: query: a row is off"])
    assert [line.split()[0] for line in rows(tally)] == ["request", "query", "all"]
