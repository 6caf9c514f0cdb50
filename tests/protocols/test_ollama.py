"""Ollama's routes in-process over the stub engine: every field, every refusal, and what Ollama's own client makes of them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import numpy as np
import ollama
import pytest

from tests.protocols import stub
from vecgate import __version__, errors
from vecgate.core import VirtualName
from vecgate.protocols import Site
from vecgate.protocols import ollama as protocol

T = TypeVar("T")
OLLAMA = ["vecgate.protocols.ollama"]
VIRTUAL = (VirtualName("org/stub-embed:query", "query"), VirtualName("stub", "query", 4))


def app_of(engine: stub.StubEngine | None = None, **site: Any) -> Any:
    return stub.app_of(engine or stub.StubEngine(), Site(**site), OLLAMA)


def send(app: Any, method: str, path: str, **given: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with stub.client_of(app) as client:
            return await client.request(method, path, **given)

    return asyncio.run(go())


def post(path: str, body: Any, engine: stub.StubEngine | None = None, **site: Any) -> Any:
    answer = send(app_of(engine, **site), "POST", path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(path: str, body: Any, engine: stub.StubEngine | None = None, status: int = 400, **site: Any) -> str:
    answer = send(app_of(engine, **site), "POST", path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


def get(path: str, engine: stub.StubEngine | None = None) -> Any:
    answer = send(app_of(engine), "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def of_client(ask: Callable[[ollama.AsyncClient], Awaitable[T]], engine: stub.StubEngine | None = None) -> T:
    """What Ollama's client makes of the answer."""

    async def go() -> T:
        client = ollama.AsyncClient("http://test", transport=httpx.ASGITransport(app=app_of(engine)))
        try:
            return await ask(client)
        finally:
            await client._client.aclose()

    return asyncio.run(go())


# embed


def test_embed_answers_unit_rows_in_order_with_times_in_nanoseconds() -> None:
    answer = post(
        "/api/embed", {"model": "stub:latest", "input": ["the cat", "dog"], "keep_alive": "5m", "options": {}}
    )
    assert list(answer) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert answer["model"] == "stub:latest"
    assert answer["prompt_eval_count"] == 4 + 3
    assert answer["load_duration"] == 3_000_000  # the stub's 2 ms of tokenising and 1 ms of waiting
    assert type(answer["total_duration"]) is int
    rows = np.array(answer["embeddings"])
    expected = np.stack(
        [stub.row_of([stub.CLS, *(p[0] for p in stub.pieces_of(t)), stub.SEP]) for t in ("the cat", "dog")]
    )
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)


def test_one_text_is_a_list_of_one_row_and_the_default_model_has_its_true_name() -> None:
    answer = post("/api/embed", {"input": "the cat"})
    assert (answer["model"], len(answer["embeddings"])) == ("org/stub-embed", 1)


@pytest.mark.parametrize("given", [{"input": ""}, {"input": []}, {"input": None}, {}])
def test_nothing_to_embed_is_no_rows_as_ollama_says_it(given: dict[str, Any]) -> None:
    assert post("/api/embed", {"model": "stub", **given}) == {"model": "stub", "embeddings": []}


def test_an_empty_text_in_a_list_has_a_row() -> None:
    assert len(post("/api/embed", {"input": ["", "dog"]})["embeddings"]) == 2


def test_dimensions_are_kept_and_renormalised() -> None:
    (row,) = post("/api/embed", {"input": "the cat", "dimensions": 4})["embeddings"]
    assert np.linalg.norm(row) == pytest.approx(1.0, abs=1e-6)
    assert len(row) == 4


@pytest.mark.parametrize(
    ("truncate", "cut", "applied"), [(None, "end", "end"), (True, "refuse", "end"), (False, "end", "refuse")]
)
def test_truncate_says_what_a_long_text_loses(truncate: bool | None, cut: Any, applied: str) -> None:
    engine = stub.StubEngine()
    post("/api/embed", {"input": "the cat", "truncate": truncate}, engine, cut=cut)
    assert engine.calls[0]["cut"] == applied


def test_a_text_over_the_limit_is_cut_or_refused() -> None:
    long = "the " * 40
    assert post("/api/embed", {"input": long})["prompt_eval_count"] == stub.MAX_TOKENS
    assert "42 tokens; the limit is 32" in refused("/api/embed", {"input": long, "truncate": False})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input": 5}, "'input'"),
        ({"input": ["a", 5]}, "'input[1]'"),
        ({"input": "a", "dimensions": -1}, "dimensions is -1"),
        ({"input": "a", "dimensions": 9}, "dimensions is 9; 'org/stub-embed' allows 1 to 8"),
        ({"input": "a", "truncate": "yes"}, "'truncate'"),
        ({"input": ["a"] * 4}, "input holds 4 items; the limit is 3"),
    ],
)
def test_bad_input_is_400(given: dict[str, Any], told: str) -> None:
    assert told in refused("/api/embed", given, max_inputs=3)


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings", "/api/show"])
def test_an_unknown_model_is_404_in_words_that_clients_look_for(path: str) -> None:
    told = refused(path, {"model": "nobody", "input": "", "prompt": ""}, status=404)
    assert told.startswith("model 'nobody' not found.")
    assert "org/stub-embed" in told


# embeddings


