"""The composition root: every part joined and asked as a whole, over the fake backend, for what no part shows alone."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Request
from litestar.exceptions import HTTPException
from safetensors.numpy import save_file

from tests import small
from tests.protocols.stub import StubEngine
from tests.whole import LIMIT_S, Whole
from vecgate.app import _outside_a_route, build, build_engine, create_app
from vecgate.backends import fake
from vecgate.config import load
from vecgate.core import Status
from vecgate.engine import room
from vecgate.engine.local import LocalEngine
from vecgate.errors import ConfigError, InvalidRequest
from vecgate.protocols import Route, routes
from vecgate.settings import Settings

POSTS = tuple(route for route in routes() if route.method == "POST" and "{" not in route.paths[0])
PATHS = tuple(dict.fromkeys(path for route in POSTS for path in route.paths))
EXAMPLES = {path: dict(route.example or {}) for route in reversed(POSTS) for path in route.paths}
BAD = {path: {route.render(InvalidRequest(""))[0] for route in POSTS if path in route.paths} for path in PATHS}
"""What bad input is to the dialects of a path: 422 in TEI's, 400 in the others."""
ONE_OF_EACH = ("/v1/embeddings", "/v1/rerank", "/api/v1/embed", "/similarity", "/v1/score", "/api/embed")
"""A path of each dialect: OpenAI's, Cohere's, ours, TEI's, vLLM's, Ollama's."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """One server for all that leaves no trace, with both kinds of model."""
    cwd = tmp_path_factory.mktemp("app")
    with Whole(cwd, CROSS_ENCODER_MODEL=str(small.folder(cwd / "judge", "rerank"))) as started:
        yield started


def told(answer: httpx.Response) -> str:
    """The message of a refusal, which has the shape of the path's protocol."""
    if answer.status_code == 401 and not answer.content:  # TEI's
        return answer.headers["www-authenticate"]
    body, path = answer.json(), answer.request.url.path
    if "error_type" in body:
        assert body.keys() == {"error", "error_type"}
        return str(body["error"])
    if path.startswith("/api/") and not path.startswith("/api/v1"):  # Ollama's
        assert body.keys() == {"error"}
        return str(body["error"])
    openais = ("/v1/embeddings", "/embeddings", "/v1/models", "/models", "/openai", "/v1/score", "/score")
    if path.startswith(openais):
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    if path.startswith(("/v1/", "/v2/")):
        coheres = {"message", "detail"} if path == "/v1/rerank" else {"message"}  # which Jina's clients share
        assert body.keys() == coheres or (path.endswith("/rerank") and body.keys() == {"error", "message"})  # native's
        return str(body["message"])
    return str(body["message"] if "message" in body else body["error"]["message"])


# paths and methods


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/nothing", {"error"}),
        ("/v1/nothing", {"error"}),
        ("/v1/embeddings/nothing", {"error"}),
        ("/v2/nothing", {"message"}),
        ("/api/v1/nothing", {"error", "message"}),
        ("/api/chat", {"error"}),
        ("/openai/deployments/x/chat/completions", {"error"}),
        ("/health/nothing", {"error", "message"}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_path_is_a_404_in_its_neighbours_dialect(app: Whole, method: str, path: str, keys: set[str]) -> None:
    answer = app.ask(method, path)
    assert answer.status_code == 404
    assert answer.json().keys() == keys
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("GET", "/v2/rerank", "POST"),
        ("DELETE", "/api/v1/embed", "POST"),
        ("OPTIONS", "/embed", "POST"),
        ("HEAD", "/embed", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/models/small", "GET, HEAD"),
        ("TRACE", "/v1/models/small", "GET, HEAD"),
        ("TRACE", "/health", "GET, HEAD"),
        ("TRACE", "/openai/deployments/small/embeddings", "POST"),
        ("GET", "/openai/deployments/small/embeddings", "POST"),
        ("POST", "/api/tags", "GET, HEAD"),
        ("BREW", "/v1/embeddings", "POST"),
    ],
)
def test_a_wrong_method_is_a_405_that_says_which_are_right(app: Whole, method: str, path: str, allowed: str) -> None:
    answer = app.ask(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or allowed.split(",")[0] in told(answer)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings/", "//v1//embeddings", "/v1/v1/embeddings", "/embeddings", "/embeddings//"]
)
def test_what_clients_make_of_a_base_url_is_answered_without_a_redirect(app: Whole, path: str) -> None:
    answer = app.run(app.client.request("POST", f"http://127.0.0.1:9000{path}", json={"input": "a cat"}))
    assert answer.status_code == 200
    assert answer.json() == app.post("/v1/embeddings", {"input": "a cat"}).json()


