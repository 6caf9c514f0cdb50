"""Cohere's routes in-process over the stub engine: every field, every refusal, and what Cohere's own SDK makes of them."""

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import cohere
import httpx
import msgspec
import numpy as np
import pytest
from cohere.core.api_error import ApiError

from tests.protocols import stub
from vecgate import errors
from vecgate.core import Call
from vecgate.protocols import MOST_MESSAGE, Site, cohere_bodies, vectors
from vecgate.protocols import cohere as protocol

COHERE = ["vecgate.protocols.cohere"]
RERANKS = ["/v1/rerank", "/v2/rerank", "/rerank"]
EMBEDS = ["/v1/embed", "/v2/embed"]
DOCUMENTS = ["the dog sat", "paris is the capital of france", "banana", "berlin is the capital of germany"]
QUERY = "capital of france"


class ReturnedResult(msgspec.Struct):
    document: dict[str, msgspec.Raw]


class Returned(msgspec.Struct):
    results: list[ReturnedResult]


def app_of(engine: stub.StubEngine | None = None, **site: Any) -> Any:
    return stub.app_of(engine or stub.StubEngine(), Site(**site), COHERE)


def send(app: Any, method: str, path: str, **given: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with stub.client_of(app) as client:
            return await client.request(method, path, **given)

    return asyncio.run(go())


def post(path: str, body: dict[str, Any], engine: stub.StubEngine | None = None, **site: Any) -> httpx.Response:
    return send(app_of(engine, **site), "POST", path, json=body)


def rerank(engine: stub.StubEngine | None = None, path: str = "/v2/rerank", **body: Any) -> dict[str, Any]:
    response = post(path, {"query": QUERY, "documents": DOCUMENTS, **body}, engine)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def embed(engine: stub.StubEngine | None = None, path: str = "/v2/embed", **body: Any) -> dict[str, Any]:
    response = post(path, body, engine)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(response: httpx.Response, status: int = 400) -> str:
    """The message of a refusal, once its shape is checked."""
    assert response.status_code == status, response.text
    body = response.json()
    shared = response.request.url.path.rstrip("/") in ("/v1/rerank", "/rerank")  # with Jina's clients
    assert list(body) == ["message", "detail"][: 1 + shared]
    message: str = body["message"]
    assert set(body.values()) == {message}
    return message


def order(answer: dict[str, Any]) -> list[int]:
    return [one["index"] for one in answer["results"]]


# rerank


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", "2")])
def test_the_whole_ranking(path: str, version: str) -> None:
    response = post(path, {"model": "stub", "query": QUERY, "documents": DOCUMENTS})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-vecgate-model"] == "org/stub-embed"
    body = response.json()
    scores = [one.pop("relevance_score") for one in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)
    UUID(body.pop("id"))
    tokens = 5 + 5 + 8 + 3 + 8
    assert body == {
        "results": [{"index": index} for index in (1, 3, 2, 0)],
        "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        "model": "stub",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    msgspec.json.decode(response.content, type=cohere_bodies.CohereRanking)


def test_scores_are_in_0_to_1_where_the_cosine_is_not() -> None:
    async def ranking() -> Any:
        return await stub.StubEngine().rerank(Call("t"), None, QUERY, DOCUMENTS)

    found = asyncio.run(ranking())
    assert [one["relevance_score"] for one in rerank()["results"]] == list(found.scores)
    assert list(found.scores) != list(found.raw)


def test_each_answer_has_an_id_of_its_own() -> None:
    assert rerank()["id"] != rerank()["id"]


@pytest.mark.parametrize(("model", "echoed"), [(None, "org/stub-embed"), (" ", "org/stub-embed"), ("stub", "stub")])
def test_model_is_optional_and_echoed(model: str | None, echoed: str) -> None:
    assert rerank(model=model)["model"] == echoed


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (4, 4), (1000, 4), (2**31 - 1, 4), (None, 4)])
def test_top_n(top_n: int | None, count: int) -> None:
    assert order(rerank(top_n=top_n)) == [1, 3, 2, 0][:count]


