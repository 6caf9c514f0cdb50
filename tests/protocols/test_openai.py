"""OpenAI's routes in-process over the stub engine: every shape, every refusal, and what OpenAI's own SDK makes of them."""

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import httpx2
import msgspec
import numpy as np
import openai
import pytest
from litestar.types import Receive, Scope, Send

from tests.protocols import stub
from vecgate import errors
from vecgate.core import Record, VirtualName
from vecgate.protocols import MOST_MESSAGE, Site
from vecgate.protocols import openai as protocol
from vecgate.protocols.openai_bodies import EmbeddingList

PATH = "/v1/embeddings"
OPENAI = ["vecgate.protocols.openai"]


def app_of(engine: stub.StubEngine | None = None, **site: Any) -> Any:
    return stub.app_of(engine or stub.StubEngine(), Site(**site), OPENAI)


def send(app: Any, method: str, path: str, **given: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with stub.client_of(app) as client:
            return await client.request(method, path, **given)

    return asyncio.run(go())


def embed(body: dict[str, Any], engine: stub.StubEngine | None = None, **site: Any) -> httpx.Response:
    return send(app_of(engine, **site), "POST", PATH, json=body)


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a refusal, once its shape is checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = body["error"]
    return error


def rows(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [one["embedding"] for one in response.json()["data"]]


def unpacked(text: str) -> list[float]:
    return [float(x) for x in np.frombuffer(base64.b64decode(text, validate=True), "<f4")]


def sdk(work: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, Any]], app: Any) -> Any:
    async def go() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with (
            httpx2.AsyncClient(transport=transport) as http,
            openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http, max_retries=0) as client,
        ):
            return await work(client)

    return asyncio.run(go())


# what is answered


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_the_whole_answer(path: str) -> None:
    response = send(app_of(), "POST", path, json={"input": "the cat", "model": "stub"})
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    (vector,) = (one.pop("embedding") for one in body["data"])
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}],
        "model": "stub",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert len(vector) == stub.DIMENSIONS
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    msgspec.json.decode(response.content, type=EmbeddingList)