def test_rerank_keeps_the_version_that_was_asked_last(app: Whole) -> None:
    answer = app.post("/v1/v2/rerank", {"query": "a", "documents": ["a"]})
    assert answer.json()["meta"]["api_version"]["version"] == "2"


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/small", "/health", "/docs", "/openapi.json", "/metrics", "/"]
)
def test_head_is_get_without_a_body(app: Whole, path: str) -> None:
    full, head = app.ask("GET", path), app.ask("HEAD", path)
    assert (full.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_the_document_and_its_page_ask_for_nothing_from_elsewhere(app: Whole) -> None:
    document = app.get("/openapi.json").json()
    assert document["paths"].keys() >= {*PATHS, "/v1/models", "/health"}
    allowed = app.get("/docs").headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in allowed
    assert {source for rule in allowed for source in rule.split()[1:]} == {"'none'", "'self'", "data:"}


def test_the_two_models_are_served_by_their_routes(app: Whole) -> None:
    listed = app.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed if card["id"] == card["root"]] == ["small", "judge"]
    wrong = app.post("/v1/embeddings", {"input": "a", "model": "judge"})
    assert wrong.status_code == 400
    assert "judge" in told(wrong)


# browsers and keys


def test_a_page_on_this_machine_may_call_and_read(app: Whole) -> None:
    origin = "http://localhost:5173"
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-mine"}
    preflight = app.ask("OPTIONS", "/v1/embeddings", headers=asked)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-headers"] == "x-mine"
    for answer in (
        app.post("/v1/embeddings", {"input": "a"}, origin=origin),
        app.post("/v1/embeddings", {}, origin=origin),
        app.ask("GET", "/nothing", headers={"origin": origin}),
    ):
        assert answer.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


CALLERS = {
    "Open WebUI and n8n in a container": {"host": "host.docker.internal:9000"},
    "a page on this machine": {"origin": "http://localhost:3000"},
    "a page on this machine, over its address": {"origin": "https://127.0.0.1:8443"},
    "a page of this server": {"host": "host.docker.internal:9000", "origin": "http://host.docker.internal:9000"},
    "Obsidian": {"origin": "app://obsidian.md"},
    "Obsidian on a phone": {"origin": "capacitor://localhost"},
}


@pytest.mark.parametrize("path", ONE_OF_EACH)
@pytest.mark.parametrize("headers", CALLERS.values(), ids=CALLERS)
def test_what_runs_here_may_call_and_read_every_header(app: Whole, path: str, headers: dict[str, str]) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    preflight = app.ask("OPTIONS", path, headers={**headers, **asked})
    answer = app.post(path, {**EXAMPLES[path], "model": "judge" if "score" in path else "small"}, **headers)
    assert answer.status_code == 200
    given = (answer.headers, preflight.headers)
    assert [one.get("access-control-allow-origin") for one in given] == [headers.get("origin")] * 2
    exposed = set(answer.headers.get("access-control-expose-headers", "*").split(", "))
    told = {"x-request-id", "server-timing", "retry-after", "x-should-retry"}
    ours = {f"x-vecgate-{name}" for name in ("model", "role", "space", "dimensions", "truncated")}
    assert exposed == {"*"} or {*told, *ours, "*"} <= exposed
    assert ("origin" in headers) == (exposed != {"*"}) == (preflight.status_code == 204)


@pytest.mark.parametrize("path", ONE_OF_EACH)
@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}])
def test_a_strange_page_may_not_and_is_told_so(app: Whole, path: str, headers: dict[str, str]) -> None:
    answer = app.post(path, EXAMPLES[path], **headers)
    assert answer.status_code == 403
    assert "ALLOWED_" in told(answer)
    assert "access-control-allow-origin" not in answer.headers