@pytest.mark.parametrize(("asked", "used"), [(None, 4096), (1, 1), (512, 512)])
def test_max_tokens_per_doc_reaches_the_engine(asked: int | None, used: int) -> None:
    engine = stub.StubEngine()
    rerank(engine, max_tokens_per_doc=asked)
    assert engine.rankings[0]["max_tokens_per_document"] == used


def test_the_engine_chooses_the_method_and_the_server_the_cut() -> None:
    engine = stub.StubEngine()
    post("/v2/rerank", {"query": "a", "documents": ["b"], "model": "stub"}, engine, cut="refuse")
    assert {name: engine.rankings[0][name] for name in ("model", "method", "cut")} == {
        "model": "stub",
        "method": "auto",
        "cut": "refuse",
    }


@pytest.mark.parametrize(("count", "units"), [(1, 1), (100, 1), (101, 2), (200, 2), (201, 3)])
def test_a_search_unit_is_100_documents(count: int, units: int) -> None:
    assert rerank(documents=["a"] * count)["meta"]["billed_units"] == {"search_units": units}


def test_nulls_and_unknown_fields_are_accepted() -> None:
    nulls: dict[str, Any] = {
        "model": None,
        "top_n": None,
        "rank_fields": None,
        "return_documents": None,
        "max_tokens_per_doc": None,
    }
    ignored: dict[str, Any] = {
        "max_chunks_per_doc": None,
        "priority": None,
        "relevant_spans": None,
        "truncate": None,
        "drop_params": 1,
    }
    assert order(rerank(**nulls, **ignored)) == order(rerank())
    assert order(rerank(max_chunks_per_doc=3, priority=1, relevant_spans={"a": []})) == order(rerank())


@pytest.mark.parametrize("asked", [None, False])
def test_documents_are_left_out_unless_asked_for(asked: bool | None) -> None:
    assert [list(one) for one in rerank(return_documents=asked)["results"]] == [["index", "relevance_score"]] * 4


@pytest.mark.parametrize("path", RERANKS)
def test_a_returned_document_is_an_object_with_text(path: str) -> None:
    results = rerank(path=path, return_documents=True)["results"]
    assert [one["document"] for one in results] == [{"text": DOCUMENTS[one["index"]]} for one in results]


@pytest.mark.parametrize("path", RERANKS)
def test_objects_rank_as_their_text_does(path: str) -> None:
    objects = [{"text": text, "id": index} for index, text in enumerate(DOCUMENTS)]
    mixed = [DOCUMENTS[0], *objects[1:]]
    plain = rerank(path=path)["results"]
    assert rerank(path=path, documents=objects)["results"] == plain
    assert rerank(path=path, documents=mixed)["results"] == plain


def test_an_object_keeps_its_other_fields_as_they_were_sent() -> None:
    fields = b'{"text": "caf\\u00e9", "n": 12345678901234567890123, "x": [1.50, {"y": null}]}'
    raw = b'{"query": "a", "return_documents": true, "documents": [' + fields + b"]}"
    response = send(app_of(), "POST", "/v1/rerank", content=raw)
    (result,) = msgspec.json.decode(response.content, type=Returned).results
    assert {name: bytes(value) for name, value in result.document.items()} == {
        "text": b'"caf\\u00e9"',
        "n": b"12345678901234567890123",
        "x": b'[1.50, {"y": null}]',
    }


def test_rank_fields_are_read_in_order_with_a_space_between() -> None:
    engine = stub.StubEngine()
    documents = ["plain", {"title": "paris", "text": "the capital", "year": 1984}]
    rerank(engine, documents=documents, rank_fields=["title", "text"])
    rerank(engine, documents=documents, rank_fields=["text", "year", "title"])
    rerank(engine, documents=documents)
    read = [ranking["documents"] for ranking in engine.rankings]
    assert read == [["plain", "paris the capital"], ["plain", "the capital 1984 paris"], ["plain", "the capital"]]