def test_rows_come_in_the_order_of_the_inputs() -> None:
    texts = ["the cat", "a dog", "the cat", "paris", ""]
    response = embed({"input": texts})
    alone = [rows(embed({"input": text}))[0] for text in texts]
    assert rows(response) == alone
    assert [one["index"] for one in response.json()["data"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["", " ", "\n", "\u00a0", "\x00", "é", "\U0001f600"])
def test_any_text_is_accepted_alone_and_in_a_list(text: str) -> None:
    assert rows(embed({"input": [text]})) == rows(embed({"input": text}))


def test_base64_holds_the_same_float32() -> None:
    texts = ["the cat", "a dog sat", "zurich \u4e2d"]
    packed = [unpacked(text) for text in rows(embed({"input": texts, "encoding_format": "base64"}))]
    plain = rows(embed({"input": texts, "encoding_format": "float"}))
    np.testing.assert_array_equal(np.array(packed, np.float32), np.array(plain, np.float32))


def test_float_is_what_nobody_asked_for() -> None:
    assert rows(embed({"input": "cat", "encoding_format": None})) == rows(embed({"input": "cat"}))
    assert isinstance(rows(embed({"input": "cat"}))[0], list)


def test_nulls_and_unknown_fields_are_accepted() -> None:
    nulls = {"model": None, "encoding_format": None, "dimensions": None, "user": None}
    unknown = {"drop_params": True, "input_type": "query", "truncate": None, "priority": 3}
    assert rows(embed({"input": "cat", **nulls, **unknown})) == rows(embed({"input": "cat"}))


@pytest.mark.parametrize(("asked", "echoed"), [(None, "org/stub-embed"), ("", "org/stub-embed"), ("stub", "stub")])
def test_model_is_the_name_that_was_asked_for_else_the_true_one(asked: str | None, echoed: str) -> None:
    assert embed({"input": "cat", "model": asked}).json()["model"] == echoed


def test_dimensions_cut_and_renormalise() -> None:
    (full,), (cut,) = rows(embed({"input": "cat"})), rows(embed({"input": "cat", "dimensions": 3}))
    np.testing.assert_allclose(cut, np.array(full[:3]) / np.linalg.norm(full[:3]), atol=1e-6)


def test_output_dimension_is_another_name_of_dimensions() -> None:
    cut = rows(embed({"input": "cat", "dimensions": 3}))
    for named in (
        {"output_dimension": 3},
        {"output_dimension": 3, "dimensions": 3},
        {"dimensions": 3, "output_dimension": None},
    ):
        assert rows(embed({"input": "cat", **named})) == cut


def test_usage_counts_every_input() -> None:
    usage = embed({"input": ["the cat", "", "dog"]}).json()["usage"]
    assert usage == {"prompt_tokens": 4 + 2 + 3, "total_tokens": 4 + 2 + 3}


def test_what_was_cut_is_told_in_a_header() -> None:
    response = embed({"input": ["cat", "dog " * 100]})
    assert response.headers["x-vecgate-truncated"] == f"1:102>{stub.MAX_TOKENS}"


def test_a_long_answer_is_whole() -> None:
    texts = [f"cat {i}" for i in range(200)]
    response = embed({"input": texts})
    assert [one["index"] for one in response.json()["data"]] == list(range(200))
    assert rows(response)[150] == rows(embed({"input": texts[150]}))[0]


def test_cut_is_the_servers_setting() -> None:
    engine = stub.StubEngine()
    embed({"input": "cat"}, engine)
    error = refused(embed({"input": ["cat", "dog " * 100]}, engine, cut="refuse"))
    assert [call["cut"] for call in engine.calls] == ["end", "refuse"]
    assert error["code"] == "context_length_exceeded"
    assert "102" in error["message"]


def test_the_record_of_a_request_is_filled_in() -> None:
    seen: list[Record] = []
    inner = app_of()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)
        seen.append(scope["vecgate"])  # type: ignore[typeddict-item]

    send(app, "POST", PATH, json={"input": ["the cat", "dog " * 100]})
    (record,) = seen
    assert (record.route, record.model) == (PATH, "org/stub-embed")
    assert (record.inputs, record.tokens, record.truncated) == (2, 4 + stub.MAX_TOKENS, 1)
    assert record.encode_s > 0


# what is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["input"]),
        ({"input": None}, ["input", "null"]),
        ({"input": 5}, ["input", "int"]),
        ({"input": {"text": "a"}}, ["input", "object"]),
        ({"input": []}, ["input"]),
        ({"input": [[]]}, ["input"]),
        ({"input": [[1000], []]}, ["input"]),
        ({"input": ["a", 1]}, ["input", "one kind"]),
        ({"input": [1, [2]]}, ["input", "one kind"]),
        ({"input": ["a", ["b"]]}, ["input"]),
        ({"input": ["a", None]}, ["input", "null"]),
        ({"input": [True]}, ["input", "bool"]),
        ({"input": [1.5]}, ["input", "float"]),
        ({"input": [-1]}, ["input", "0"]),
        ({"input": [[2**31]]}, ["input", "2147483647"]),
        ({"input": [10**30]}, ["input"]),
        ({"input": "a", "dimensions": 0}, ["dimensions is 0", "1 to 8"]),
        ({"input": "a", "dimensions": -5}, ["dimensions is -5", "1 to 8"]),
        ({"input": "a", "dimensions": True}, ["dimensions", "bool"]),
        ({"input": "a", "dimensions": 2.5}, ["dimensions", "float"]),
        ({"input": "a", "dimensions": "8"}, ["dimensions", "str"]),
        ({"input": "a", "dimensions": 9}, ["dimensions", "9", "8"]),
        ({"input": "a", "dimensions": 10**40}, ["dimensions"]),
        ({"input": "a", "output_dimension": 0}, ["dimensions is 0", "1 to 8"]),
        ({"input": "a", "dimensions": 3, "output_dimension": 4}, ["dimensions is 3", "output_dimension 4"]),
        ({"input": "a", "encoding_format": "int8"}, ["encoding_format", "int8", "float", "base64"]),
        ({"input": "a", "encoding_format": 3}, ["encoding_format", "int"]),
        ({"input": "a", "model": 3}, ["model", "int"]),
    ],
)
def test_bad_bodies_are_400_and_say_what_is_wrong(body: dict[str, Any], words: list[str]) -> None:
    error = refused(embed(body))
    assert error["type"] == "invalid_request_error"
    for word in words:
        assert word in error["message"]


