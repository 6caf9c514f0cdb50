"""What an answer's headers say was done, on every protocol of the whole app, and the counter behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.whole import Whole
from vecgate.backends import fake
from vecgate.core import Applied
from vecgate.errors import BackendFailed
from vecgate.protocols import TRUNCATED_SHOWN, headers_of

LONG = "dogs " * 40
EMBEDS: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["a cat", LONG]},
    "/openai/deployments/small/embeddings": {"input": ["a cat", LONG]},
    "/v1/embed": {"texts": ["a cat", LONG]},
    "/v2/embed": {"texts": ["a cat", LONG]},
    "/api/v1/embed": {"texts": ["a cat", LONG]},
    "/embed": {"texts": ["a cat", LONG]},
    "/api/embed": {"input": ["a cat", LONG]},
}
RANKS: dict[str, dict[str, Any]] = {
    "/v1/rerank": {"documents": ["a cat", LONG], "model": "small"},
    "/v2/rerank": {"documents": ["a cat", LONG], "model": "small"},
    "/api/v1/rerank": {"passages": ["a cat", LONG], "method": "similarity"},
    "/rerank": {"passages": ["a cat", LONG], "method": "similarity"},
}
TIMES = r"queue;dur=[0-9.]+, tokenise;dur=[0-9.]+, forward;dur=[0-9.]+, encode;dur=[0-9.]+"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    cwd = tmp_path_factory.mktemp("headers")
    with Whole(cwd, CROSS_ENCODER_MODEL=str(small.folder(cwd / "judge", "rerank"))) as started:
        yield started


def counted(app: Whole, model: str = "small") -> float:
    found = re.search(rf'vecgate_truncated_inputs_total{{model="{model}"}} ([0-9.]+)', app.get("/metrics").text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("path", EMBEDS)
def test_an_embed_answer_says_what_was_done_and_what_was_cut(app: Whole, path: str) -> None:
    before = counted(app)
    answer = app.post(path, EMBEDS[path], **{"x-request-id": "mine-1"})
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-request-id"], answer.headers["x-vecgate-model"]) == ("mine-1", "small")
    assert re.fullmatch(TIMES, answer.headers["server-timing"])
    assert answer.headers["x-vecgate-truncated"] == "1:42>12"
    assert counted(app) == before + 1


@pytest.mark.parametrize("path", RANKS)
def test_a_rerank_answer_names_a_query_that_was_cut(app: Whole, path: str) -> None:
    before = counted(app)
    answer = app.post(path, {**RANKS[path], "query": LONG})
    assert answer.status_code == 200, answer.text
    assert re.fullmatch(TIMES, answer.headers["server-timing"])
    assert answer.headers["x-vecgate-truncated"] == "query:43>12, 1:43>12"
    assert counted(app) == before + 2
    short = app.post(path, {**RANKS[path], "query": "what ?"})
    assert short.headers["x-vecgate-truncated"] == "1:43>12"


def test_a_batch_names_every_query_that_was_cut(app: Whole) -> None:
    queries = [{"query": query, "passages": ["a cat", LONG]} for query in (LONG, "what ?", LONG)]
    answer = app.post("/api/v1/rerank/batch", {"queries": queries, "method": "similarity"})
    assert answer.headers["x-vecgate-truncated"] == "query:43>12, query:43>12, 1:43>12, 3:43>12, 5:43>12"


def test_a_pair_that_was_cut_is_its_documents(app: Whole) -> None:
    before = counted(app, "judge")
    answer = app.post("/v2/rerank", {"query": "what ?", "documents": ["a cat", LONG]})
    assert re.fullmatch(r"1:\d+>12", answer.headers["x-vecgate-truncated"])
    assert counted(app, "judge") == before + 1


def test_the_list_of_cuts_is_bounded(app: Whole) -> None:
    answer = app.post("/v1/embeddings", {"input": [LONG] * (TRUNCATED_SHOWN + 5)})
    told = answer.headers["x-vecgate-truncated"].split(", ")
    assert told == [*(f"{i}:42>12" for i in range(TRUNCATED_SHOWN)), "+5 more"]


def test_names_in_headers_are_ascii() -> None:
    applied = Applied("modèle", "rôle", (3,), (3,), 0.001, 0.002, 0.003, space="s1")
    assert headers_of(applied, 0.004) == {
        "x-vecgate-model": "mod\\xe8le",
        "x-vecgate-role": "r\\xf4le",
        "x-vecgate-space": "s1",
        "server-timing": "queue;dur=1.00, tokenise;dur=2.00, forward;dur=3.00, encode;dur=4.00",
    }


# what comes back, and what does not


@pytest.mark.parametrize("path", [*EMBEDS, *RANKS])
def test_a_model_that_failed_is_not_worth_another_try(tmp_path: Path, path: str) -> None:
    script = fake.Script()
    script.once.append(BackendFailed("no"))
    with Whole(tmp_path, script) as app:
        answer = app.post(path, {"query": "a", **EMBEDS.get(path, {}), **RANKS.get(path, {})})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert "retry-after" not in answer.headers
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", [*EMBEDS, *RANKS])
def test_a_server_without_room_says_when_to_come_back(tmp_path: Path, path: str) -> None:
    with Whole(tmp_path) as app:
        app.app.max_in_flight = 0
        answer = app.post(path, {"query": "a", **EMBEDS.get(path, {}), **RANKS.get(path, {})})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "x-should-retry" not in answer.headers