def test_with_a_key_only_its_bearers_are_served(tmp_path: Path) -> None:
    with Whole(tmp_path, VECGATE_API_KEY="first,second") as app:
        for path in ONE_OF_EACH:
            refused = app.post(path, EXAMPLES[path])
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "Bearer" in told(refused)
            assert app.post(path, EXAMPLES[path], authorization="Bearer third").status_code == 401
            assert app.post(path, EXAMPLES[path], authorization="Bearer second").status_code == 200
            assert app.post(path, EXAMPLES[path], **{"x-api-key": "first"}).status_code == 200
        assert (
            app.get("/v1/models").status_code
            == app.get("/metrics").status_code
            == app.get("/nothing").status_code
            == 401
        )
        assert app.get("/health").json() == {"status": "ok"}
        assert app.get("/docs").status_code == app.get("/health/ready").status_code == 200


# the page


def test_the_page_is_told_of_settings_and_never_of_a_key(tmp_path: Path) -> None:
    with Whole(tmp_path, VECGATE_API_KEY="sesame-one", BATCH_SIZE="7") as app:
        assert app.get("/api/v1/about").status_code == app.get("/api/v1/live").status_code == 401
        answer = app.get("/api/v1/about", authorization="Bearer sesame-one")
        rows = {row["name"]: row for row in answer.json()["settings"]}
        assert (rows["BATCH_SIZE"]["value"], rows["BATCH_SIZE"]["default"], rows["BATCH_SIZE"]["changed"]) == (
            "7",
            "32",
            True,
        )
        assert (rows["VECGATE_API_KEY"]["value"], rows["PORT"]["changed"]) == ("set", False)
        assert answer.json()["folders"]["small"].endswith("/small")
        assert "sesame" not in answer.text


def test_who_watches_takes_nobodys_room_and_leaves_with_the_server(tmp_path: Path) -> None:
    with Whole(tmp_path, VECGATE_MAX_IN_FLIGHT="1", VECGATE_KEY_CONCURRENCY="1", VECGATE_RATE_LIMIT="1") as app:

        async def watch_and_work() -> tuple[list[int], httpx.Response]:
            streams = [asyncio.ensure_future(app.client.get("/api/v1/live")) for _ in range(2)]
            await asyncio.sleep(0)
            body = {"input": "a cat"}
            statuses = [(await app.client.post("/v1/embeddings", json=body)).status_code for _ in range(2)]
            app.life.leaving()
            await app.life.drain(LIMIT_S)
            return statuses, (await asyncio.gather(*streams))[0]

        statuses, stream = app.run(watch_and_work())
        assert statuses == [200, 429]  # the second is over the rate
        first, *_, last = [json.loads(event.removeprefix("data: ")) for event in stream.text.split("\n\n") if event]
        assert (first["in_flight"], first["status"]) == (0, "ok")
        assert (last["status"], last["leaving"], last["totals"]["inputs"]) == ("draining", True, 1)
        assert last["totals"]["errors"] == {"429": 1}


# what nobody foresaw


