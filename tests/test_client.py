"""The HTTP side of the commands over a server that a test writes down: bodies, waiting, refusals, answers not to trust."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from vecgate import client
from vecgate.client import Ranked, Remote, connected
from vecgate.errors import CommandError

T = TypeVar("T")
Answer = httpx.Response | Exception
ROW = base64.b64encode(np.array([0.6, 0.8], "<f4").tobytes()).decode()
ROWS = httpx.Response(200, json={"data": [{"index": 0, "embedding": ROW}]})


class Server:
    """Answers in turn, the last one for ever. asked: (path, body) of every request; spaces: what each expected; waited:
    the pauses. space: what the client expects."""

    def __init__(self, *answers: Answer, space: str | None = None) -> None:
        self._answers = list(answers)
        self._space = space
        self.spaces: list[str | None] = []
        self.asked: list[tuple[str, Any]] = []
        self.waited: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.url.path, json.loads(request.content) if request.content else None))
        self.spaces.append(request.headers.get("x-vecgate-space"))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)

    def run(self, ask: Callable[[Remote], Coroutine[Any, Any, T]]) -> T:
        async def asked() -> T:
            transport = httpx.MockTransport(self)
            async with httpx.AsyncClient(transport=transport, base_url="http://server:9000") as http:
                return await ask(Remote(http, self.sleep, space=self._space))

        return asyncio.run(asked())

    def embed(self, *texts: str, **options: Any) -> tuple[list[list[float]], int]:
        vectors, cut = self.run(lambda remote: remote.embed(texts, "small:query", **options))
        assert vectors.dtype == np.float32
        return vectors.tolist(), cut

    def told(self) -> str:
        with pytest.raises(CommandError) as told:
            self.embed("a")
        return str(told.value)


def refusal(status: int, message: str = "no", **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, json={"error": {"message": message, "code": None}})


# embed


def test_rows_come_as_base64_and_in_order() -> None:
    second = base64.b64encode(np.array([1, 0], "<f4").tobytes()).decode()
    data = [{"index": 1, "embedding": second}, {"index": 0, "embedding": ROW}]
    server = Server(httpx.Response(200, json={"data": data, "model": "small"}))
    assert server.embed("a", "b", dimensions=2) == ([[np.float32(0.6), np.float32(0.8)], [1.0, 0.0]], 0)
    body = {"model": "small:query", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 2}
    assert server.asked == [("/v1/embeddings", body)]


def test_a_server_that_only_knows_floats_will_do() -> None:
    server = Server(httpx.Response(200, json={"data": [{"index": 0, "embedding": [1, 0.5]}]}))
    assert server.embed("a") == ([[1.0, 0.5]], 0)


def test_rows_as_the_model_makes_them_come_over_the_native_route() -> None:
    server = Server(
        httpx.Response(200, json={"vectors": [[3.0, 4.0, 5.0]] * 100}),
        httpx.Response(200, json={"vectors": [[6.0, 7.0, 8.0]]}, headers={"x-vecgate-truncated": "0:9>8"}),
    )
    found, cut = server.embed(*["a"] * 101, normalize=False, dimensions=2)
    assert (found[0], found[100], len(found), cut) == ([3.0, 4.0], [6.0, 7.0], 101, 1)
    assert {path for path, _ in server.asked} == {"/api/v1/embed"}
    assert [len(body["texts"]) for _, body in server.asked] == [100, 1]
    assert server.asked[0][1]["normalize"] is False
    with pytest.raises(CommandError, match="--dimensions is 4; 'small:query' allows 1 to 3"):
        server.embed("a", normalize=False, dimensions=4)


@pytest.mark.parametrize(("header", "cut"), [("0:300>256", 1), ("0:3>2, 1:4>2", 2), ("0:3>2, 7:9>2, +40 more", 42)])
def test_what_was_cut_is_counted(header: str, cut: int) -> None:
    answer = httpx.Response(200, content=ROWS.content, headers={"x-vecgate-truncated": header})
    assert Server(answer).embed("a")[1] == cut


def b64(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": ROW}] * 2,
        [{"index": 1, "embedding": ROW}],
        [{"index": 0, "embedding": ""}],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": "AAA="}],
        [{"index": 0, "embedding": b64(1.0, float("nan"))}],
        [{"index": 0, "embedding": b64(float("inf"))}],
    ],
)
def test_rows_that_are_none_are_never_taken(data: list[Any]) -> None:
    assert "it can't be trusted" in Server(httpx.Response(200, json={"data": data})).told()


def test_rows_of_two_widths_are_never_taken() -> None:
    data = [{"index": 0, "embedding": ROW}, {"index": 1, "embedding": b64(1.0)}]
    with pytest.raises(CommandError, match="it can't be trusted"):
        Server(httpx.Response(200, json={"data": data})).embed("a", "b")


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b'{"data": [{"index": 0}]}', b'{"data": [{"embedding": 1}]}']
)
def test_what_is_no_such_server_is_said(answer: bytes) -> None:
    assert "check --url" in Server(httpx.Response(200, content=answer)).told()


# waiting


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_is_asked_again_then(status: int) -> None:
    server = Server(refusal(status, **{"retry-after": "7"}), refusal(status, **{"retry-after": "2"}), ROWS)
    assert len(server.embed("a")[0]) == 1
    assert len(server.asked) == 3
    assert 7 <= server.waited[0] <= 7.7
    assert 2 <= server.waited[1] <= 2.2


def test_a_full_server_that_does_not_say_is_given_ever_more_time() -> None:
    server = Server(*[refusal(429)] * 4, ROWS)
    server.embed("a")
    assert server.waited == [1, 2, 4, 8]


def test_patience_ends_and_says_why() -> None:
    server = Server(refusal(429, "4096 requests are in flight.", **{"retry-after": "3600"}))
    assert server.told() == "http://server:9000/v1/embeddings answered 429: 4096 requests are in flight."
    assert client.PATIENCE_S - 2 * client.LONGEST_PAUSE_S < sum(server.waited) <= client.PATIENCE_S


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400),
        refusal(404),
        refusal(500),
        refusal(503),  # a model that failed to load does not come back
        refusal(504, **{"retry-after": "1"}),
        refusal(429, **{"retry-after": "1", "x-should-retry": "false"}),
        httpx.Response(307, headers={"location": "http://elsewhere"}),
    ],
)
def test_what_waiting_does_not_cure_is_said_at_once(answer: httpx.Response) -> None:
    server = Server(answer)
    assert f"answered {answer.status_code}" in server.told()
    assert (len(server.asked), server.waited) == (1, [])


def test_a_broken_connection_is_tried_again_once_the_server_has_answered() -> None:
    server = Server(ROWS, httpx.ReadError("reset"), httpx.ConnectError("refused"), ROWS)

    async def twice(remote: Remote) -> None:
        await remote.embed(["a"], "m")
        await remote.embed(["a"], "m")

    server.run(twice)
    assert server.waited == [0.5, 1]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (httpx.ConnectError("refused"), "Nothing answers at http://server:9000 (refused): start a server"),
        (httpx.ReadTimeout(""), "http://server:9000 did not answer (ReadTimeout)"),
    ],
)
def test_a_server_that_is_not_there_is_said_at_once(error: Exception, words: str) -> None:
    server = Server(error)
    assert server.told().startswith(words)
    assert server.waited == []


def test_a_connection_that_stays_broken_is_given_up() -> None:
    server = Server(ROWS, httpx.ReadError("reset"))

    async def twice(remote: Remote) -> None:
        await remote.embed(["a"], "m")
        await remote.embed(["a"], "m")

    with pytest.raises(CommandError, match="reset"):
        server.run(twice)
    assert len(server.asked) == 1 + client.BROKEN_TRIES


# refusals


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "Too\\n long.", "code": 1}}', "answered 400: Too long."),
        (b'{"message": "Too long."}', "answered 400: Too long."),
        (b'{"error": "Too long."}', "answered 400: Too long."),
        (b"<html>", "answered 400: Bad Request"),
        (b'{"detail": 1}', "answered 400: Bad Request"),
        (json.dumps({"message": "x" * 5_000}).encode(), "answered 400: " + "x" * 500),
    ],
)
def test_the_servers_words_are_passed_on(body: bytes, words: str) -> None:
    told = Server(httpx.Response(400, content=body)).told()
    assert told == f"http://server:9000/v1/embeddings {words}"


def test_a_missing_key_says_how_to_show_one() -> None:
    assert "--api-key" in Server(refusal(401)).told()


# names


def cards(*found: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"object": "list", "data": list(found)})


SERVED = cards({"id": "judge", "task": "rerank"}, {"id": "org/small", "task": "embed", "aliases": ["small", "s"]})


@pytest.mark.parametrize(("asked", "name"), [(None, "org/small"), ("s", "org/small"), ("org/small", "org/small")])
def test_a_model_is_found_by_any_of_its_names(asked: str | None, name: str) -> None:
    server = Server(SERVED)
    assert server.run(lambda remote: remote.name(asked, "embed")) == name
    assert server.asked == [("/v1/models", None)]


def test_a_name_that_is_not_listed_is_left_to_the_server() -> None:
    assert Server(SERVED).run(lambda remote: remote.name("other:query", "embed")) == "other:query"


def test_a_server_of_another_kind_has_a_first_model() -> None:
    assert Server(cards({"id": "first"}, {"id": "second"})).run(lambda remote: remote.name(None, "embed")) == "first"


def test_a_server_without_such_a_model_is_said() -> None:
    with pytest.raises(CommandError, match="serves no model that embeds"):
        Server(cards({"id": "judge", "task": "rerank"})).run(lambda remote: remote.name(None, "embed"))


@pytest.mark.parametrize(
    ("headers", "words"),
    [({}, "does not say of which vector space its answer is"), ({"x-vecgate-space": "vs1-b"}, "answered in 'vs1-b'")],
)
def test_an_answer_of_another_space_is_never_taken(headers: dict[str, str], words: str) -> None:
    """Whoever gives it: a server that knows no spaces has no reason to refuse."""
    server = Server(httpx.Response(200, content=ROWS.content, headers=headers), space="vs1-a")
    with pytest.raises(CommandError, match=words):
        server.embed("a")
    right = Server(httpx.Response(200, content=ROWS.content, headers={"x-vecgate-space": "vs1-a"}), space="vs1-a")
    assert len(right.embed("a")[0]) == 1
    assert right.spaces == ["vs1-a"]


# rerank


def rerank(server: Server, **options: Any) -> Ranked:
    given: dict[str, Any] = {"model": None, "method": "auto", "top_n": None, **options}
    return server.run(lambda remote: remote.rerank("q", ["a", "b"], **given))


def test_a_ranking_comes_over_coheres_route() -> None:
    results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.2}]
    server = Server(httpx.Response(200, json={"results": results, "model": "judge"}))
    assert rerank(server) == Ranked("judge", None, ((1, 0.9), (0, 0.2)))
    rerank(server, model="judge", top_n=1)
    assert server.asked == [
        ("/v2/rerank", {"query": "q", "documents": ["a", "b"]}),
        ("/v2/rerank", {"query": "q", "documents": ["a", "b"], "model": "judge", "top_n": 1}),
    ]


@pytest.mark.parametrize(("method", "score"), [("similarity", 0.75), ("cross-encoder", 0.5)])
def test_a_method_by_name_goes_over_the_native_route(method: str, score: float) -> None:
    """Which sends the cosine where the method is similarity; the command's score is from 0 to 1 for any."""
    answer = {"results": [{"index": 1, "score": 0.5}], "method": method}
    server = Server(httpx.Response(200, json=answer, headers={"x-vecgate-model": "m"}))
    assert rerank(server, method=method, top_n=1) == Ranked("m", method, ((1, score),))
    body = {"query": "q", "passages": ["a", "b"], "method": method, "return_text": False, "top_k": 1}
    assert server.asked == [("/api/v1/rerank", body)]


# addresses


async def place(url: str, key: str | None = None) -> tuple[str, str | None]:
    async with connected(url, key) as remote:
        http = remote._http
        return str(http.base_url), http.headers.get("authorization")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000/"),
        ("http://127.0.0.1:9000/v1/", "http://127.0.0.1:9000/"),
        ("localhost:9000", "http://localhost:9000/"),
        ("https://example.org/embed/v1", "https://example.org/embed/"),
        ("http://[::1]:9000", "http://[::1]:9000/"),
    ],
)
def test_the_base_address_may_be_written_in_several_ways(url: str, base: str) -> None:
    assert asyncio.run(place(url, "k")) == (base, "Bearer k")


@pytest.mark.parametrize("url", ["", "http://", "ftp://a", "http://a:99999", "http://a b", "://", "http://a:x"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(CommandError, match=r"--url .* is no address"):
        asyncio.run(place(url))


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def through_a_proxy(url: str) -> bool:
        async with connected(url) as remote:
            return bool(remote._http._mounts)

    assert not asyncio.run(through_a_proxy("http://127.0.0.1:9000"))
    assert asyncio.run(through_a_proxy("http://example.org"))