def test_a_missing_input_is_named() -> None:
    error = refused(embed({"model": "stub"}))
    assert (error["message"], error["param"]) == ("Object missing required field `input`.", "input")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{",
        b'{"input":',
        b'{"input":"\xff"}',
        b'{"input":"\\ud83d"}',
        b'{"input":NaN}',
        b'{"input":[1e999]}',
        b'{"input":"a\x00"}',
        b"[" * 100_000,
        b'{"x":' + b"[" * 100_000,
        b'{"input":' + b"[" * 100_000,
        b'{"input":"a","x":' + b'{"a":' * 100_000,
        b"\xff\xfe{\x00}\x00",
    ],
    ids=lambda raw: raw[:12].decode("ascii", "backslashreplace"),
)
def test_broken_bodies_are_400(raw: bytes) -> None:
    response = send(app_of(), "POST", PATH, content=raw, headers={"content-type": "application/json"})
    assert refused(response)["type"] == "invalid_request_error"
    assert len(response.content) < 3_000


@pytest.mark.parametrize("kind", [str, lambda i: [1000 + i]])
def test_more_inputs_than_the_limit_names_both_numbers(kind: Callable[[Any], Any]) -> None:
    body = {"input": [kind(i) for i in range(6)]}
    error = refused(embed(body, max_inputs=5, token_ids="model"))
    assert "6" in error["message"]
    assert "5" in error["message"]
    assert error["param"] == "input"
    assert embed(body, max_inputs=6, token_ids="model").status_code == 200


@pytest.mark.parametrize("user", [None, 3, ["a"], {"id": 1}])
def test_a_user_of_any_kind_is_ignored(user: Any) -> None:
    assert len(rows(embed({"input": "a", "user": user}))) == 1


def test_one_token_array_is_one_input() -> None:
    assert len(rows(embed({"input": [1000] * 20}, max_inputs=1, token_ids="model"))) == 1


def test_an_unknown_model_is_404_with_the_names_that_exist() -> None:
    error = refused(embed({"input": "a", "model": "nope"}), 404)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
    assert "nope" in error["message"]
    assert "org/stub-embed" in error["message"]


def test_a_long_message_is_cut_and_a_lone_surrogate_in_it_is_no_500() -> None:
    status, _, body = protocol.render(errors.ModelNotFound("\ud83d" + "x" * 10_000))
    assert status == 404
    assert len(body) < MOST_MESSAGE + 200
    assert msgspec.json.decode(body)["error"]["message"].startswith("\\ud83dx")


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", PATH, "POST"), ("POST", "/v1/models", "GET, HEAD")])
def test_a_wrong_method_is_405_and_names_the_right_one(method: str, path: str, allowed: str) -> None:
    response = send(app_of(), method, path)
    refused(response, 405)
    assert response.headers["allow"] == allowed