@pytest.mark.parametrize("path", ONE_OF_EACH)
def test_an_unforeseen_error_is_opaque_and_logged(
    app: Whole, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a text of the client's")

    monkeypatch.setattr(LocalEngine, "embed", broken)
    monkeypatch.setattr(LocalEngine, "rerank", broken)
    with caplog.at_level(logging.INFO):
        answer = app.post(path, EXAMPLES[path], **{"x-request-id": "mine-1"})
    status = 424 if path == "/similarity" else 500  # what TEI's failed backend is
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine-1")
    assert "mine-1" in told(answer)
    assert "text of the client" not in answer.text + caplog.text
    failed = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert "ZeroDivisionError" in str(vars(failed)["fields"])
    assert app.get("/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("key", "fields"),
    [("passages", {"error", "message"}), ("documents", {"message", "detail"})],
    ids=["native", "cohere"],
)
@pytest.mark.parametrize("status", [500, 504])
def test_on_a_shared_path_what_fails_late_is_told_in_the_dialect_of_the_body(
    tmp_path: Path, key: str, fields: set[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(*_: object, **__: object) -> None:
        if status == 500:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    monkeypatch.setattr(LocalEngine, "rerank", late)
    with Whole(tmp_path, REQUEST_TIMEOUT="0.05" if status == 504 else "300") as app:
        answer = app.post("/rerank", {"query": "a", key: ["b"]})
    assert (answer.status_code, answer.json().keys()) == (status, fields)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_every_path_that_reranks_takes_the_body_of_every_dialect(tmp_path: Path, path: str) -> None:
    with Whole(tmp_path) as app:
        cohere, tei, native = (app.post(path, {"query": "a", key: ["b"]}) for key in ("documents", "texts", "passages"))
        wrong = app.post(path, {"query": "a", "passages": []})
    assert cohere.json()["results"][0].keys() == {"index", "relevance_score"}
    assert tei.json()[0].keys() == {"index", "score"}
    assert native.json()["results"][0].keys() == {"text", "score", "index"}
    assert (wrong.status_code, wrong.json().keys()) == (400, {"error", "message"})


@pytest.mark.parametrize("text", [b"half of an emoji \\ud83d", b"no UTF-8 \xff"], ids=["a lone surrogate", "a byte"])
@pytest.mark.parametrize(("key", "status"), [("inputs", 422), ("texts", 400)], ids=["tei", "native"])
def test_what_is_no_json_is_told_in_the_dialect_it_began_in(tmp_path: Path, key: str, status: int, text: bytes) -> None:
    with Whole(tmp_path) as app:
        answer = app.post("/embed", b'{"%b": "%b"}' % (key.encode(), text))
    assert (answer.status_code, "error_type" in answer.json()) == (status, key == "inputs")


@pytest.mark.parametrize(
    ("path", "meant", "shape"),
    [
        ("/v1/info", "/info", "error_type"),
        ("/v1/tokenize", "/tokenize", "error_type"),
        ("/v1/health/", "/health", "message"),
        ("/v1/api/embed", "/api/embed", "error"),
        ("/v1/v1/api/tags", "/api/tags", "error"),
        ("/v1/api/v1/embed", "/api/v1/embed", "message"),
        ("/api/v1/embeddings", "/v1/embeddings", "error"),
        ("/v1/openai/deployments/a/b/embeddings", "/openai/deployments/a/b/embeddings", "error"),
        ("/proxy/v1/models/org/name", "/v1/models/org/name", "error"),
    ],
)
def test_a_wrong_base_url_is_told_the_right_one_in_the_dialect_that_was_meant(
    app: Whole, path: str, meant: str, shape: str
) -> None:
    answer = app.ask("POST", path, content=b"{}")
    assert answer.status_code == 404
    assert shape in answer.json()
    assert f"at '{meant}': take '/" in answer.text
    assert "' off the end of the client's base URL." in answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/", "/a" * 90, "/v1/info/x"])
def test_a_path_of_nothing_is_a_404_that_guesses_nothing(app: Whole, path: str) -> None:
    answer = app.get(path)
    assert (answer.status_code, "base URL" in answer.text) == (404, False)


def test_what_litestar_refuses_beside_paths_and_methods_is_unforeseen() -> None:
    scope: Any = {"type": "http", "path": "/x", "method": "GET"}
    with pytest.raises(HTTPException):
        _outside_a_route((), None, lambda _: None, Request(scope), HTTPException(status_code=400))


def test_a_failing_row_fails_its_call_alone_in_its_dialect(tmp_path: Path) -> None:
    poison = small.SPECIALS.index("poison")
    with Whole(tmp_path, fake.Script(nan_ids=frozenset({poison}))) as app:
        for path, body in (
            ("/v1/embeddings", {"input": ["a", "poison"]}),
            ("/v1/rerank", {"query": "a", "documents": ["poison"]}),
            ("/embed", {"texts": ["poison"]}),
        ):
            answer = app.post(path, body)
            assert (answer.status_code, answer.headers["x-should-retry"]) == (500, "false")
            assert "no usable row" in told(answer)
        assert app.post("/v1/embeddings", {"input": ["a"]}).status_code == 200


# life


def test_the_lifespan_starts_and_closes_the_engine(tmp_path: Path) -> None:
    with Whole(tmp_path) as app:
        assert app.get("/health/ready").json() == {"status": "ready"}
        assert not app.script.closed
    assert app.script.closed


def test_a_model_that_can_not_be_loaded_leaves_a_server_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unloadable(*_: object, **__: object) -> None:
        raise MemoryError("no room for the weights")

    monkeypatch.setattr(fake, "load", unloadable)
    with Whole(tmp_path) as app:
        health = app.get("/health")
        assert (health.status_code, health.json()["error"]) == (503, "no room for the weights")
        ready = app.get("/health/ready")
        assert (ready.status_code, ready.headers["x-should-retry"]) == (503, "false")
        refused = app.post("/v1/embeddings", {"input": "a"})
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "false")
        assert "failed to load" in told(refused)


def test_while_it_leaves_it_refuses_work_and_answers_probes(tmp_path: Path) -> None:
    with Whole(tmp_path) as app:
        app.life.leaving()
        app.run(app.life.drain(0.1))  # type: ignore[arg-type]
        for path in ONE_OF_EACH:
            refused = app.post(path, EXAMPLES[path])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "shutting down" in told(refused)
        assert app.get("/health/ready").json() == {"status": "draining"}
        assert app.get("/health").json()["status"] == "draining"


def test_the_death_of_the_device_thread_is_told(tmp_path: Path) -> None:
    class Death(BaseException):
        pass

    died: list[str] = []
    with Whole(tmp_path) as app:
        app.life.on_death(lambda: died.append("told"))
        app.script.once.append(Death())  # type: ignore[arg-type]
        assert app.post("/v1/embeddings", {"input": "a"}).status_code == 503
        while not died:
            assert app.get("/health/live").status_code in (200, 503)
        assert app.get("/health/live").status_code == 503


def test_an_engine_of_another_kind_is_served_as_it_is() -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(Settings(), StubEngine()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/models")

    assert asyncio.run(ask()).json()["data"][0]["id"] == "org/stub-embed"


# what is counted and logged


def test_the_work_of_a_request_is_in_headers_metrics_and_log(app: Whole, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vecgate.access"):
        answer = app.post("/v1/embeddings", {"input": ["a cat", "dogs " * 40]})
    assert answer.headers["x-vecgate-model"] == "small"
    assert answer.headers["x-vecgate-truncated"] == "1:42>12"
    (record,) = caplog.records
    fields: dict[str, Any] = vars(record)["fields"]
    assert {name: fields[name] for name in ("model", "inputs", "tokens", "truncated")} == {
        "model": "small",
        "inputs": 2,
        "tokens": 4 + 12,
        "truncated": 1,
    }
    assert fields["id"] == answer.headers["x-request-id"]
    assert "dogs" not in str(vars(record))
    exposed = app.get("/metrics").text
    assert 'route="/v1/embeddings"' in exposed
    assert 'vecgate_inputs_total{model="small"}' in exposed


def test_nothing_a_client_names_becomes_a_label(app: Whole) -> None:
    app.get("/nothing-that-anybody-serves")
    app.ask("BREW", "/v1/models/coffee")
    exposed = app.get("/metrics").text
    assert "nothing-that" not in exposed
    assert "coffee" not in exposed
    assert "BREW" not in exposed


# bodies that are no requests

DEEP = 100_000
BROKEN = {
    "nothing": b"",
    "blank": b" \n",
    "no JSON": b"hello",
    "cut short": b'{"input": ["a", ',
    "two values": b'{"input": "a"} {"input": "b"}',
    "not UTF-8": b'{"input": "\xff\xfe", "query": "\xff", "documents": ["\xff"], "texts": ["\xff"], "passages": ["\xff"]}',
    "not UTF-8 where nobody looks": b'{"ignored": "\xff", "input": "a", "query": "a", "documents": ["a"], "texts": ["a"]}',
    "UTF-16": '{"input": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"input": "a"}',
    "nested lists": b"[" * DEEP + b"]" * DEEP,
    "nested lists, open": b"[" * DEEP,
    "nested objects": b'{"input":' * DEEP + b"1" + b"}" * DEEP,
    "deep where nobody looks": b'{"ignored": ' + b"[" * DEEP + b"]" * DEEP + b', "input": "a", "texts": ["a"]}',
    "a string": b'"a"',
    "a number": b"7",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "not a number": b'{"input": NaN, "texts": NaN, "query": NaN, "documents": NaN, "passages": NaN}',
    "beyond floats": b'{"input": 1e999, "texts": [1e999], "query": 1e999, "documents": [1e999], "passages": 1e999}',
    "a huge integer": b'{"input": [%s], "texts": %s, "query": "a", "documents": [%s]}' % ((b"9" * 5000,) * 3),
    "a lone surrogate": b'{"input": "\\ud800", "texts": ["\\ud800"], "query": "\\udfff", "documents": ["\\ud800 a"]}',
    "a broken name within": b'{"inputs": {"\\uZZZZ": 1, "source_sentence": "a"}, "documents": [{"\\uZZ": 1}]}',
    "a NUL in a name": b'{"inp\\u0000ut": "a"}',
}


NOTHING_NEEDED = {path: {200} for path in ("/api/embed", "/api/embeddings", "/api/show")} | {
    path: {424} for path in ("/predict", "/embed_all", "/embed_sparse")
}
"""Ollama's bodies need no field, nor does what TEI has and this server has not; an object is a request."""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_request_is_refused_in_the_paths_dialect(app: Whole, name: str) -> None:
    for path in PATHS:
        answer = app.post(path, BROKEN[name])
        assert answer.status_code in BAD[path] | NOTHING_NEEDED.get(path, set()), (path, answer.text)
        assert answer.status_code == 200 or told(answer)


WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf")),
    *("", " ", "\x00", "\ud800", "no such thing", "a" * 3000, [], {}, [[]], [{}], [None], [True], [0], [-1], [2**70]),
    *([""], ["\udfff"], ["a", 1], [["a"]], [[[1]]], {"a": 1}, [{"text": "a"}], [{"text": {}}], [{"a": "b"}]),
)
"""What a field may be given by mistake or in malice; some of it is right for some fields."""


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_value_in_any_field_is_never_a_500(app: Whole, path: str) -> None:
    fields = {name for route in POSTS if path in route.paths and route.body for name in route.body.__struct_fields__}
    for name in sorted(fields):
        for wrong in WRONG:
            answer = app.post(path, json.dumps({**EXAMPLES[path], name: wrong}).encode())
            assert answer.status_code in {200, 400, 404, 424} | BAD[path], (name, wrong, answer.text)
            assert answer.status_code != 424 or "No model here offers this" in told(answer), (name, wrong)
            assert answer.status_code == 200 or told(answer), (name, wrong)


def test_the_fields_of_every_body_are_tried() -> None:
    assert {"/v1/embeddings", "/v1/rerank", "/v2/embed", "/api/v1/rerank", "/embed"} <= set(PATHS)
    assert all(EXAMPLES.values())


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body with some of its fields (maybe none of them) holding anything that JSON can write."""
    route: Route = draw(st.sampled_from(POSTS))
    assert route.body is not None
    names = st.sampled_from(route.body.__struct_fields__) | st.text(max_size=5)
    changes = draw(st.dictionaries(names, values, max_size=3))
    kept = draw(st.booleans())
    body = json.dumps({**(EXAMPLES[route.paths[0]] if kept else {}), **changes}).encode()
    damage = draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=2))
    raw = bytearray(body)
    for at, byte in damage:
        raw[at] = byte
    return draw(st.sampled_from(route.paths)), bytes(raw)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_no_body_whatever_is_a_500(app: Whole, request: tuple[str, bytes]) -> None:
    answer = app.post(*request)
    assert answer.status_code in {200, 400, 404, 424} | BAD[request[0]], answer.text
    assert answer.status_code == 200 or told(answer)
    assert app.get("/health/ready").status_code == 200


# a reranker alone


@pytest.mark.parametrize("named_by", ["MODEL_NAME", "CROSS_ENCODER_MODEL"])
def test_a_reranker_alone_is_served_and_an_embedding_call_says_so(tmp_path: Path, named_by: str) -> None:
    judge = str(small.folder(tmp_path / "judge", "rerank"))
    with Whole(tmp_path, **{"MODEL_NAME": "None", named_by: judge}) as app:
        ranked = app.post("/v2/rerank", {"query": "paris ?", "documents": ["dogs bark", "paris is the capital"]})
        assert [one["index"] for one in ranked.json()["results"]] == [1, 0]
        assert [model["task"] for model in app.get("/v1/models").json()["data"]] == ["rerank"]
        bodies = {
            "/v1/embeddings": {"input": "paris"},
            "/v2/embed": {"texts": ["paris"]},
            "/api/v1/embed": {"texts": ["paris"]},
        }
        for path, body in bodies.items():
            refused = app.post(path, body)
            assert refused.status_code == 400
            assert told(refused) == "No loaded model offers embeddings; served here: judge."
        assert app.post("/api/v1/embed", {"texts": ["paris"], "model": "judge"}).status_code == 400
        cosine = app.post("/rerank", {"query": "a", "passages": ["a"], "use_cross_encoder": False})
        assert cosine.status_code == 400
        assert "embedding model" in told(cosine)


def test_a_reranker_alone_may_be_given_a_name(tmp_path: Path) -> None:
    judge = small.folder(tmp_path / "judge", "rerank")
    for place in ("MODEL_NAME", "CROSS_ENCODER_MODEL"):
        given = {"MODEL_NAME": "none", place: str(judge), "VECGATE_SERVED_NAME": "court"}
        engine = build_engine(load({}, {"BACKEND": "fake", **given}, tmp_path))
        assert [card.name for card in engine.status().models] == ["court"]


SEVERAL = "small, other"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"MODEL_NAME": "none"}, "CROSS_ENCODER_MODEL is not set"),
        ({"MODEL_NAME": "small, none"}, "MODEL_NAME is small, none; allowed: models, or none alone"),
        ({"MODEL_NAME": "small, in/small"}, "small and in/small would both be served as 'small'"),
        ({"MODEL_NAME": "judge", "CROSS_ENCODER_MODEL": "judge"}, "judge and judge would both be served as 'judge'"),
        (
            {"MODEL_NAME": SEVERAL, "VECGATE_POOLING": "cls"},
            r"VECGATE_POOLING is about one .* holds 2 \(small, other\)",
        ),
        ({"MODEL_NAME": SEVERAL, "VECGATE_TASK": "embed"}, "VECGATE_TASK is about one model"),
        ({"MODEL_NAME": SEVERAL, "VECGATE_PROMPTS": "query=q"}, "VECGATE_PROMPTS is about one model"),
        ({"MODEL_NAME": SEVERAL, "VECGATE_SERVED_NAME": "it"}, "VECGATE_SERVED_NAME is about one model"),
        (
            {"MODEL_NAME": "none", "CROSS_ENCODER_MODEL": "judge, court", "VECGATE_SERVED_NAME": "it"},
            "VECGATE_SERVED_NAME is about one model, and CROSS_ENCODER_MODEL holds 2",
        ),
    ],
)
def test_what_can_not_be_served_together_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("judge", "court"):
        small.folder(tmp_path / name, "rerank")
    for name in ("small", "other", "in/small"):
        small.folder(tmp_path / name)
    with pytest.raises(ConfigError, match=words):
        build_engine(load({}, {"BACKEND": "fake", **names}, tmp_path))


def test_several_models_are_served_by_name_and_the_first_of_a_task_without_one(tmp_path: Path) -> None:
    wide, judge, court = tmp_path / "wide", tmp_path / "judge", tmp_path / "court"
    small.folder(wide, dimensions=24)
    for folder in (judge, court):
        small.folder(folder, "rerank")
    names = {"MODEL_NAME": f"{tmp_path / 'small'}, {judge}, {wide}", "CROSS_ENCODER_MODEL": str(court)}
    small.folder(tmp_path / "small")
    with Whole(tmp_path, **names) as app:
        listed = app.get("/v1/models").json()["data"]
        assert [card["id"] for card in listed if card["id"] == card["root"]] == ["small", "judge", "wide", "court"]

        def answered(path: str, body: dict[str, Any]) -> str:
            answer = app.post(path, body)
            assert answer.status_code == 200
            return str(answer.headers["x-vecgate-model"])

        rank = {"query": "a cat", "documents": ["a", "cat"]}
        assert answered("/v1/embeddings", {"input": "a"}) == "small"
        assert answered("/v1/embeddings", {"input": "a", "model": "wide:query"}) == "wide"
        assert answered("/v2/rerank", rank) == "judge"
        assert answered("/v2/rerank", {**rank, "model": "court"}) == "court"
        assert answered("/v2/rerank", {**rank, "model": "wide"}) == "wide"
        unknown = app.post("/v1/embeddings", {"input": "a", "model": "gpt"})
        assert "these do: small, judge, wide, court" in told(unknown)
        metrics = app.get("/metrics").text
        assert 'vecgate_model_state{model="court",state="ready",task="rerank"} 1.0' in metrics
        assert 'vecgate_model_state{model="court",state="unloaded",task="rerank"} 0.0' in metrics


@pytest.mark.parametrize(("root", "first"), [("", {"/health"}), ("/vecgate", {"/health", "/vecgate/health/"})])
def test_a_probe_goes_before_a_burst_whether_a_proxy_leaves_the_prefix_or_not(
    root: str, first: set[str], tmp_path: Path
) -> None:
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "ROOT_PATH": root}
    _, life = build(load({}, names, tmp_path))
    asked = ("/health", "/vecgate/health/", "/v1/embeddings", "/vecgate/v1/embeddings")
    assert {path for path in asked if life.is_first({"type": "http", "method": "GET", "path": path})} == first
    assert not life.is_first({"type": "lifespan"})


def test_who_waits_is_told_once_when_every_model_is_loaded(tmp_path: Path) -> None:
    told_of: list[Status] = []
    ready = threading.Event()
    judge = str(small.folder(tmp_path / "judge", "rerank"))
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "CROSS_ENCODER_MODEL": judge}

    def on_ready(status: Status) -> None:
        told_of.append(status)
        ready.set()

    app, _ = build(load({}, names, tmp_path), on_ready)

    async def start() -> None:
        asked: asyncio.Queue[Any] = asyncio.Queue()
        answered: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        life = asyncio.ensure_future(app(scope, asked.get, answered.put))
        await asked.put({"type": "lifespan.startup"})
        await asyncio.to_thread(ready.wait, LIMIT_S)
        await asked.put({"type": "lifespan.shutdown"})
        await life

    asyncio.run(start())
    assert [(status.state, [card.dimensions for card in status.models]) for status in told_of] == [("ready", [8, None])]


def test_two_models_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaves room for the second; where both do not fit, the first serves and the second says so."""
    small.folder(tmp_path / "small")
    judge = small.folder(tmp_path / "judge", "rerank")
    save_file({"weight": np.zeros(2_500, np.float32)}, judge / "model.safetensors")
    names = {"MODEL_NAME": str(tmp_path / "small"), "CROSS_ENCODER_MODEL": str(judge), "DEVICE_MEMORY_FRACTION": "0.5"}
    for usable_bytes, state in ((60_000, "ok"), (24_000, "failed")):
        monkeypatch.setattr(fake, "usable_bytes", lambda held=usable_bytes: held)
        with Whole(tmp_path, None, **names) as app:
            told = app.get("/health").json()
            assert told["status"] == state
            states = [card["state"] for card in told["models"]]
            assert app.post("/v1/embeddings", {"input": "a"}).status_code == 200
    assert states == ["ready", "failed"]
    assert told["error"].startswith("There is no room for judge beside the others: small needs 0 bytes for its weights")
    assert ", the other models 10000: more than DEVICE_MEMORY_FRACTION allows, 12000" in told["error"]


def test_models_that_can_never_fit_together_are_refused_before_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CARDS", ())
    monkeypatch.setattr(room, "usable_bytes", lambda root: 18_000)
    judge = small.folder(tmp_path / "judge", "rerank")
    save_file({"weight": np.zeros(2_500, np.float32)}, judge / "model.safetensors")
    given = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "CROSS_ENCODER_MODEL": str(judge)}
    given["VECGATE_CACHE_DIR"] = str(tmp_path / "cache")
    assert build(load({}, {**given, "DEVICE_MEMORY_FRACTION": "0.6"}, tmp_path))
    with pytest.raises(
        ConfigError, match=r"judge 0\.01 MiB\): more than DEVICE_MEMORY_FRACTION allows, 0\.5 x 0\.02 MiB"
    ):
        build(load({}, {**given, "DEVICE_MEMORY_FRACTION": "0.5"}, tmp_path))