def test_a_field_named_twice_is_read_once() -> None:
    engine = stub.StubEngine()
    rerank(engine, documents=[{"text": "a"}], rank_fields=["text"] * 100_000)
    assert engine.rankings[0]["documents"] == ["a"]


def test_a_returned_object_without_text_is_given_what_was_read() -> None:
    results = rerank(documents=[{"title": "paris", "n": 2}], rank_fields=["title", "n"], return_documents=True)[
        "results"
    ]
    assert results[0]["document"] == {"text": "paris 2", "title": "paris", "n": 2}


def test_any_text_is_accepted() -> None:
    assert sorted(order(rerank(query="", documents=["", " ", "\n", "é", "\U0001f600", "\x00"]))) == [0, 1, 2, 3, 4, 5]


def test_what_was_cut_is_told_in_a_header() -> None:
    response = post("/v2/rerank", {"query": "a", "documents": ["cat", "dog " * 100]})
    assert response.headers["x-vecgate-truncated"] == f"1:102>{stub.MAX_TOKENS}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"documents": None}, ["documents"]),
        ({"documents": []}, ["documents", "empty"]),
        ({"documents": "a"}, ["documents", "str"]),
        ({"documents": [1]}, ["documents", "int"]),
        ({"documents": [["a"]]}, ["documents", "array"]),
        ({"documents": ["a", {}]}, ["documents[1]", "'text'"]),
        ({"documents": [{"text": None}]}, ["documents[0]", "'text'"]),
        ({"documents": [{"text": ["a"]}]}, ["documents[0]", "'text'"]),
        ({"documents": [{"text": True}]}, ["documents[0]", "'text'"]),
        ({"documents": ["a", {"text": "b"}], "rank_fields": ["title"]}, ["documents[1]", "'title'"]),
        ({"documents": [{"title": "b"}], "rank_fields": ["title", "body"]}, ["documents[0]", "'body'"]),
        ({"rank_fields": []}, ["rank_fields", "empty"]),
        ({"rank_fields": "text"}, ["rank_fields", "str"]),
        ({"query": None}, ["query", "null"]),
        ({"query": 5}, ["query", "int"]),
        ({"top_n": 0}, ["top_n", "0", "1"]),
        ({"top_n": -3}, ["top_n", "-3", "1"]),
        ({"top_n": 2**31}, ["top_n", "2147483648", "2147483647"]),
        ({"top_n": 10**30}, ["top_n"]),
        ({"top_n": "3"}, ["top_n", "str"]),
        ({"top_n": 1.5}, ["top_n", "float"]),
        ({"top_n": True}, ["top_n", "bool"]),
        ({"max_tokens_per_doc": 0}, ["max_tokens_per_doc", "0", "1"]),
        ({"return_documents": "yes"}, ["return_documents", "str"]),
        ({"model": 3}, ["model", "int"]),
    ],
)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_bad_rerank_bodies_are_400_and_say_what_is_wrong(path: str, body: dict[str, Any], words: list[str]) -> None:
    message = refused(post(path, {"query": "q", "documents": ["a"]} | body))
    for word in words:
        assert word in message


@pytest.mark.parametrize("key", ["query", "documents"])
def test_what_is_required_is_named(key: str) -> None:
    body = {"query": "q", "documents": ["a"]}
    del body[key]
    assert key in refused(post("/v2/rerank", body))


def test_more_documents_than_the_limit_names_both_numbers() -> None:
    body = {"query": "q", "documents": ["a"] * 6}
    message = refused(post("/v1/rerank", body, max_passages_per_rerank=5))
    assert "documents" in message
    assert "6" in message
    assert "5" in message
    assert post("/v1/rerank", body, max_passages_per_rerank=6).status_code == 200


# embed


