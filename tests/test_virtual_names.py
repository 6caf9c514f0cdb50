"""Names that say more than the model, on every protocol of the whole app: roles behind a colon, aliases of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import small
from tests.whole import Whole
from vecgate import config
from vecgate.app import build
from vecgate.errors import ConfigError

TEXT = "a cat"
ALIASES = """
[aliases]
text-embedding-3-small = "small, dimensions=4"
rerank-v3.5 = "judge"
mine = "text-embedding-3-small:query"
"""
Way = tuple[str, dict[str, Any], tuple[str | int, ...]]
WAYS: dict[str, Way] = {
    "openai": ("/v1/embeddings", {"input": TEXT}, ("data", 0, "embedding")),
    "cohere v1": ("/v1/embed", {"texts": [TEXT]}, ("embeddings", 0)),
    "cohere v2": ("/v2/embed", {"texts": [TEXT]}, ("embeddings", "float", 0)),
    "native": ("/api/v1/embed", {"texts": [TEXT]}, ("vectors", 0)),
    "native, short": ("/embed", {"texts": [TEXT]}, ("vectors", 0)),
    "ollama": ("/api/embed", {"input": TEXT}, ("embeddings", 0)),
}
"""Protocol -> path, body without a model, where the row is."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    cwd = tmp_path_factory.mktemp("names")
    (cwd / "vecgate.toml").write_text(ALIASES)
    with Whole(cwd, CROSS_ENCODER_MODEL=str(small.folder(cwd / "judge", "rerank"))) as started:
        yield started


def row(answer: httpx.Response, where: tuple[str | int, ...]) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    for step in where:
        found = found[step]
    return np.array(found)


def asked(app: Whole, way: Way, **more: Any) -> tuple[httpx.Response, np.ndarray]:
    path, body, where = way
    answer = app.post(path, {**body, **more})
    return answer, row(answer, where)


@pytest.fixture(scope="module")
def rows(app: Whole) -> dict[str | None, np.ndarray]:
    """The row of each role, by OpenAI's input_type."""
    return {role: asked(app, WAYS["openai"], input_type=role)[1] for role in (None, "query", "document")}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("model", "role"),
    [("small", None), ("small:query", "query"), ("SMALL:Document", "document"), ("small:latest", None)],
)
def test_a_name_carries_a_role_on_every_protocol(
    app: Whole, rows: dict[str | None, np.ndarray], way: Way, model: str, role: str | None
) -> None:
    answer, found = asked(app, way, model=model)
    np.testing.assert_allclose(found, rows[role], rtol=0, atol=1e-6)
    assert answer.headers["x-vecgate-model"] == "small"
    assert answer.headers.get("x-vecgate-role") == role


def test_the_roles_differ(rows: dict[str | None, np.ndarray]) -> None:
    assert min(np.abs(rows["query"] - rows["document"]).max(), np.abs(rows["query"] - rows[None]).max()) > 0.1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_alias_cuts_the_rows_on_every_protocol(app: Whole, rows: dict[str | None, np.ndarray], way: Way) -> None:
    for model, role in (("text-embedding-3-small", None), ("mine", "query"), ("mine:document", "document")):
        answer, found = asked(app, way, model=model)
        expected = rows[role][:4] / np.linalg.norm(rows[role][:4])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert answer.headers["x-vecgate-model"] == "small"


@pytest.mark.parametrize(
    ("way", "field"), [("openai", "dimensions"), ("cohere v2", "output_dimension"), ("ollama", "dimensions")]
)
def test_the_requests_own_width_and_role_win(
    app: Whole, rows: dict[str | None, np.ndarray], way: str, field: str
) -> None:
    for size in (2, 8):
        _, found = asked(app, WAYS[way], model="text-embedding-3-small", **{field: size})
        np.testing.assert_allclose(found, rows[None][:size] / np.linalg.norm(rows[None][:size]), rtol=0, atol=1e-6)
    answer, _ = asked(app, WAYS["openai"], model="mine", input_type="search_document")
    assert answer.headers["x-vecgate-role"] == "document"


