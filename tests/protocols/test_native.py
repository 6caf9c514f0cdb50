"""The native routes in-process over the stub engine: every field of both documents, every limit, every refusal."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import numpy as np
import openai
import pytest

from tests.protocols import stub
from vecgate import errors
from vecgate.core import Call, Cut, Method, Ranking, Status
from vecgate.protocols import Site, plain

NATIVE = ["vecgate.protocols.native"]
EMBED, RERANK = "/api/v1/embed", "/api/v1/rerank"
NAME = "org/stub-embed"
PASSAGES = ["the cat sat", "a dog", "machine learning"]


@dataclass
class Reranking(stub.StubEngine):
    """The stub with a reranker beside it: raw values are logits, and what was asked for is written down."""

    alone: bool = False
    asked: list[tuple[Method, int | None]] = field(default_factory=list)

    def status(self) -> Status:
        found = super().status()
        reranker = replace(found.models[0], name="org/stub-rerank", task="rerank", device="npu")
        return replace(found, models=(reranker,) if self.alone else (*found.models, reranker))

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
        self.asked.append((method, top_n))
        applied = msgspec.structs.replace(
            self._applied(None, [([1, 2, 3], 3)] * len(documents)), model="org/stub-rerank"
        )
        done: Method = "cross-encoder" if method == "auto" else method
        return Ranking(order=(1, 0), raw=(4.0, -4.0), scores=(0.98, 0.02), method=done, applied=applied)


def call(
    path: str, body: object, engine: stub.StubEngine | None = None, content: bytes | None = None, **site: Any
) -> httpx.Response:
    async def go() -> httpx.Response:
        async with stub.client_of(stub.app_of(engine or stub.StubEngine(), Site(**site), NATIVE)) as client:
            return await client.post(path, content=json.dumps(body) if content is None else content)

    return asyncio.run(go())


def good(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error", "message"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["message"] == body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def test_embed_answers_with_every_field_of_the_document() -> None:
    answer = good(call(EMBED, {"texts": ["hello world", "a test"], "batch_size": 32, "normalize": True}))
    assert list(answer) == ["vectors", "dim", "processing_time", "device", "model_info", "usage"]
    assert answer["dim"] == 8
    assert [len(row) for row in answer["vectors"]] == [8, 8]
    assert (answer["device"], answer["model_info"]) == ("none", NAME)
    usage = answer["usage"]
    assert usage | {"processing_time_ms": 0} == {
        "total_texts": 2,
        "total_tokens": 8,
        "processing_time_ms": 0,
        "backend": "stub",
        "batch_size": 32,
        "normalize": True,
    }
    assert answer["processing_time"] > 0
    assert usage["processing_time_ms"] == pytest.approx(answer["processing_time"] * 1e3, abs=0.01)


def test_short_embed_answers_with_every_field_of_the_document() -> None:
    answer = good(call("/embed", {"texts": ["hello world"], "batch_size": 32}))
    assert list(answer) == ["vectors", "dim", "backend", "device"]
    assert (answer["dim"], answer["backend"], answer["device"]) == (8, f"stub:{NAME}", "none")


@pytest.mark.parametrize("path", [EMBED, "/embed"])
def test_the_rows_are_exact_float32_in_order(path: str) -> None:
    texts = [f"cat {number}" for number in range(100)]
    engine = stub.StubEngine()
    expected = asyncio.run(engine.embed(Call("t"), None, texts)).vectors
    rows = np.array(good(call(path, {"texts": texts}, engine))["vectors"], np.float32)
    assert np.array_equal(rows, expected)


def test_a_bare_string_is_one_text() -> None:
    assert good(call("/embed", {"texts": "a cat"})) == good(call("/embed", {"texts": ["a cat"]}))


def test_normalize_false_leaves_the_rows_as_they_are() -> None:
    raw = good(call(EMBED, {"texts": ["a cat"], "normalize": False}))
    unit = good(call(EMBED, {"texts": ["a cat"], "normalize": None}))
    assert (raw["usage"]["normalize"], unit["usage"]["normalize"]) == (False, True)
    assert np.linalg.norm(unit["vectors"][0]) == pytest.approx(1.0)
    assert np.linalg.norm(raw["vectors"][0]) > 1.1


@pytest.mark.parametrize("path", [EMBED, "/embed"])
def test_batch_size_reaches_the_engine_and_defaults_to_the_setting(path: str) -> None:
    engine = stub.StubEngine()
    good(call(path, {"texts": ["a"], "batch_size": 7}, engine, batch_size=5))
    good(call(path, {"texts": ["a"], "batch_size": None}, engine, batch_size=5))
    good(call(path, {"texts": ["a"]}, engine, batch_size=5))
    assert [one["batch_size"] for one in engine.calls] == [7, 5, 5]


@pytest.mark.parametrize("cut", ["end", "refuse"])
@pytest.mark.parametrize(("path", "body"), [(EMBED, {"texts": ["a"]}), (RERANK, {"query": "a", "passages": ["b"]})])
def test_the_setting_says_what_to_do_with_long_inputs(path: str, body: Any, cut: Cut) -> None:
    engine = stub.StubEngine()
    good(call(path, body, engine, cut=cut))
    assert engine.calls[0]["cut"] == cut


def test_a_long_text_under_refuse_is_a_400_and_under_end_is_reported() -> None:
    body = {"texts": ["cat " * 100]}
    assert refused(call("/embed", body, cut="refuse"))["code"] == "input_too_long"
    assert call("/embed", body).headers["x-vecgate-truncated"] == "0:102>32"


def test_rerank_answers_with_every_field_of_the_document() -> None:
    answer = good(call(RERANK, {"query": "a cat", "passages": PASSAGES, "top_k": 3}))
    assert list(answer) == ["results", "query", "backend", "device", "method", "processing_time", "usage"]
    assert [list(result) for result in answer["results"]] == [["text", "score", "index"]] * 3
    assert [PASSAGES[result["index"]] for result in answer["results"]] == [r["text"] for r in answer["results"]]
    scores = [result["score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["query"], answer["backend"], answer["device"]) == ("a cat", "stub", "none")
    assert answer["method"] == "similarity"
    assert answer["usage"] | {"processing_time_ms": 0} == {
        "total_passages": 3,
        "returned_passages": 3,
        "total_tokens": 5 + 4 + 4 + 4,
        "processing_time_ms": 0,
        "backend": "stub",
        "top_k": 3,
        "query_length": 5,
    }
    assert answer["usage"]["processing_time_ms"] == pytest.approx(answer["processing_time"] * 1e3, abs=0.01)


def test_short_rerank_answers_with_every_field_of_the_document() -> None:
    answer = good(call("/rerank", {"query": "a cat", "passages": PASSAGES, "top_k": 2, "use_cross_encoder": False}))
    assert list(answer) == ["results", "backend", "device", "method"]
    assert len(answer["results"]) == 2
    assert (answer["backend"], answer["device"], answer["method"]) == (f"stub:{NAME}", "none", "similarity")


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_the_score_of_similarity_is_the_cosine(path: str) -> None:
    rows = np.array(good(call("/embed", {"texts": ["a cat", *PASSAGES]}))["vectors"])
    cosines = rows[1:] @ rows[0]
    for result in good(call(path, {"query": "a cat", "passages": PASSAGES}))["results"]:
        assert result["score"] == pytest.approx(cosines[result["index"]], abs=1e-6)


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_the_score_of_a_reranker_is_between_0_and_1(path: str) -> None:
    answer = good(call(path, {"query": "a", "passages": ["x", "y"]}, Reranking()))
    assert answer["results"] == [{"text": "y", "score": 0.98, "index": 1}, {"text": "x", "score": 0.02, "index": 0}]
    assert (answer["method"], answer["device"]) == ("cross-encoder", "npu")


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
@pytest.mark.parametrize(("top_k", "kept"), [(None, 3), (1, 1), (3, 3), (50, 3)])
def test_top_k_keeps_the_best_and_null_keeps_all(path: str, top_k: int | None, kept: int) -> None:
    everything = good(call(path, {"query": "a cat", "passages": PASSAGES}))["results"]
    assert good(call(path, {"query": "a cat", "passages": PASSAGES, "top_k": top_k}))["results"] == everything[:kept]


@pytest.mark.parametrize(("asked", "most", "applied"), [(7, 128, 7), (500, 128, 128), (None, 128, 32), (None, 8, 8)])
def test_usage_tells_the_batch_size_that_was_applied(asked: int | None, most: int, applied: int) -> None:
    answer = good(call(EMBED, {"texts": ["a"], "batch_size": asked}, max_batch_size=most))
    assert answer["usage"]["batch_size"] == applied


def test_usage_tells_the_top_k_that_was_applied() -> None:
    assert good(call(RERANK, {"query": "a", "passages": PASSAGES, "top_k": 99}))["usage"]["top_k"] == 3
    assert good(call(RERANK, {"query": "a", "passages": PASSAGES}))["usage"]["top_k"] == 3
    usage = good(call(RERANK, {"query": "a", "passages": PASSAGES, "top_k": 1}))["usage"]
    assert (usage["top_k"], usage["returned_passages"], usage["total_passages"]) == (1, 1, 3)


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_return_text_false_leaves_the_texts_out(path: str) -> None:
    answer = good(call(path, {"query": "a", "passages": PASSAGES, "return_text": False}))
    assert [list(result) for result in answer["results"]] == [["score", "index"]] * 3
    answer = good(call(path, {"query": "a", "passages": PASSAGES, "return_text": None}))
    assert [list(result) for result in answer["results"]] == [["text", "score", "index"]] * 3


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, "auto"),
        ({"use_cross_encoder": None, "method": None}, "auto"),
        ({"use_cross_encoder": False}, "similarity"),
        ({"use_cross_encoder": True}, "cross-encoder"),
        ({"use_cross_encoder": True, "top_k": 2}, "cross-encoder"),
        ({"use_cross_encoder": True, "top_k": 9}, "cross-encoder"),
        ({"use_cross_encoder": True, "top_k": 1}, "bi+cross-encoder"),
        ({"use_cross_encoder": True, "method": "similarity"}, "similarity"),
        ({"use_cross_encoder": False, "method": "cross-encoder"}, "cross-encoder"),
        ({"use_cross_encoder": False, "method": "auto"}, "auto"),
        ({"method": "bi+cross-encoder"}, "bi+cross-encoder"),
    ],
)
@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_which_method_is_asked_for(path: str, fields: dict[str, Any], method: str) -> None:
    engine = Reranking()
    good(call(path, {"query": "a", "passages": ["x", "y"]} | fields, engine))
    assert engine.asked == [(method, fields.get("top_k"))]


def test_without_an_embedding_model_nothing_is_shortlisted() -> None:
    engine = Reranking(alone=True)
    good(call("/rerank", {"query": "a", "passages": ["x", "y"], "use_cross_encoder": True, "top_k": 1}, engine))
    assert engine.asked == [("cross-encoder", 1)]


def test_a_cross_encoder_that_is_not_there_is_never_replaced_by_similarity() -> None:
    error = refused(call("/rerank", {"query": "a", "passages": ["x"], "use_cross_encoder": True}))
    assert "reranker" in error["message"]


@pytest.mark.parametrize("path", [EMBED, "/embed"])
def test_texts_have_a_limit_that_the_error_names(path: str) -> None:
    good(call(path, {"texts": ["a"] * 3}, max_texts_per_request=3))
    error = refused(call(path, {"texts": ["a"] * 4}, max_texts_per_request=3))
    assert error["message"] == "texts holds 4 texts; the limit is 3 a request (MAX_TEXTS_PER_REQUEST)."
    assert error["param"] == "texts"


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_passages_have_a_limit_that_the_error_names(path: str) -> None:
    good(call(path, {"query": "q", "passages": ["a"] * 3}, max_passages_per_rerank=3))
    error = refused(call(path, {"query": "q", "passages": ["a"] * 4}, max_passages_per_rerank=3))
    assert error["message"] == "passages holds 4 texts; the limit is 3 a request (MAX_PASSAGES_PER_RERANK)."
    assert error["param"] == "passages"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (EMBED, {"texts": []}, "texts", "texts is empty"),
        (RERANK, {"query": "q", "passages": []}, "passages", "passages is empty"),
        (EMBED, {"texts": ["a"], "batch_size": 0}, "batch_size", "batch_size is 0; it must be from 1 to 2147483647."),
        (EMBED, {"texts": ["a"], "batch_size": -3}, "batch_size", "batch_size is -3"),
        (EMBED, {"texts": ["a"], "batch_size": 2**31}, "batch_size", "batch_size is 2147483648"),
        (EMBED, {"texts": ["a"], "batch_size": 10**600}, "batch_size", "batch_size is far out of range"),
        (EMBED, {"texts": ["a"], "batch_size": "8"}, "batch_size", "Expected `int | null`, got `str`"),
        (EMBED, {"texts": ["a"], "batch_size": 1.5}, "batch_size", "got `float`"),
        (EMBED, {"texts": ["a"], "normalize": "yes"}, "normalize", "Expected `bool | null`"),
        (EMBED, {"texts": ["a", 1]}, "texts[1]", "Expected `str`, got `int`"),
        (EMBED, {"texts": None}, "texts", "got `null`"),
        (EMBED, {"texts": {"a": "b"}}, "texts", "got `object`"),
        (EMBED, {}, "texts", "`texts`"),
        (EMBED, [], None, "Expected `object`, got `array`"),
        (RERANK, {"query": "q", "passages": ["a"], "top_k": 0}, "top_k", "top_k is 0; it must be from 1"),
        (RERANK, {"query": "q", "passages": ["a"], "top_k": -1}, "top_k", "top_k is -1"),
        (RERANK, {"query": "q", "passages": "a"}, "passages", "Expected `array`, got `str`"),
        (RERANK, {"query": None, "passages": ["a"]}, "query", "got `null`"),
        (RERANK, {"passages": ["a"]}, "query", "`query`"),
        (RERANK, {"query": "q"}, "passages", "`passages`"),
        (
            RERANK,
            {"query": "q", "passages": ["a"], "method": "colbert"},
            "method",
            "method is 'colbert'; it must be one of auto, similarity, cross-encoder, bi+cross-encoder.",
        ),
        (RERANK, {"query": "q", "passages": ["a"], "method": "m" * 9999}, "method", "mmm...'"),
    ],
)
@pytest.mark.parametrize("short", [False, True])
def test_bad_bodies_are_400_and_say_what_is_wrong(
    path: str, body: object, param: str | None, words: str, short: bool
) -> None:
    error = refused(call(path.removeprefix("/api/v1") if short else path, body))
    assert words in error["message"]
    assert len(error["message"]) < 200
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_request")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"texts": ["\xff"]}',
        b'{"texts": ["\\ud83d"]}',
        b'{"texts": ["a"], "batch_size": NaN}',
        b'{"texts": ["a"], "batch_size": 1e999}',
        b'{"texts": ["a"], "batch_size": ' + b"9" * 5_000 + b"}",
        b'{"texts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"texts": ["a"], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(11),
)
def test_broken_bodies_are_400(content: bytes) -> None:
    assert refused(call(EMBED, None, content=content))["code"] == "invalid_request"
    assert refused(call("/embed", None, content=content))["code"] == "invalid_request"


def test_unknown_fields_and_nulls_in_optional_places_are_accepted() -> None:
    extra = {"user": "u", "input_type": None, "priority": 3, "truncate": {"deep": [1]}}
    nulls = {"batch_size": None, "normalize": None, "model": None}
    good(call(EMBED, {"texts": ["a"]} | nulls | extra))
    good(call("/embed", {"texts": ["a"]} | nulls | extra))
    nulls = {"top_k": None, "use_cross_encoder": None, "method": None, "return_text": None, "model": None}
    good(call(RERANK, {"query": "q", "passages": ["a"]} | nulls | extra))
    good(call("/rerank", {"query": "q", "passages": ["a"]} | nulls | extra))


@pytest.mark.parametrize("text", ["", " ", "\n", "\u0000", "\U0001f600"])
def test_awkward_texts_are_texts(text: str) -> None:
    good(call(EMBED, {"texts": [text, "a"]}))
    assert good(call(RERANK, {"query": text, "passages": [text]}))["results"][0]["text"] == text


def test_the_model_may_be_named_and_an_unknown_one_is_404() -> None:
    assert good(call(EMBED, {"texts": ["a"], "model": "stub"}))["model_info"] == NAME
    for path, body in ((EMBED, {"texts": ["a"]}), ("/rerank", {"query": "q", "passages": ["a"]})):
        error = refused(call(path, body | {"model": "nope"}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "stub-embed" in error["message"]


@pytest.mark.parametrize("path", [EMBED, RERANK, "/embed", "/rerank"])
def test_another_method_is_405_in_the_same_shape(path: str) -> None:
    async def go() -> httpx.Response:
        async with stub.client_of(stub.app_of(stub.StubEngine(), Site(), NATIVE)) as client:
            return await client.get(path)

    response = asyncio.run(go())
    assert refused(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (errors.InputTooLong("long", "texts"), 400, "input_too_long", {}),
        (errors.SpaceMismatch("other"), 400, "vector_space_mismatch", {}),
        (errors.WrongTask("task"), 400, "wrong_task", {}),
        (errors.Unauthenticated("key"), 401, "invalid_api_key", {"www-authenticate": "Bearer"}),
        (errors.Forbidden("origin"), 403, "forbidden", {}),
        (errors.NotFound("path"), 404, "not_found", {}),
        (errors.BodyTimeout("slow"), 408, "body_timeout", {}),
        (errors.TooLarge("large"), 413, "body_too_large", {}),
        (errors.UnsupportedEncoding("gzip"), 415, "unsupported_encoding", {}),
        (errors.Overloaded("full", 7), 429, "overloaded", {"retry-after": "7"}),
        (errors.RateLimited("rate", 3), 429, "rate_limit_exceeded", {"retry-after": "3"}),
        (errors.BackendFailed("rows"), 500, "backend_failed", {}),
        (errors.OutOfMemory("room"), 500, "out_of_memory", {}),
        (errors.VecgateError("odd"), 500, "internal_error", {}),
        (errors.NotReady("loading"), 503, "not_ready", {"retry-after": "5"}),
        (errors.NotReady("failed", None), 503, "not_ready", {"x-should-retry": "false"}),
        (errors.DeadlineExceeded("late"), 504, "deadline_exceeded", {"x-should-retry": "false"}),
    ],
)
def test_what_the_engine_raises_becomes_its_status(
    error: errors.VecgateError, status: int, code: str, headers: dict[str, str]
) -> None:
    for path, body in ((EMBED, {"texts": ["a"]}), ("/rerank", {"query": "q", "passages": ["a"]})):
        response = call(path, body, stub.StubEngine(fail=error))
        found = refused(response, status)
        assert (found["message"], found["code"]) == (str(error), code)
        shown = {"retry-after", "x-should-retry", "www-authenticate"} & set(response.headers)
        assert {name: response.headers[name] for name in shown} == headers


def test_every_error_of_the_tree_has_a_row_of_its_own() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VecgateError)}
    assert set(plain.ERRORS) == tree


def test_an_error_message_stays_short_and_sendable() -> None:
    status, _, body = plain.render(errors.NotFound("/\udcff" + "x" * 10_000))
    assert status == 404
    assert len(msgspec.json.decode(body)["message"]) < 2_100


def test_openais_sdk_reads_the_errors() -> None:
    _, _, body = plain.render(errors.InvalidRequest("texts is empty; give at least one text.", "texts"))
    request = httpx.Request("POST", "http://test/api/v1/embed")
    response = httpx.Response(400, content=body, request=request)
    found = openai.APIStatusError("bad", response=response, body=response.json()["error"])
    assert (found.param, found.code, found.type) == ("texts", "invalid_request", "invalid_request_error")


def test_the_answer_says_what_was_done_in_headers() -> None:
    response = call(EMBED, {"texts": ["a cat"]})
    assert response.headers["x-vecgate-model"] == NAME
    assert response.headers["server-timing"].startswith("queue;dur=1.00")