def test_the_whole_answer_of_v2() -> None:
    response = post("/v2/embed", {"model": "stub", "input_type": "search_document", "texts": ["the cat", ""]})
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    rows = body["embeddings"].pop("float")
    UUID(body.pop("id"))
    assert body == {
        "response_type": "embeddings_by_type",
        "embeddings": {},
        "texts": ["the cat", ""],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 6}},
    }
    assert np.shape(rows) == (2, stub.DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    msgspec.json.decode(response.content, type=cohere_bodies.EmbedByType)


def test_v1_answers_a_list_unless_types_are_asked_for() -> None:
    response = post("/v1/embed", {"texts": ["the cat", "dog"]})
    plain, typed = response.json(), embed(path="/v1/embed", texts=["the cat", "dog"], embedding_types=["float"])
    assert plain["response_type"] == "embeddings_floats"
    assert typed["response_type"] == "embeddings_by_type"
    assert typed["embeddings"] == {"float": plain["embeddings"]}
    for answer in (plain, typed):
        UUID(answer["id"])
        assert answer["texts"] == ["the cat", "dog"]
        assert answer["meta"] == {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 7}}
    msgspec.json.decode(response.content, type=cohere_bodies.EmbedFloats)


@pytest.mark.parametrize("types", [None, []])
def test_no_types_are_floats(types: list[str] | None) -> None:
    assert list(embed(texts=["a"], embedding_types=types)["embeddings"]) == ["float"]
    assert isinstance(embed(path="/v1/embed", texts=["a"], embedding_types=types)["embeddings"], list)


@pytest.mark.parametrize("path", EMBEDS)
def test_only_the_types_asked_for_are_answered_each_once(path: str) -> None:
    asked = ["ubinary", "int8", "ubinary"]
    assert list(embed(path=path, texts=["a"], embedding_types=asked)["embeddings"]) == ["ubinary", "int8"]


def test_every_type_is_the_float_row_encoded() -> None:
    texts = ["the cat sat", "paris", "", "a slow dog"]
    found = embed(texts=texts, embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"])["embeddings"]
    rows = np.array(found["float"], np.float32)
    scaled = np.rint(127 * rows / np.abs(rows).max(axis=1, keepdims=True))
    np.testing.assert_array_equal(found["int8"], scaled)
    np.testing.assert_array_equal(found["uint8"], scaled + 128)
    np.testing.assert_array_equal(found["ubinary"], np.packbits(rows > 0, axis=1))
    np.testing.assert_array_equal(found["binary"], np.packbits(rows > 0, axis=1).astype(int) - 128)
    packed = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in found["base64"]]
    np.testing.assert_array_equal(packed, rows)


def test_a_long_answer_is_whole_and_in_order() -> None:
    texts = [f"cat {i}" for i in range(150)]
    rows = embed(texts=texts)["embeddings"]["float"]
    assert len(rows) == 150
    assert rows[100] == embed(texts=[texts[100]])["embeddings"]["float"][0]


def test_inputs_are_texts_in_parts() -> None:
    engine = stub.StubEngine()
    inputs = [
        {"content": [{"type": "text", "text": "the cat"}, {"type": "text", "text": "sat"}]},
        {"content": [{"type": "text", "text": "", "image_url": None}]},
    ]
    answer = embed(engine, inputs=inputs, texts=None, images=None)
    assert engine.calls[0]["inputs"] == answer["texts"] == ["the cat sat", ""]
    assert answer["embeddings"] == embed(texts=["the cat sat", ""])["embeddings"]


@pytest.mark.parametrize(
    ("asked", "role"),
    [
        (None, None),
        ("search_query", "query"),
        ("search_document", "document"),
        ("classification", "Classification"),
        ("clustering", None),
    ],
)
@pytest.mark.parametrize("path", EMBEDS)
def test_input_type_is_the_prompts_name(path: str, asked: str | None, role: str | None) -> None:
    engine = stub.StubEngine(prompts={"query": "q: ", "Classification": "task: classification | "})
    post(path, {"texts": ["a"], "input_type": asked}, engine)
    assert [call["role"] for call in engine.calls] == [role]


@pytest.mark.parametrize(("asked", "cut"), [(None, "end"), ("END", "end"), ("START", "start"), ("NONE", "refuse")])
def test_truncate_says_what_is_cut(asked: str | None, cut: str) -> None:
    engine = stub.StubEngine()
    embed(engine, texts=["a"], truncate=asked)
    assert engine.calls[0]["cut"] == cut