def test_the_older_form_gives_the_row_as_the_model_makes_it() -> None:
    (row,) = [post("/api/embeddings", {"model": "stub", "prompt": "the cat"})["embedding"]]
    expected = stub.row_of([stub.CLS, *(piece[0] for piece in stub.pieces_of("the cat")), stub.SEP])
    np.testing.assert_allclose(row, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", [{"prompt": ""}, {"prompt": None}, {"input": "not its name for it"}])
def test_an_empty_prompt_is_an_empty_row(given: dict[str, Any]) -> None:
    assert post("/api/embeddings", {"model": "stub", **given}) == {"embedding": []}


# what there is


def test_every_name_is_listed_with_a_tag() -> None:
    models = get("/api/tags", stub.StubEngine(virtual=VIRTUAL))["models"]
    assert [one["name"] for one in models] == [
        "org/stub-embed:latest",
        "stub-embed:latest",
        "stub:latest",
        "text-embedding-3-small:latest",
        "org/stub-embed:query",
    ]
    assert len({one["digest"] for one in models}) == 1
    assert models[0] == {
        "name": "org/stub-embed:latest",
        "model": "org/stub-embed:latest",
        "modified_at": "2023-11-14T22:13:20Z",
        "size": 1_000,
        "digest": models[0]["digest"],
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": "stub",
            "families": ["stub"],
            "parameter_size": "",
            "quantization_level": "F32",
        },
    }


def test_a_name_with_a_tag_of_its_own_gets_no_other() -> None:
    models = get("/api/tags", stub.StubEngine(aliases=("nomic:v1.5",)))["models"]
    assert [one["name"] for one in models] == ["org/stub-embed:latest", "nomic:v1.5"]


@pytest.mark.parametrize("body", [{"model": "stub:latest"}, {"name": "stub"}, {"model": "", "name": "stub"}, {}])
def test_show_tells_of_a_model_by_any_of_its_names(body: dict[str, str]) -> None:
    told = post("/api/show", {**body, "verbose": True})
    assert told["capabilities"] == ["embedding"]
    assert told["model_info"] == {
        "general.architecture": "stub",
        "general.basename": "org/stub-embed",
        "stub.context_length": 32,
        "stub.embedding_length": 8,
        "stub.pooling": ["mean"],
    }


def test_what_is_loaded_and_the_version() -> None:
    (one,) = get("/api/ps")["models"]
    assert (one["name"], one["context_length"], one["expires_at"]) == ("org/stub-embed:latest", 32, protocol.NEVER)
    assert get("/api/version") == {"version": __version__}


# errors


@pytest.mark.parametrize(
    ("raised", "status", "headers"),
    [
        (errors.InputTooLong("no"), 400, {}),
        (errors.WrongTask("no"), 400, {}),
        (errors.Unauthenticated("no"), 401, {"www-authenticate": "Bearer"}),
        (errors.ModelNotFound("no"), 404, {}),
        (errors.Overloaded("no", 7), 429, {"retry-after": "7"}),
        (errors.OutOfMemory("no"), 500, {}),
        (errors.NotReady("no"), 503, {"retry-after": "5"}),
        (errors.NotReady("no", None), 503, {"x-should-retry": "false"}),
        (errors.DeadlineExceeded("no"), 504, {"x-should-retry": "false"}),
    ],
)
def test_an_error_has_ollamas_shape(raised: errors.VecgateError, status: int, headers: dict[str, str]) -> None:
    answer = send(app_of(stub.StubEngine(fail=raised)), "POST", "/api/embed", json={"input": "a"})
    assert (answer.status_code, answer.json()) == (status, {"error": "no"})
    assert {name: answer.headers[name] for name in headers} == headers


def test_every_error_has_a_status_and_none_is_409() -> None:
    assert 409 not in protocol.ERRORS.values()
    assert protocol.render(errors.VecgateError("no"))[0] == 500


# Ollama's client


def test_the_client_embeds() -> None:
    engine = stub.StubEngine()
    many = of_client(lambda client: client.embed("stub", ["the cat", "dog"], truncate=True, dimensions=4), engine)
    assert (len(many.embeddings), len(many.embeddings[0]), many.prompt_eval_count) == (2, 4, 7)
    assert (engine.calls[0]["cut"], engine.calls[0]["dimensions"]) == ("end", 4)
    assert list(of_client(lambda client: client.embed("stub", "")).embeddings) == []
    assert len(of_client(lambda client: client.embeddings("stub", "dog")).embedding) == stub.DIMENSIONS


def test_the_client_lists_and_shows() -> None:
    (first, *_) = of_client(lambda client: client.list()).models
    assert first.model == "org/stub-embed:latest"
    assert first.modified_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    shown = of_client(lambda client: client.show("stub"))
    assert shown.capabilities == ["embedding"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["stub.context_length"] == 32
    (loaded,) = of_client(lambda client: client.ps()).models
    assert loaded.expires_at is not None
    assert loaded.expires_at > datetime.now(UTC)


@pytest.mark.parametrize(
    ("ask", "status", "told"),
    [
        (lambda client: client.embed("nobody", "a"), 404, "model 'nobody' not found"),
        (lambda client: client.embed("stub", "the " * 40, truncate=False), 400, "limit is 32"),
        (lambda client: client.embed("stub", "a", dimensions=9), 400, "dimensions is 9"),
    ],
)
def test_the_client_raises_what_was_wrong(ask: Any, status: int, told: str) -> None:
    with pytest.raises(ollama.ResponseError, match=told) as caught:
        of_client(ask)
    assert caught.value.status_code == status
