"""vLLM's score routes in-process over the stub engine: every spelling, every refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from tests.protocols import stub
from vecgate import errors
from vecgate.protocols import Site, vllm

TEXTS = ["the dog sat", "paris is the capital of france", "banana", "berlin is the capital of germany"]
QUERY = "capital of france"
PATHS = ["/score", "/v1/score"]


def post(body: Any, engine: stub.StubEngine | None = None, path: str = "/v1/score", **site: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        app = stub.app_of(engine or stub.StubEngine(), Site(**site), ["vecgate.protocols.vllm"])
        async with stub.client_of(app) as client:
            return await client.post(path, json=body)

    return asyncio.run(go())


def good(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def scores(text_1: Any, text_2: Any, **fields: Any) -> list[float]:
    data = good(post({"text_1": text_1, "text_2": text_2, **fields}))["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["score"] for one in data]


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == status
    return error


@pytest.mark.parametrize("path", PATHS)
def test_the_whole_answer(path: str) -> None:
    answer = post({"model": "stub", "text_1": QUERY, "text_2": TEXTS}, path=path)
    body = good(answer)
    msgspec.json.decode(answer.content, type=vllm.ScoreList)
    assert body.pop("id").startswith("score-")
    assert body.pop("created") > 1_700_000_000
    assert [one.pop("score") for one in body["data"]] == scores(QUERY, TEXTS)
    tokens = 5 + 5 + 8 + 3 + 8
    assert body == {
        "object": "list",
        "model": "stub",
        "data": [{"index": at, "object": "score"} for at in range(4)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
    assert answer.headers["x-vecgate-model"] == "org/stub-embed"


def test_scores_stand_in_the_order_of_the_pairs_and_are_in_0_to_1() -> None:
    found = scores(QUERY, TEXTS)
    assert sorted(range(4), key=lambda at: -found[at]) == [1, 3, 2, 0]
    assert all(0 <= one <= 1 for one in found)


def test_one_against_one() -> None:
    assert scores(QUERY, TEXTS[1]) == scores([QUERY], [TEXTS[1]]) == pytest.approx(scores(QUERY, TEXTS)[1:2])


def test_as_many_on_both_sides_are_pairs() -> None:
    first = [QUERY, "banana", QUERY, "the cat sat"]
    assert scores(first, TEXTS) == pytest.approx([scores(one, two)[0] for one, two in zip(first, TEXTS)])


def test_equal_first_texts_are_asked_once_and_the_tokens_of_a_pair_stay_its_own() -> None:
    engine = stub.StubEngine()
    long = " ".join(["dog"] * 40)
    answer = post({"text_1": [QUERY, "banana", QUERY], "text_2": ["a", "b", long]}, engine)
    assert {one["query"]: one["documents"] for one in engine.rankings} == {QUERY: ["a", long], "banana": ["b"]}
    assert answer.headers["x-vecgate-truncated"] == "2:42>32"


@pytest.mark.parametrize(
    ("one", "two"), [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_every_spelling_is_the_same(one: str, two: str) -> None:
    nulls = dict.fromkeys(name for names in vllm.SPELLINGS for name in names)
    body = good(post({**nulls, one: QUERY, two: TEXTS}))
    assert [entry["score"] for entry in body["data"]] == scores(QUERY, TEXTS)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text_1": "a"},
        {"text_1": "a", "documents": ["b"]},
        {"text_1": "a", "text_2": "b", "data_1": "a", "data_2": "b"},
        {"queries": "a", "documents": "b", "items": "c"},
    ],
)
def test_no_pair_of_names_or_two_of_them_are_refused(body: dict[str, Any]) -> None:
    message = refused(post(body))["message"]
    assert "'text_1' and 'text_2'" in message
    assert "'queries' and 'documents'" in message


@pytest.mark.parametrize(("first", "second"), [(["a", "b"], ["c"]), (["a", "b"], ["c", "d", "e"]), (["a"] * 3, "b")])
def test_sides_that_do_not_fit_are_refused(first: list[str], second: Any) -> None:
    error = refused(post({"text_1": first, "text_2": second}))
    assert str(len(first)) in error["message"]
    assert error["param"] == "text_1"


@pytest.mark.parametrize(("first", "second", "name"), [([], ["a"], "text_1"), ("a", [], "text_2"), ([], [], "text_1")])
def test_an_empty_side_is_refused(first: Any, second: Any, name: str) -> None:
    error = refused(post({"text_1": first, "text_2": second}))
    assert error["message"].startswith(f"{name} is empty")


def test_as_many_texts_as_the_limit_and_no_more() -> None:
    good(post({"text_1": "a", "text_2": ["a"] * 5}, max_passages_per_rerank=5))
    error = refused(post({"text_1": "a", "text_2": ["a"] * 6}, max_passages_per_rerank=5))
    assert "6" in error["message"]
    assert "the limit is 5" in error["message"]


@pytest.mark.parametrize(("model", "echoed"), [(None, "org/stub-embed"), (" ", "org/stub-embed"), ("stub", "stub")])
def test_model_is_optional_and_echoed(model: str | None, echoed: str) -> None:
    assert good(post({"text_1": "a", "text_2": "b", "model": model}))["model"] == echoed
    error = refused(post({"text_1": "a", "text_2": "b", "model": "nobody"}), 404)
    assert (error["type"], error["param"]) == ("NotFoundError", "model")


def test_without_activation_scores_are_raw() -> None:
    raw = scores(QUERY, TEXTS, use_activation=False)
    assert raw == pytest.approx([2 * one - 1 for one in scores(QUERY, TEXTS)])
    assert (
        scores(QUERY, TEXTS, use_activation=None) == scores(QUERY, TEXTS, use_activation=True) == scores(QUERY, TEXTS)
    )


@pytest.mark.parametrize(
    ("most", "side", "server", "cut", "max_tokens"),
    [
        (None, None, "end", "end", None),
        (None, None, "refuse", "refuse", None),
        (None, "left", "end", "start", None),
        (None, "left", "refuse", "refuse", None),
        (-1, None, "refuse", "end", None),
        (-1, "left", "refuse", "start", None),
        (7, "right", "refuse", "end", 7),
        (7, "left", "end", "start", 7),
    ],
)
def test_truncation(most: int | None, side: str | None, server: str, cut: str, max_tokens: int | None) -> None:
    engine = stub.StubEngine()
    body = {"text_1": "a", "text_2": "b", "truncate_prompt_tokens": most, "truncation_side": side}
    good(post(body, engine, cut=server))
    assert (engine.rankings[0]["cut"], engine.rankings[0]["max_tokens"]) == (cut, max_tokens)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [("truncate_prompt_tokens", -2, "-2"), ("truncate_prompt_tokens", 0, "0"), ("truncation_side", "up", "'up'")],
)
def test_a_truncation_that_does_not_exist_is_refused(field: str, value: Any, part: str) -> None:
    error = refused(post({"text_1": "a", "text_2": "b", field: value}))
    assert part in error["message"]
    assert error["param"] == field


def test_unknown_fields_are_ignored() -> None:
    extra: dict[str, Any] = {
        "user": 3,
        "priority": None,
        "softmax": True,
        "encoding_format": "float",
        "mm_processor_kwargs": {},
    }
    assert scores(QUERY, TEXTS, **extra) == scores(QUERY, TEXTS)


RAISED: list[tuple[errors.VecgateError, int, str]] = [
    (errors.InvalidRequest("no", "text_1"), 400, "BadRequestError"),
    (errors.WrongTask("no"), 400, "BadRequestError"),
    (errors.ModelNotFound("no"), 404, "NotFoundError"),
    (errors.Overloaded("no", 7), 429, "Too Many Requests"),
    (errors.BackendFailed("no"), 500, "InternalServerError"),
    (errors.NotReady("no", 5), 503, "Service Unavailable"),
    (errors.DeadlineExceeded("no"), 504, "Gateway Timeout"),
]


@pytest.mark.parametrize(("raised", "status", "kind"), RAISED, ids=lambda x: type(x).__name__)
def test_every_error_has_its_status_and_shape(raised: errors.VecgateError, status: int, kind: str) -> None:
    error = refused(post({"text_1": "a", "text_2": "b"}, stub.StubEngine(fail=raised)), status)
    assert (error["message"], error["type"]) == ("no", kind)


def test_the_table_of_errors_holds_no_409_and_no_422() -> None:
    assert {409, 422}.isdisjoint(vllm.ERRORS.values())