def test_truncate_beats_the_servers_setting_and_null_is_it() -> None:
    engine = stub.StubEngine()
    body = {"texts": ["dog " * 100]}
    refused(post("/v2/embed", body, engine, cut="refuse"))
    assert post("/v2/embed", {**body, "truncate": "END"}, engine, cut="refuse").status_code == 200
    assert "102" in refused(post("/v2/embed", {**body, "truncate": "NONE"}, engine))


@pytest.mark.parametrize(("truncate", "same"), [("END", "the cat"), ("START", "dog sat")])
def test_max_tokens_is_a_lower_limit(truncate: str, same: str) -> None:
    response = post("/v2/embed", {"texts": ["the cat dog sat"], "max_tokens": 4, "truncate": truncate})
    assert response.json()["embeddings"] == embed(texts=[same])["embeddings"]
    assert response.json()["meta"]["billed_units"] == {"input_tokens": 4}
    assert response.headers["x-vecgate-truncated"] == "0:6>4"


def test_max_tokens_refuses_where_nothing_may_be_cut() -> None:
    message = refused(post("/v2/embed", {"texts": ["the cat dog sat"], "max_tokens": 4, "truncate": "NONE"}))
    assert "6" in message
    assert "4" in message


def test_output_dimension_cuts_and_renormalises() -> None:
    (full,) = embed(texts=["cat"])["embeddings"]["float"]
    (cut,) = embed(texts=["cat"], output_dimension=3)["embeddings"]["float"]
    np.testing.assert_allclose(cut, np.array(full[:3]) / np.linalg.norm(full[:3]), atol=1e-6)


def test_nulls_and_unknown_fields_of_embed_are_accepted() -> None:
    nulls: dict[str, Any] = {"model": None, "inputs": None, "images": None, "input_type": None, "embedding_types": None}
    more: dict[str, Any] = {
        "truncate": None,
        "output_dimension": None,
        "max_tokens": None,
        "priority": None,
        "drop_params": True,
    }
    assert embed(texts=["cat"], **nulls, **more)["embeddings"] == embed(texts=["cat"])["embeddings"]
    assert embed(texts=["cat"], images=[], priority=3)["embeddings"] == embed(texts=["cat"])["embeddings"]


TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["texts", "inputs"]),
        ({"texts": None, "inputs": None}, ["texts", "inputs"]),
        ({"texts": ["a"], "inputs": [{"content": [TEXT]}]}, ["texts", "inputs"]),
        ({"texts": []}, ["texts", "empty"]),
        ({"inputs": []}, ["inputs", "empty"]),
        ({"texts": "a"}, ["texts", "str"]),
        ({"texts": ["a", None]}, ["texts", "null"]),
        ({"texts": [5]}, ["texts", "int"]),
        ({"images": ["data:image/png;base64,AA=="]}, ["images", "text only"]),
        ({"texts": ["a"], "images": ["x"]}, ["images", "text only"]),
        ({"inputs": [{"content": [TEXT]}, {"content": [TEXT, IMAGE]}]}, ["inputs[1]", "image_url", "text only"]),
        ({"inputs": [{"content": []}]}, ["inputs[0]", "content"]),
        ({"inputs": [{"content": [{"type": "text"}]}]}, ["inputs[0]", "text"]),
        ({"inputs": [{}]}, ["content"]),
        ({"inputs": ["a"]}, ["inputs", "str"]),
        ({"texts": ["a"], "input_type": "image"}, ["input_type", "image", "search_query", "clustering"]),
        ({"texts": ["a"], "input_type": "x" * 99}, ["input_type", "search_document", "classification"]),
        ({"texts": ["a"], "input_type": 3}, ["input_type", "int"]),
        ({"texts": ["a"], "embedding_types": ["int4"]}, ["embedding_types", "int4", "float", "ubinary", "base64"]),
        ({"texts": ["a"], "embedding_types": "float"}, ["embedding_types", "str"]),
        ({"texts": ["a"], "truncate": "end"}, ["truncate", "end", "NONE", "START", "END"]),
        ({"texts": ["a"], "output_dimension": 0}, ["output_dimension", "0", "1"]),
        ({"texts": ["a"], "output_dimension": 9}, ["output_dimension", "9", "8"]),
        ({"texts": ["a"], "output_dimension": 10**30}, ["output_dimension"]),
        ({"texts": ["a"], "output_dimension": 4, "embedding_types": ["binary"]}, ["binary", "4", "8"]),
        ({"texts": ["a"], "output_dimension": 7, "embedding_types": ["float", "ubinary"]}, ["ubinary", "7", "8"]),
        ({"texts": ["a"], "max_tokens": 0}, ["max_tokens", "0", "1"]),
        ({"texts": ["a"], "max_tokens": "9"}, ["max_tokens", "str"]),
        ({"texts": ["a"], "model": 3}, ["model", "int"]),
    ],
)
@pytest.mark.parametrize("path", EMBEDS)
def test_bad_embed_bodies_are_400_and_say_what_is_wrong(path: str, body: dict[str, Any], words: list[str]) -> None:
    engine = stub.StubEngine()
    message = refused(post(path, body, engine))
    for word in words:
        assert word in message
    assert engine.calls == []