RAISED: list[tuple[errors.VecgateError, int, str, str | None, str | None]] = [
    (errors.InvalidRequest("no", "dimensions"), 400, "invalid_request_error", "dimensions", None),
    (errors.EmptyInput("no", "input"), 400, "invalid_request_error", "input", None),
    (errors.InputTooLong("no", "input"), 400, "invalid_request_error", "input", "context_length_exceeded"),
    (errors.SpaceMismatch("no", "space"), 400, "invalid_request_error", "space", "vector_space_mismatch"),
    (errors.WrongTask("no"), 400, "invalid_request_error", "model", None),
    (errors.Unauthenticated("no"), 401, "invalid_request_error", None, "invalid_api_key"),
    (errors.Forbidden("no"), 403, "permission_error", None, None),
    (errors.NotFound("no"), 404, "invalid_request_error", None, None),
    (errors.ModelNotFound("no"), 404, "invalid_request_error", "model", "model_not_found"),
    (errors.MethodNotAllowed("no", ("GET",)), 405, "invalid_request_error", None, None),
    (errors.BodyTimeout("no"), 408, "invalid_request_error", None, None),
    (errors.TooLarge("no"), 413, "invalid_request_error", None, None),
    (errors.UnsupportedEncoding("no"), 415, "invalid_request_error", None, None),
    (errors.Overloaded("no", 7), 429, "rate_limit_error", None, "rate_limit_exceeded"),
    (errors.RateLimited("no", 7), 429, "rate_limit_error", None, "rate_limit_exceeded"),
    (errors.BackendFailed("no"), 500, "server_error", None, None),
    (errors.OutOfMemory("no"), 500, "server_error", None, None),
    (errors.NotReady("no"), 503, "server_error", None, None),
    (errors.DeadlineExceeded("no"), 504, "server_error", None, None),
    (errors.VecgateError("no"), 500, "server_error", None, None),
]


@pytest.mark.parametrize(("raised", "status", "kind", "param", "code"), RAISED, ids=lambda x: type(x).__name__)
def test_every_error_has_its_status_and_shape(
    raised: errors.VecgateError, status: int, kind: str, param: str | None, code: str | None
) -> None:
    error = refused(embed({"input": "a"}, stub.StubEngine(fail=raised)), status)
    assert error == {"message": "no", "type": kind, "param": param, "code": code}


def test_the_table_of_errors_leaves_none_out_and_is_never_409() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VecgateError)}
    assert {type(raised) for raised, *_ in RAISED} == tree
    assert 409 not in {status for status, _, _ in protocol.ERRORS.values()}


@pytest.mark.parametrize(
    ("raised", "headers"),
    [
        (errors.Overloaded("no", 7), {"retry-after": "7"}),
        (errors.NotReady("no", 5), {"retry-after": "5"}),
        (errors.NotReady("no", None), {"x-should-retry": "false"}),
        (errors.DeadlineExceeded("no"), {"x-should-retry": "false"}),
        (errors.BackendFailed("no"), {}),
        (errors.BackendFailed("no", lasting=True), {"x-should-retry": "false"}),
    ],
)
def test_headers_say_whether_to_come_back(raised: errors.VecgateError, headers: dict[str, str]) -> None:
    sent = embed({"input": "a"}, stub.StubEngine(fail=raised)).headers
    assert {name: sent[name] for name in ("retry-after", "x-should-retry") if name in sent} == headers


# models


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models_are_listed(path: str) -> None:
    response = send(app_of(), "GET", path)
    assert response.json() == {
        "object": "list",
        "data": [
            {
                "id": "org/stub-embed",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "vecgate",
                "root": "org/stub-embed",
                "role": None,
                "aliases": ["stub-embed", "stub", "text-embedding-3-small"],
                "task": "embed",
                "state": "ready",
                "max_tokens": stub.MAX_TOKENS,
                "dimensions": stub.DIMENSIONS,
                "space": stub.SPACE,
                "verification": {"form": "quick", "verdict": "passed", "at": 1_700_000_001},
            }
        ],
    }