@pytest.mark.parametrize(("way", "where"), [("openai", "model"), ("ollama", "model")])
def test_the_answer_echoes_the_name_that_was_asked(app: Whole, way: str, where: str) -> None:
    for model in ("text-embedding-3-small", "small:query", "SMALL", "small:latest"):
        assert asked(app, WAYS[way], model=model)[0].json()[where] == model


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_an_alias_of_the_reranker(app: Whole, path: str) -> None:
    answer = app.post(path, {"model": "rerank-v3.5", "query": "what ?", "documents": [TEXT, "dogs"]})
    assert (answer.status_code, answer.json()["model"]) == (200, "rerank-v3.5")
    assert answer.headers["x-vecgate-model"] == "judge"


def test_every_name_that_is_listed_is_served(app: Whole) -> None:
    listed = app.get("/v1/models").json()["data"]
    assert [(one["id"], one["root"], one["role"], one["dimensions"]) for one in listed] == [
        ("small", "small", None, 8),
        ("judge", "judge", None, None),
        ("small:query", "small", "query", 8),
        ("small:document", "small", "document", 8),
        ("small:passage", "small", "passage", 8),
        ("text-embedding-3-small", "small", None, 4),
        ("mine", "small", "query", 4),
        ("rerank-v3.5", "judge", None, None),
    ]
    for one in listed:
        assert app.get(f"/v1/models/{one['id']}").json() == one
    for one in (one for one in listed if one["task"] == "embed"):
        answer, found = asked(app, WAYS["openai"], model=one["id"])
        assert (answer.headers.get("x-vecgate-role"), len(found)) == (one["role"], one["dimensions"])
    for one in app.get("/api/tags").json()["models"]:
        assert len(asked(app, WAYS["ollama"], model=one["name"])[1]) in (4, 8)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("text-embedding-3-small:passage", ("text-embedding-3-small:passage", "passage", 4)),
        ("text-embedding-3-small:latest", ("text-embedding-3-small", None, 4)),
        ("mine:document", ("mine:document", "document", 4)),
        ("small:latest", ("small", None, 8)),
    ],
)
def test_a_name_that_is_not_listed_is_told_for_what_it_does(
    app: Whole, asked: str, told: tuple[str, str | None, int]
) -> None:
    one = app.get(f"/v1/models/{asked}").json()
    assert (one["id"], one["role"], one["dimensions"]) == told


def test_packed_bits_of_an_alias_need_whole_bytes(app: Whole) -> None:
    body = {"texts": [TEXT], "embedding_types": ["binary"], "model": "text-embedding-3-small"}
    answer = app.post("/v2/embed", body)
    assert answer.status_code == 400
    assert "4 dimensions are not a multiple of 8" in answer.json()["message"]


def test_an_unknown_role_is_a_404_that_names_the_roles(app: Whole) -> None:
    answer = app.post("/v1/embeddings", {"input": TEXT, "model": "small:poet"})
    assert answer.status_code == 404
    assert "query, document, passage" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("aliases", "told"),
    [
        ("x = nobody", "'x' stands for 'nobody', which is not served; served: small."),
        ("x = y; y = x", "aliases x, y stand for each other"),
        ("small = small", "'small' is a name of 'small' already"),
    ],
)
def test_a_wrong_alias_stops_the_start_with_one_sentence(tmp_path: Path, aliases: str, told: str) -> None:
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "VECGATE_ALIASES": aliases}
    with pytest.raises(ConfigError) as caught:
        build(config.load({}, names, tmp_path))
    assert told in str(caught.value)


def test_an_alias_wider_than_the_loaded_model_fails_it(tmp_path: Path) -> None:
    with Whole(tmp_path, VECGATE_ALIASES="x = small, dimensions=9") as app:
        health = app.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert health.json()["error"] == "The alias 'x' asks for 9 dimensions; 'small' allows 1 to 8."
        answer = app.post("/v1/embeddings", {"input": TEXT})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