@pytest.mark.parametrize(
    ("name", "items"), [("texts", ["a"] * 6), ("inputs", [{"content": [{"type": "text", "text": "a"}]}] * 6)]
)
def test_more_inputs_than_the_limit_names_both_numbers(name: str, items: list[Any]) -> None:
    message = refused(post("/v2/embed", {name: items}, max_inputs=5))
    for word in (name, "6", "5"):
        assert word in message
    assert post("/v2/embed", {name: items}, max_inputs=6).status_code == 200


# both


@pytest.mark.parametrize("path", [*RERANKS, *EMBEDS])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b"[" * 100_000,
        b'{"query":"\xff","documents":["a"],"texts":["\xff"]}',
        b'{"query":"q","documents":["a"],"texts":["a"],"x":"\xff"}',
        b'{"query":"q","documents":["\\ud83d"],"texts":["\\ud83d"]}',
        b'{"query":"q","documents":[{"text":"a","x":' + b"[" * 100_000 + b'}],"texts":' + b"[" * 100_000,
        b'{"query":NaN,"texts":[NaN]}',
    ],
)
def test_broken_bodies_are_400(path: str, raw: bytes) -> None:
    response = send(app_of(), "POST", path, content=raw, headers={"content-type": "application/json"})
    refused(response)
    assert len(response.content) < 3_000


@pytest.mark.parametrize("fields", [b'{"text":"\xff"}', b'{"text":"a","x":"\xff"}', b'{"text":"\\ud83d"}'])
def test_broken_text_in_an_object_is_400(fields: bytes) -> None:
    raw = b'{"query":"q","return_documents":true,"documents":[' + fields + b"]}"
    refused(send(app_of(), "POST", "/v1/rerank", content=raw))


@pytest.mark.parametrize(("path", "key"), [("/v2/rerank", "documents"), ("/v1/embed", "texts")])
def test_an_unknown_model_is_404_with_the_names_that_exist(path: str, key: str) -> None:
    message = refused(post(path, {"query": "q", key: ["a"], "model": "nope"}), 404)
    assert "nope" in message
    assert "org/stub-embed" in message


@pytest.mark.parametrize("path", [*RERANKS, *EMBEDS])
def test_a_wrong_method_is_405_and_names_the_right_one(path: str) -> None:
    response = send(app_of(), "GET", path)
    refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_long_message_is_cut_and_a_lone_surrogate_in_it_is_no_500() -> None:
    status, _, body = protocol.render(errors.ModelNotFound("\ud83d" + "x" * 10_000))
    assert status == 404
    assert len(body) < MOST_MESSAGE + 200
    assert msgspec.json.decode(body)["message"].startswith("\\ud83dx")