def test_virtual_names_are_listed_after_the_true_ones_and_say_what_they_stand_for() -> None:
    names = (VirtualName("org/stub-embed:query", "query"), VirtualName("small", None, 4))
    app = app_of(stub.StubEngine(virtual=names))
    listed = send(app, "GET", "/v1/models").json()["data"]
    assert [(one["id"], one["root"], one["role"], one["dimensions"]) for one in listed] == [
        ("org/stub-embed", "org/stub-embed", None, stub.DIMENSIONS),
        ("org/stub-embed:query", "org/stub-embed", "query", stub.DIMENSIONS),
        ("small", "org/stub-embed", None, 4),
    ]
    for name in ("org/stub-embed:query", "stub:query"):
        assert send(app, "GET", f"/v1/models/{name}").json() == listed[1]


@pytest.mark.parametrize("name", ["org/stub-embed", "org%2Fstub-embed", "stub"])
@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/"])
def test_one_model_by_any_of_its_names(prefix: str, name: str) -> None:
    listed = send(app_of(), "GET", "/v1/models").json()["data"][0]
    assert send(app_of(), "GET", prefix + name).json() == listed


def test_an_unknown_model_id_with_slashes_is_404() -> None:
    error = refused(send(app_of(), "GET", "/v1/models/some/where/else"), 404)
    assert error["code"] == "model_not_found"
    assert "some/where/else" in error["message"]


def test_head_has_no_body() -> None:
    response = send(app_of(), "HEAD", "/v1/models")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 0


# OpenAI's SDK


def test_sdk_default_is_base64_and_equals_float() -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        packed = await client.embeddings.create(model="stub", input=["the cat", "dog"])
        plain = await client.embeddings.create(model="stub", input=["the cat", "dog"], encoding_format="float")
        return packed, plain

    packed, plain = sdk(work, app_of())
    assert [one.index for one in packed.data] == [0, 1]
    assert packed.model == "stub"
    assert packed.usage.total_tokens == 7
    for left, right in zip(packed.data, plain.data, strict=True):
        assert np.array(left.embedding, np.float32).tobytes() == np.array(right.embedding, np.float32).tobytes()


def test_sdk_dimensions_and_token_arrays() -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        short = await client.embeddings.create(model="stub", input="cat", dimensions=4)
        ids = [stub.CLS, 1000, 1027, stub.SEP]
        return short, await client.embeddings.create(model="stub", input=[ids])

    short, from_ids = sdk(work, app_of())
    assert len(short.data[0].embedding) == 4
    assert from_ids.usage.prompt_tokens == 4


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"input": [], "model": "stub"}, openai.BadRequestError, "input"),
        ({"input": "a", "model": "nope"}, openai.NotFoundError, "org/stub-embed"),
        ({"input": "a", "model": "stub", "dimensions": 9}, openai.BadRequestError, "8"),
    ],
)
def test_sdk_raises_its_own_exceptions_with_our_message(
    given: dict[str, Any], kind: type[openai.APIStatusError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        sdk(lambda client: client.embeddings.create(**given), app_of())
    assert words in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (errors.Unauthenticated("no"), openai.AuthenticationError),
        (errors.Forbidden("no"), openai.PermissionDeniedError),
        (errors.Overloaded("no"), openai.RateLimitError),
        (errors.NotReady("no"), openai.InternalServerError),
        (errors.BackendFailed("no"), openai.InternalServerError),
    ],
)
def test_sdk_knows_our_statuses(raised: errors.VecgateError, kind: type[openai.APIStatusError]) -> None:
    with pytest.raises(kind, match="no"):
        sdk(lambda client: client.embeddings.create(input="a", model="stub"), app_of(stub.StubEngine(fail=raised)))


def test_sdk_lists_and_retrieves() -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        return [model.id async for model in client.models.list()], await client.models.retrieve("org/stub-embed")

    names, model = sdk(work, app_of())
    assert names == ["org/stub-embed"]
    assert model.id == "org/stub-embed"
