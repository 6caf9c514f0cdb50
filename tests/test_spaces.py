"""The vector space on the wire: told everywhere, expected on every route, in every dialect; and errors in the client's words."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.whole import LIMIT_S, Whole
from vecgate.access import EXPOSED
from vecgate.engine.space import RECIPE
from vecgate.protocols.openai_bodies import Model

PAIR = {"query": "a cat", "documents": ["a cat", "dogs"]}
EMBEDS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "a cat"},
    "/openai/deployments/small/embeddings": {"input": "a cat"},
    "/v1/embed": {"texts": ["a cat"]},
    "/v2/embed": {"texts": ["a cat"]},
    "/api/v1/embed": {"texts": ["a cat"]},
    "/embed": {"inputs": "a cat"},
    "/": {"inputs": "a cat"},
    "/similarity": {"inputs": {"source_sentence": "a cat", "sentences": ["dogs"]}},
    "/api/embed": {"input": "a cat"},
    "/api/embeddings": {"prompt": "a cat"},
}
RANKS: dict[str, dict[str, Any]] = {
    "/v1/rerank": PAIR,
    "/v2/rerank": PAIR,
    "/rerank": {"query": "a cat", "texts": ["a cat", "dogs"]},
    "/api/v1/rerank": {"query": "a cat", "passages": ["a cat", "dogs"]},
    "/api/v1/rerank/batch": {"queries": [{"query": "a cat", "passages": ["dogs"]}]},
    "/v1/score": {"text_1": "a cat", "text_2": ["dogs"]},
}
ROUTES = EMBEDS | RANKS


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    cwd = tmp_path_factory.mktemp("spaces")
    judge = str(small.folder(cwd / "judge", "rerank"))
    with Whole(cwd, CROSS_ENCODER_MODEL=judge, VECGATE_TRUNCATE="refuse") as started:
        until = time.monotonic() + LIMIT_S
        while None in spaces(started).values() and time.monotonic() < until:
            time.sleep(0.002)
        yield started


def spaces(app: Whole) -> dict[str, str | None]:
    return {one["id"]: one["space"] for one in app.get("/v1/models").json()["data"]}


def test_every_name_tells_its_models_space(app: Whole) -> None:
    told = spaces(app)
    assert None not in told.values()
    assert told["small"] != told["judge"]
    assert told["small:query"] == told["small:document"] == told["small"]
    health = app.get("/health").json()["models"]
    assert {model["name"]: model["space"] for model in health} == {name: told[name] for name in ("small", "judge")}
    assert app.get("/info").json()["space"] == app.get("/v1/models/small").json()["space"] == told["small"]


def test_a_reranker_has_no_dimensions(app: Whole) -> None:
    assert app.get("/v1/models/judge").json()["dimensions"] is None
    assert [model["dimensions"] for model in app.get("/health").json()["models"]] == [8, None]


@pytest.mark.parametrize("path", ROUTES)
def test_an_answer_tells_its_space_and_who_expects_it_is_served(app: Whole, path: str) -> None:
    known = spaces(app)["small" if path in EMBEDS else "judge"]
    body = ROUTES[path]
    for answer in (
        app.post(path, body),
        app.post(path, body, **{"x-vecgate-space": str(known)}),
        app.post(path, {**body, "space": known}, **{"x-vecgate-space": str(known)}),
        app.post(path, {**body, "space": None}),
    ):
        assert (answer.status_code, answer.headers["x-vecgate-space"]) == (200, known), answer.text
        assert answer.headers.get("x-vecgate-dimensions") == ("8" if path in EMBEDS else None)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("by", ["header", "field"])
def test_who_expects_another_space_is_refused_with_both(app: Whole, path: str, by: str) -> None:
    name = "small" if path in EMBEDS else "judge"
    headers, fields = ({"x-vecgate-space": "vs1-old"}, {}) if by == "header" else ({}, {"space": "vs1-old"})
    answer = app.post(path, {**ROUTES[path], **fields}, **headers)
    assert answer.status_code == 400
    for said in ("vector_space_mismatch", "vs1-old", name, str(spaces(app)[name])):
        assert said in answer.text
    assert "x-vecgate-space" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v1/embed", "/api/v1/rerank"])
def test_where_a_dialect_has_codes_it_is_one(app: Whole, path: str) -> None:
    error = app.post(path, {**ROUTES[path], "space": ""}).json()["error"]
    assert (error["code"], error["param"]) == ("vector_space_mismatch", "space")


def test_a_header_and_a_field_that_differ_are_refused(app: Whole) -> None:
    body = {"input": "a cat", "space": spaces(app)["small"]}
    error = app.post("/v1/embeddings", body, **{"x-vecgate-space": "other"})
    assert (error.status_code, error.json()["error"]["param"]) == (400, "space")
    assert "'other'" in error.text


def test_each_query_of_a_batch_may_expect_its_own(app: Whole) -> None:
    told = spaces(app)
    query = {"query": "a cat", "passages": ["dogs"]}
    both = [{**query, "space": told["judge"]}, {**query, "method": "similarity", "space": told["small"]}]
    assert app.post("/api/v1/rerank/batch", {"queries": both}).status_code == 200
    answer = app.post("/api/v1/rerank/batch", {"queries": [query, both[0], {**both[1], "space": told["judge"]}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "queries[2].space")


def test_a_shortlist_is_of_the_rerankers_space(app: Whole) -> None:
    body = {"query": "a cat", "passages": ["dogs", "a cat"], "top_k": 1, "use_cross_encoder": True}
    answer = app.post("/api/v1/rerank", body, **{"x-vecgate-space": str(spaces(app)["judge"])})
    assert (answer.status_code, answer.json()["method"]) == (200, "bi+cross-encoder")


def test_the_guide_names_what_there_is(root: Path) -> None:
    text = (root / "docs" / "spaces.md").read_text("utf-8")
    script = text.partition("```python\n")[2].partition("```")[0]
    compile(script, "docs/spaces.md", "exec", dont_inherit=True)
    assert {"space", "dimensions"} <= {*re.findall(r"model\.(\w+)", script)} <= {*Model.__struct_fields__}
    assert 'extra_headers={"x-vecgate-space": space}' in script
    assert f"begins with `{RECIPE}`" in text
    assert {*re.findall(r"`(x-vecgate-\w+)`", text)} <= {*EXPOSED.decode().split(", ")}


LONG = "dogs " * 40
TOO_LONG: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/embeddings": ({"input": LONG}, "input"),
    "/api/v1/embed": ({"texts": [LONG]}, "texts"),
    "/api/v1/rerank": ({"query": "a", "passages": [LONG]}, "passages"),
    "/rerank": ({"query": "a", "passages": [LONG], "method": "similarity"}, "passages"),
    "/api/v1/rerank/batch": ({"queries": [{"query": "a", "passages": [LONG]}]}, "queries[0].passages"),
    "/score": ({"queries": "a", "items": [LONG]}, "items"),
    "/v1/score": ({"text_1": LONG, "text_2": "a", "model": "small"}, "text_1"),
}


@pytest.mark.parametrize("path", TOO_LONG)
def test_an_error_names_the_field_that_the_client_sent(app: Whole, path: str) -> None:
    body, param = TOO_LONG[path]
    answer = app.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_limit_without_room_is_named_as_it_was_sent(app: Whole) -> None:
    body = {"text_1": "a", "text_2": "a", "truncate_prompt_tokens": 1}
    assert app.post("/score", body).json()["error"]["param"] == "truncate_prompt_tokens"