RAISED: list[tuple[errors.VecgateError, int, dict[str, str]]] = [
    (errors.InvalidRequest("no", "top_n"), 400, {}),
    (errors.EmptyInput("no", "input"), 400, {}),
    (errors.InputTooLong("no", "input"), 400, {}),
    (errors.SpaceMismatch("no", "expect"), 400, {}),
    (errors.WrongTask("no"), 400, {}),
    (errors.Unauthenticated("no"), 401, {"www-authenticate": "Bearer"}),
    (errors.Forbidden("no"), 403, {}),
    (errors.NotFound("no"), 404, {}),
    (errors.ModelNotFound("no"), 404, {}),
    (errors.MethodNotAllowed("no", ("GET",)), 405, {"allow": "GET"}),
    (errors.BodyTimeout("no"), 408, {}),
    (errors.TooLarge("no"), 413, {}),
    (errors.UnsupportedEncoding("no"), 415, {}),
    (errors.Overloaded("no", 7), 429, {"retry-after": "7"}),
    (errors.RateLimited("no", 3), 429, {"retry-after": "3"}),
    (errors.BackendFailed("no"), 500, {}),
    (errors.OutOfMemory("no"), 500, {}),
    (errors.NotReady("no", 5), 503, {"retry-after": "5"}),
    (errors.NotReady("no", None), 503, {"x-should-retry": "false"}),
    (errors.DeadlineExceeded("no"), 504, {"x-should-retry": "false"}),
    (errors.VecgateError("no"), 500, {}),
]


@pytest.mark.parametrize(("raised", "status", "headers"), RAISED, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/embed"])
def test_every_error_has_its_status_and_shape(
    path: str, raised: errors.VecgateError, status: int, headers: dict[str, str]
) -> None:
    response = post(path, {"query": "q", "documents": ["a"], "texts": ["a"]}, stub.StubEngine(fail=raised))
    assert refused(response, status) == "no"
    names = ("retry-after", "x-should-retry", "allow", "www-authenticate")
    assert {name: response.headers[name] for name in names if name in response.headers} == headers


def test_the_table_of_errors_leaves_none_out_and_holds_no_409_and_no_422() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VecgateError)}
    assert {type(raised) for raised, _, _ in RAISED} == tree
    assert {409, 422}.isdisjoint(protocol.ERRORS.values())


# the shared path


def shared(body: dict[str, Any]) -> httpx.Response:
    return send(stub.app_of(stub.StubEngine()), "POST", "/rerank", json=body)


def test_on_rerank_the_bodys_key_decides_answer_and_dialect() -> None:
    assert "relevance_score" in shared({"query": "q", "documents": ["a"]}).json()["results"][0]
    assert "score" in shared({"query": "q", "passages": ["a"]}).json()["results"][0]
    refused(shared({"query": 1, "documents": ["a"]}))
    assert "error" in shared({"query": 1, "passages": ["a"]}).json()


def test_on_rerank_a_body_without_either_key_is_told_both() -> None:
    message = refused(shared({"query": "q"}))
    assert "documents" in message
    assert "passages" in message


# Cohere's SDK


def sdk(kind: Any, work: Callable[[Any], Coroutine[Any, Any, Any]], app: Any) -> Any:
    async def go() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            client = kind(api_key="none", base_url="http://test", httpx_client=http, max_retries=0)
            return await work(client)

    return asyncio.run(go())


@pytest.mark.parametrize("kind", [cohere.AsyncClient, cohere.AsyncClientV2])
def test_sdk_reranks(kind: Any) -> None:
    answer = sdk(kind, lambda client: client.rerank(model="stub", query=QUERY, documents=DOCUMENTS, top_n=2), app_of())
    assert [one.index for one in answer.results] == [1, 3]
    assert answer.results[0].relevance_score > answer.results[1].relevance_score
    assert answer.meta.billed_units.search_units == 1


