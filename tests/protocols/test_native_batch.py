"""/api/v1/rerank/batch: many queries in one call, as one JSON answer or as lines that come as they are ready."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import small
from tests.protocols import stub
from vecgate.app import create_app
from vecgate.backends import fake
from vecgate.core import Call, Cut, Method, Ranking, Tokens
from vecgate.engine.local import LocalEngine
from vecgate.errors import BackendFailed, DeadlineExceeded, InputTooLong, NotReady, VecgateError
from vecgate.protocols import Site, gather
from vecgate.settings import Settings

PATH = "/api/v1/rerank/batch"
NATIVE = ["vecgate.protocols.native"]
LINES = {"accept": "application/x-ndjson"}
PASSAGES = ["the cat sat", "a dog", "machine learning"]
PETS = {"query": "a cat", "passages": PASSAGES, "top_k": 2}
STUDY = {"query": "learning", "passages": ["paris", "search learning"]}
POISON = small.SPECIALS.index("poison")


@dataclass
class Waiting(stub.StubEngine):
    """The stub, whose rerank of a query waits for the event of that name, or raises the error of that name."""

    until: dict[str, asyncio.Event] = field(default_factory=dict)
    errors: dict[str, VecgateError] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    async def rerank(
        self,
        call: Call,
        model: str | None,
        query: str,
        documents: Sequence[str],
        *,
        method: Method = "auto",
        top_n: int | None = None,
        max_tokens_per_document: int | None = None,
        cut: Cut = "end",
        max_tokens: int | None = None,
    ) -> Ranking:
        self.begun.append(query)
        if query in self.until:
            await self.until[query].wait()
        if query in self.errors:
            raise self.errors[query]
        return await super().rerank(call, model, query, documents, method=method, top_n=top_n, cut=cut)


def call(
    body: object, engine: stub.StubEngine | None = None, headers: dict[str, str] | None = None, **site: Any
) -> httpx.Response:
    async def go() -> httpx.Response:
        async with stub.client_of(stub.app_of(engine or stub.StubEngine(), Site(**site), NATIVE)) as client:
            return await client.post(PATH, json=body, headers=headers)

    return asyncio.run(go())


def good(body: object, engine: stub.StubEngine | None = None) -> Any:
    response = call(body, engine)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert response.json()["message"] == error["message"]
    return error


def lines(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert "content-length" not in response.headers
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return result | {"processing_time": 0, "usage": result["usage"] | {"processing_time_ms": 0}}


def test_every_query_gets_what_the_single_route_answers() -> None:
    async def single(body: Any) -> Any:
        async with stub.client_of(stub.app_of(stub.StubEngine(), Site(), NATIVE)) as client:
            return (await client.post("/api/v1/rerank", json=body)).json()

    answer = good({"queries": [PETS, STUDY]})
    assert list(answer) == ["results", "processing_time", "usage"]
    for index, body in enumerate((PETS, STUDY)):
        alone = asyncio.run(single(body))
        assert timeless(answer["results"][index]) == timeless(alone) | {"index": index}


def test_usage_is_the_sum_of_all_queries() -> None:
    answer = good({"queries": [PETS, STUDY, PETS]})
    usages = [result["usage"] for result in answer["results"]]
    assert answer["usage"] | {"processing_time_ms": 0} == {
        "total_queries": 3,
        "total_passages": 3 + 2 + 3,
        "returned_passages": 2 + 2 + 2,
        "total_tokens": sum(usage["total_tokens"] for usage in usages),
        "processing_time_ms": 0,
    }
    assert answer["usage"]["processing_time_ms"] == pytest.approx(answer["processing_time"] * 1e3, abs=0.01)


def test_the_headers_count_the_inputs_of_all_queries() -> None:
    response = call({"queries": [PETS, {"query": "a", "passages": ["b", "cat " * 100]}]})
    assert response.headers["x-vecgate-model"] == "org/stub-embed"
    assert response.headers["x-vecgate-truncated"] == "4:102>32"
    assert response.headers["server-timing"] == "queue;dur=1.00, tokenise;dur=4.00, forward;dur=3.00, encode;dur=0.00"


def test_the_answer_is_in_the_order_of_the_queries_whichever_is_ready_first() -> None:
    async def go() -> httpx.Response:
        engine = Waiting(until={"first": asyncio.Event()})
        async with stub.client_of(stub.app_of(engine, Site(), NATIVE)) as client:
            bodies = [{"query": name, "passages": ["a"]} for name in ("first", "second", "third")]
            asking = asyncio.create_task(client.post(PATH, json={"queries": bodies}))
            await turns()
            assert len(engine.begun) == 3
            assert not asking.done()
            engine.until["first"].set()
            return await asking

    answer = asyncio.run(go()).json()
    assert [(one["index"], one["query"]) for one in answer["results"]] == [(0, "first"), (1, "second"), (2, "third")]


def test_what_the_batch_says_holds_for_the_queries_that_do_not_say_it() -> None:
    engine = stub.StubEngine()
    own = {"top_k": 1, "method": "auto", "return_text": True, "model": "stub-embed"}
    common = {"top_k": 2, "method": "similarity", "return_text": False, "model": "stub"}
    answer = good({"queries": [PETS | own, {"query": "q", "passages": PASSAGES}], **common}, engine)
    assert [(one["model"], one["method"], one["top_n"]) for one in engine.rankings] == [
        ("stub-embed", "auto", 1),
        ("stub", "similarity", 2),
    ]
    assert [list(one["results"][0]) for one in answer["results"]] == [["text", "score", "index"], ["score", "index"]]


def test_a_query_that_says_it_by_use_cross_encoder_is_not_overruled_by_the_batchs_method() -> None:
    engine = stub.StubEngine()
    queries = [PETS | {"use_cross_encoder": False}, PETS]
    good({"queries": queries, "method": "auto"}, engine)
    good({"queries": queries, "method": "auto", "use_cross_encoder": True}, engine)
    assert [one["method"] for one in engine.rankings] == ["similarity", "auto", "similarity", "auto"]


def test_all_queries_together_have_the_limit_of_one() -> None:
    good_one = {"queries": [{"query": "q", "passages": ["a"] * 2}] * 2}
    assert call(good_one, max_passages_per_rerank=4).status_code == 200
    for headers in ({}, LINES):
        error = refused(call(good_one, headers=headers, max_passages_per_rerank=3))
        assert error["message"] == (
            "queries hold 4 passages together; the limit is 3 a request (MAX_PASSAGES_PER_RERANK)."
        )
        assert error["param"] == "queries"


@pytest.mark.parametrize("headers", [{}, LINES], ids=["json", "lines"])
def test_queries_without_passages_have_a_limit_too(headers: dict[str, str]) -> None:
    error = refused(call({"queries": [PETS | {"passages": []}] * 4}, headers=headers, max_passages_per_rerank=3))
    assert error["message"] == "queries holds 4 queries; the limit is 3 a request (MAX_PASSAGES_PER_RERANK)."
    assert error["param"] == "queries"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"queries": []}, "queries", "queries is empty; give at least one query."),
        ({}, "queries", "`queries`"),
        ({"queries": None}, "queries", "got `null`"),
        ({"queries": PETS}, "queries", "Expected `array`, got `object`"),
        ({"queries": ["q"]}, "queries[0]", "Expected `object`, got `str`"),
        ({"queries": [PETS, {"query": "q"}]}, "queries[1]", "`passages`"),
        ({"queries": [PETS, PETS | {"passages": [1]}]}, "queries[1].passages[0]", "Expected `str`"),
        ({"queries": [PETS], "top_k": 0}, "top_k", "top_k is 0; it must be from 1 to 2147483647."),
        ({"queries": [PETS], "method": "colbert"}, "method", "method is 'colbert'; it must be one of"),
        ([PETS], None, "Expected `object`, got `array`"),
    ],
)
@pytest.mark.parametrize("headers", [{}, LINES], ids=["json", "lines"])
def test_a_malformed_batch_is_a_400_in_both_forms(
    body: object, param: str | None, words: str, headers: dict[str, str]
) -> None:
    error = refused(call(body, headers=headers))
    assert words in error["message"]
    assert (error["param"], error["code"]) == (param, "invalid_request")


@pytest.mark.parametrize("headers", [{}, LINES], ids=["json", "lines"])
def test_an_unknown_model_of_the_whole_batch_is_a_404_in_both_forms(headers: dict[str, str]) -> None:
    error = refused(call({"queries": [PETS, STUDY], "model": "nope"}, headers=headers), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


BAD_QUERIES = [
    ({"query": "q", "passages": []}, "passages", "passages is empty; give at least one text."),
    (PETS | {"top_k": 0}, "top_k", "top_k is 0; it must be from 1 to 2147483647."),
    (PETS | {"method": "x"}, "method", "method is 'x'; it must be one of auto, similarity, "),
    (PETS | {"use_cross_encoder": True}, "method", "No reranker is loaded"),
]


@pytest.mark.parametrize(("bad", "param", "words"), BAD_QUERIES)
def test_one_bad_query_fails_the_json_answer_which_names_it(bad: object, param: str, words: str) -> None:
    error = refused(call({"queries": [PETS, bad, STUDY]}))
    assert error["message"].startswith(f"queries[1]: {words}")
    assert (error["param"], error["code"]) == (f"queries[1].{param}", "invalid_request")


@pytest.mark.parametrize(("bad", "param", "words"), BAD_QUERIES)
def test_one_bad_query_is_one_line_among_the_others(bad: object, param: str, words: str) -> None:
    found = lines(call({"queries": [PETS, bad, STUDY]}, headers=LINES))
    by_index = {line["index"]: line for line in found}
    assert set(by_index) == {0, 1, 2}
    assert len(found) == 3
    assert list(by_index[1]) == ["index", "error"]
    assert list(by_index[1]["error"]) == ["message", "type", "param", "code"]
    assert by_index[1]["error"]["message"].startswith(words)
    assert by_index[1]["error"]["param"] == param
    json_answer = good({"queries": [PETS, STUDY, STUDY]})["results"]
    assert timeless(by_index[0]) == timeless(json_answer[0])
    assert timeless(by_index[2]) == timeless(json_answer[2])


def test_what_is_wrong_in_itself_costs_no_other_query_its_work() -> None:
    engine = Waiting()
    error = refused(call({"queries": [PETS, STUDY, PETS | {"top_k": 0}]}, engine))
    assert error["param"] == "queries[2].top_k"
    assert engine.begun == []


def test_a_long_batch_leaves_room_for_others() -> None:
    async def scene() -> None:
        engine = Waiting(until={"slow": asyncio.Event()})
        exchange = Exchange(create_app(Settings(), engine), {"queries": [{"query": "slow", "passages": ["x"]}] * 70})
        task = exchange.start()
        await turns()
        assert len(engine.begun) == gather.AT_ONCE
        engine.until["slow"].set()
        await task
        assert len(engine.begun) == 70

    run(scene())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputTooLong("long", "passages"), 400, "input_too_long"),
        (BackendFailed("rows"), 500, "backend_failed"),
        (NotReady("loading", 5), 503, "not_ready"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded"),
    ],
)
def test_what_the_engine_raises_for_one_query_keeps_its_status_and_stays_itself(
    error: VecgateError, status: int, code: str
) -> None:
    engine = Waiting(errors={"bad": error})
    message = str(error)
    response = call({"queries": [PETS, {"query": "bad", "passages": ["a"]}]}, engine)
    told = refused(response, status)
    assert (told["message"], told["code"]) == (f"queries[1]: {message}", code)
    assert response.headers.get("retry-after") == ("5" if status == 503 else None)
    assert str(error) == message  # other calls may hold the same error
    last = lines(call({"queries": [PETS, {"query": "bad", "passages": ["a"]}]}, engine, LINES))[1]
    assert (last["index"], last["error"]["message"], last["error"]["code"]) == (1, message, code)


@pytest.mark.parametrize("headers", [{}, LINES], ids=["json", "lines"])
def test_a_server_that_is_not_ready_says_so_by_its_status(headers: dict[str, str]) -> None:
    response = call({"queries": [PETS, STUDY]}, stub.StubEngine(fail=NotReady("loading", 5)), headers)
    assert refused(response, 503)["code"] == "not_ready"
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON; charset=utf-8", True),
        ("application/json, application/x-ndjson", True),
        ("application/x-ndjson;q=0.9, application/json; q=0.8", True),
        ("text/plain;q=0.1,application/x-ndjson ; q=0.5 , */*;q=0.9", True),
        ("application/x-ndjson;q=0", False),
        ("application/x-ndjson;q=0.5, application/json", False),
        ("application/json", False),
        ("*/*", False),
        ("application/*", False),
        ("", False),
        ("application/x-ndjson-plus", False),
    ],
)
def test_the_accept_header_decides_the_form(accept: str, streamed: bool) -> None:
    response = call({"queries": [PETS]}, headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == ("application/x-ndjson" if streamed else "application/json")


def test_accept_may_come_in_several_headers() -> None:
    async def go() -> httpx.Response:
        async with stub.client_of(stub.app_of(stub.StubEngine(), Site(), NATIVE)) as client:
            pairs = [("accept", "text/html"), ("accept", "application/x-ndjson")]
            return await client.post(PATH, json={"queries": [PETS]}, headers=pairs)

    assert len(lines(asyncio.run(go()))) == 1


class Exchange:
    """One streamed request, driven by hand as a server would."""

    def __init__(self, app: Any, body: object) -> None:
        self.app = app
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        raw = json.dumps(body).encode()
        self.incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        headers = {"host": "localhost:9000", "content-length": str(len(raw)), **LINES}
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 5),
        }

    def start(self) -> asyncio.Task[None]:
        async def asgi() -> None:
            await self.app(self.scope, self.incoming.get, self.sent.put)

        return asyncio.create_task(asgi())

    async def started(self) -> int:
        message = await self.sent.get()
        assert message["type"] == "http.response.start"
        return int(message["status"])

    async def line(self) -> Any:
        message = await self.sent.get()
        assert message["more_body"]
        assert message["body"].endswith(b"\n")
        return json.loads(message["body"])

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})


async def turns() -> None:
    """Enough turns of the loop for whatever can move to have moved."""
    for _ in range(50):
        await asyncio.sleep(0)


def run(scene: Coroutine[Any, Any, None]) -> None:
    """The scene, in a minute at most; afterwards no task may be left."""

    async def whole() -> None:
        async with asyncio.timeout(60):
            await scene
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


def test_lines_come_in_the_order_they_are_ready() -> None:
    async def scene() -> None:
        engine = Waiting(until={name: asyncio.Event() for name in ("a", "b", "c")})
        queries = [{"query": name, "passages": ["x"]} for name in engine.until]
        exchange = Exchange(create_app(Settings(), engine), {"queries": queries})
        task = exchange.start()
        await turns()
        assert len(engine.begun) == 3
        assert exchange.sent.empty()  # the status waits for the first query
        for at, name in ((2, "c"), (0, "a"), (1, "b")):
            engine.until[name].set()
            if at == 2:
                assert await exchange.started() == 200
            line = await exchange.line()
            assert (line["index"], line["query"]) == (at, name)
        await task
        assert exchange.sent.get_nowait() == {"type": "http.response.body", "body": b"", "more_body": False}

    run(scene())


def test_what_nobody_foresaw_ends_the_lines_with_an_error_and_the_rest_of_the_work() -> None:
    class Broken(Waiting):
        async def rerank(self, *arguments: Any, **named: Any) -> Ranking:
            ranking = await super().rerank(*arguments, **named)
            return ranking if "good" in self.begun[-1:] else replace(ranking, applied=None)  # type: ignore[arg-type]

    async def scene() -> None:
        engine = Broken(until={"bad": asyncio.Event(), "never": asyncio.Event()})
        queries = [{"query": name, "passages": ["x"]} for name in ("never", "bad", "good")]
        exchange = Exchange(create_app(Settings(), engine), {"queries": queries})
        task = exchange.start()
        assert await exchange.started() == 200
        assert (await exchange.line())["query"] == "good"
        engine.begun.append("bad")
        engine.until["bad"].set()
        message = await exchange.sent.get()
        assert json.loads(message["body"])["error"]["code"] == "backend_failed"
        assert not message.get("more_body")
        await task

    run(scene())


class Held:
    """An app over the fake backend, one row a forward, whose rows with the word poison wait until `gate` is set."""

    def __init__(self, folder: Path) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        self.script = fake.Script(failure=self._wait)
        self.served = small.Served(small.model(small.checkpoint(folder), self.script), max_rows=1)

    def _wait(self, row: Tokens) -> None:
        if POISON in row.ids:
            self.reached.set()
            self.gate.wait(60)

    async def __aenter__(self) -> LocalEngine:
        engine = self.served.__enter__()
        await engine.settled()
        self.script.rows = 0
        return engine

    async def __aexit__(self, *raised: object) -> None:
        self.gate.set()
        self.served.__exit__()


QUERIES = [{"query": word, "passages": [f"{word} dogs", f"{word} bark"]} for word in ("cat", "poison", "paris")]


def test_a_line_arrives_before_the_last_query_is_computed(tmp_path: Path) -> None:
    async def scene() -> None:
        held = Held(tmp_path)
        async with held as engine:
            exchange = Exchange(create_app(Settings(), engine), {"queries": QUERIES})
            task = exchange.start()
            assert await exchange.started() == 200
            assert (await exchange.line())["index"] == 0
            assert held.script.rows == 3  # of the 9: the first query and its passages
            assert not task.done()
            held.gate.set()
            assert [(await exchange.line())["index"] for _ in range(2)] == [1, 2]
            await task
            assert held.script.rows == 9

    run(scene())


def test_who_leaves_amid_the_lines_takes_the_waiting_rows_along(tmp_path: Path) -> None:
    async def scene() -> None:
        held = Held(tmp_path)
        async with held as engine:
            exchange = Exchange(create_app(Settings(), engine), {"queries": QUERIES})
            task = exchange.start()
            await exchange.started()
            await exchange.line()
            await asyncio.to_thread(held.reached.wait)
            assert engine.status().queue.items == 5  # one of the second query's rows is on the device
            exchange.leave()
            await task
            assert engine.status().queue.items == 0
            assert exchange.sent.empty()
        assert sum(report.dropped_rows for report in held.served.reports) == 5
        assert held.script.rows == 4

    run(scene())