def test_sdk_v1_reranks_objects_by_their_fields() -> None:
    documents = [{"title": "banana", "n": "1"}, {"title": "paris", "n": "2"}]
    answer = sdk(
        cohere.AsyncClient,
        lambda client: client.rerank(query="paris", documents=documents, rank_fields=["title"], return_documents=True),
        app_of(),
    )
    assert [one.document.text for one in answer.results] == ["paris", "banana"]
    assert answer.results[0].document.n == "2"


def test_sdk_v1_embeds_in_batches_of_96_and_merges_them() -> None:
    texts = [f"cat {i}" for i in range(200)]
    answer = sdk(cohere.AsyncClient, lambda client: client.embed(texts=texts), app_of())
    assert answer.response_type == "embeddings_floats"
    assert answer.texts == texts
    np.testing.assert_allclose(answer.embeddings[150], embed(texts=["cat 150"])["embeddings"]["float"][0], atol=1e-7)
    assert answer.meta.billed_units.input_tokens == sum(3 + len(str(i)) for i in range(200))


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # the SDK's own merging of batches
@pytest.mark.parametrize("kind", [cohere.AsyncClient, cohere.AsyncClientV2])
def test_sdk_embeds_every_type(kind: Any) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    given = {"model": "stub", "input_type": "search_query", "texts": ["the cat", "dog"], "embedding_types": types}
    found = sdk(kind, lambda client: client.embed(**given), app_of()).embeddings
    assert np.shape(found.float_) == (2, stub.DIMENSIONS)
    assert [len(rows[0]) for rows in (found.int8, found.uint8, found.binary, found.ubinary)] == [8, 8, 1, 1]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(found.base64[1]), "<f4"), np.array(found.float_[1], np.float32)
    )


def test_sdk_v2_embeds_inputs() -> None:
    inputs = [{"content": [{"type": "text", "text": "the cat"}]}]
    given = {"model": "stub", "input_type": "search_document", "output_dimension": 4, "max_tokens": 16}
    answer = sdk(cohere.AsyncClientV2, lambda client: client.embed(inputs=inputs, **given), app_of())
    assert np.shape(answer.embeddings.float_) == (1, 4)
    assert answer.embeddings.int8 is None
    assert answer.texts == ["the cat"]


def test_sdk_images_are_a_bad_request() -> None:
    given = {"model": "stub", "input_type": "image", "images": ["data:image/png;base64,AA=="]}
    with pytest.raises(cohere.BadRequestError, match="text only"):
        sdk(cohere.AsyncClientV2, lambda client: client.embed(**given), app_of())


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (errors.InvalidRequest("no"), cohere.BadRequestError),
        (errors.InputTooLong("no"), cohere.BadRequestError),
        (errors.Unauthenticated("no"), cohere.UnauthorizedError),
        (errors.Forbidden("no"), cohere.ForbiddenError),
        (errors.ModelNotFound("no"), cohere.NotFoundError),
        (errors.TooLarge("no"), ApiError),
        (errors.Overloaded("no"), cohere.TooManyRequestsError),
        (errors.BackendFailed("no"), cohere.InternalServerError),
        (errors.NotReady("no"), cohere.ServiceUnavailableError),
        (errors.DeadlineExceeded("no"), cohere.GatewayTimeoutError),
    ],
)
@pytest.mark.parametrize("client", [cohere.AsyncClient, cohere.AsyncClientV2])
def test_sdk_raises_its_own_exceptions_with_our_message(
    client: Any, raised: errors.VecgateError, kind: type[ApiError]
) -> None:
    app = app_of(stub.StubEngine(fail=raised))
    with pytest.raises(kind) as caught:
        sdk(client, lambda made: made.rerank(model="stub", query="q", documents=["a"]), app)
    assert caught.value.body["message"] == "no"
    with pytest.raises(kind) as caught:
        sdk(client, lambda made: made.embed(model="stub", texts=["a"], input_type="search_query"), app)
    assert caught.value.body == {"message": "no"}


def test_names_of_the_wire_are_those_of_the_encodings() -> None:
    names = {field.encode_name for field in msgspec.structs.fields(cohere_bodies.EmbeddingsByType)}
    assert names == set(vectors.ENCODINGS)
