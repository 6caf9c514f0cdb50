"""How a rerank is scored, through the whole app over the fake backend: every rule for every set of loaded models."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import small
from vecgate.app import create_app
from vecgate.backends import fake
from vecgate.core import Task
from vecgate.settings import Settings

QUERY = "what is the capital of france ?"
PASSAGES = ["dogs bark", "paris is the capital of france", "berlin is the capital of germany"]
MANY = [" ".join((*small.WORDS[at % 14 :], *small.WORDS)[: 1 + at // 14]) for at in range(50)]
EMBEDDER: tuple[Task, ...] = ("embed",)
RERANKER: tuple[Task, ...] = ("rerank",)
BOTH = EMBEDDER + RERANKER
ROUTES = ["/api/v1/rerank", "/rerank"]


class Site:
    """`with Site(folder, tasks) as site`: an app that serves these models; `rows` says how many each has computed."""

    def __init__(self, folder: Path, tasks: tuple[Task, ...]) -> None:
        self.scripts = {task: fake.Script() for task in tasks}
        models = [small.model(small.checkpoint(folder / task, task), script) for task, script in self.scripts.items()]
        self.served = small.Served(*models)

    def __enter__(self) -> Site:
        self.runner = asyncio.Runner()
        engine = self.served.__enter__()
        self.runner.run(engine.settled())
        for script in self.scripts.values():
            script.rows = 0  # without those of the warm-up
            script.batches.clear()
        transport = httpx.ASGITransport(app=create_app(Settings(), engine))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000")
        return self

    def __exit__(self, *raised: object) -> None:
        self.runner.run(self.client.aclose())
        self.served.__exit__()
        self.runner.close()

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.runner.run(self.client.post(path, json=body))

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    @property
    def rows(self) -> dict[Task, int]:
        return {task: script.rows for task, script in self.scripts.items()}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("tasks", "fields", "method"),
    [
        (EMBEDDER, {}, "similarity"),
        (EMBEDDER, {"use_cross_encoder": False}, "similarity"),
        (EMBEDDER, {"method": "similarity", "use_cross_encoder": True}, "similarity"),
        (EMBEDDER, {"method": "auto", "use_cross_encoder": True}, "similarity"),
        (EMBEDDER, {"model": "small"}, "similarity"),
        (EMBEDDER, {"top_k": 1}, "similarity"),
        (BOTH, {}, "cross-encoder"),
        (BOTH, {"top_k": 1}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": False}, "similarity"),
        (BOTH, {"use_cross_encoder": True}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": True, "top_k": 2}, "bi+cross-encoder"),
        (BOTH, {"use_cross_encoder": True, "top_k": 3}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": True, "top_k": 9}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": True, "top_k": 2, "method": "cross-encoder"}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": True, "top_k": 2, "method": "similarity"}, "similarity"),
        (BOTH, {"use_cross_encoder": False, "method": "cross-encoder"}, "cross-encoder"),
        (BOTH, {"use_cross_encoder": False, "method": "bi+cross-encoder", "top_k": 2}, "bi+cross-encoder"),
        (BOTH, {"method": "bi+cross-encoder"}, "cross-encoder"),
        (BOTH, {"method": "bi+cross-encoder", "top_k": 3}, "cross-encoder"),
        (BOTH, {"model": "small"}, "similarity"),
        (BOTH, {"model": "judge"}, "cross-encoder"),
        (BOTH, {"model": "judge", "use_cross_encoder": True, "top_k": 1}, "bi+cross-encoder"),
        (RERANKER, {}, "cross-encoder"),
        (RERANKER, {"model": "judge"}, "cross-encoder"),
        (RERANKER, {"use_cross_encoder": True, "top_k": 1}, "cross-encoder"),
        (RERANKER, {"method": "bi+cross-encoder", "top_k": 1}, "cross-encoder"),
    ],
)
def test_which_method_answers(
    tmp_path: Path, path: str, tasks: tuple[Task, ...], fields: dict[str, Any], method: str
) -> None:
    with Site(tmp_path, tasks) as site:
        response = site.post(path, {"query": QUERY, "passages": PASSAGES} | fields)
    assert response.status_code == 200, response.text
    assert response.json()["method"] == method
    assert response.headers["x-vecgate-model"] == ("small" if method == "similarity" else "judge")
    assert len(response.json()["results"]) == min(fields.get("top_k", 3), 3)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("tasks", "fields", "missing"),
    [
        (EMBEDDER, {"use_cross_encoder": True}, "reranker"),
        (EMBEDDER, {"use_cross_encoder": True, "top_k": 1}, "reranker"),
        (EMBEDDER, {"method": "cross-encoder"}, "reranker"),
        (EMBEDDER, {"method": "bi+cross-encoder", "use_cross_encoder": False}, "reranker"),
        (EMBEDDER, {"model": "small", "use_cross_encoder": True}, "reranker"),
        (RERANKER, {"use_cross_encoder": False}, "embedding model"),
        (RERANKER, {"method": "similarity"}, "embedding model"),
    ],
)
def test_a_method_without_its_model_is_a_400_and_computes_nothing(
    tmp_path: Path, path: str, tasks: tuple[Task, ...], fields: dict[str, Any], missing: str
) -> None:
    with Site(tmp_path, tasks) as site:
        response = site.post(path, {"query": QUERY, "passages": PASSAGES} | fields)
    assert response.status_code == 400
    assert f"needs a{'n' if missing[0] == 'e' else ''} {missing} and none is loaded" in response.json()["message"]
    assert set(site.rows.values()) == {0}


def test_similarity_gives_the_cosine_and_cohere_its_score(tmp_path: Path) -> None:
    with Site(tmp_path, EMBEDDER) as site:
        ranked = site.ask("/rerank", {"query": QUERY, "passages": MANY})["results"]
        scored = site.ask("/v2/rerank", {"model": "small", "query": QUERY, "documents": MANY})["results"]
        floats = {"model": "small", "embedding_types": ["float"]}
        query = site.ask("/v2/embed", floats | {"texts": [QUERY], "input_type": "search_query"})["embeddings"]["float"]
        texts = site.ask("/v2/embed", floats | {"texts": MANY, "input_type": "search_document"})["embeddings"]["float"]
    cosines = np.array(texts) @ np.array(query[0])
    assert np.ptp(cosines) > 0.5  # far enough apart for their order to mean something
    assert [one["score"] for one in ranked] == pytest.approx([cosines[one["index"]] for one in ranked], abs=1e-6)
    assert [one["index"] for one in scored] == [one["index"] for one in ranked]
    assert [one["relevance_score"] for one in scored] == pytest.approx([(1 + one["score"]) / 2 for one in ranked])


@pytest.mark.parametrize("tasks", [BOTH, RERANKER])
def test_a_reranker_gives_the_sigmoid_of_its_logit(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    with Site(tmp_path, tasks) as site:
        ranked = site.ask("/rerank", {"query": QUERY, "passages": PASSAGES})["results"]
        pairs = [row for batch in site.scripts["rerank"].batches for row in batch.rows]
    logits = sorted((float(fake.logit(row)[0]) for row in pairs), reverse=True)
    assert [one["score"] for one in ranked] == pytest.approx([1 / (1 + math.exp(-one)) for one in logits])
    assert [one["index"] for one in ranked] == [1, 2, 0]


@pytest.mark.parametrize(("top_k", "kept"), [(1, 32), (8, 32), (9, 36), (12, 48), (13, 50), (49, 50)])
def test_the_shortlist_is_four_times_top_k_and_at_least_32(tmp_path: Path, top_k: int, kept: int) -> None:
    body = {"query": QUERY, "passages": MANY, "top_k": top_k, "use_cross_encoder": True}
    with Site(tmp_path, BOTH) as site:
        answer = site.ask("/rerank", body)
        assert site.rows == {"embed": 1 + 50, "rerank": kept}
        similar = site.ask("/rerank", {**body, "method": "similarity", "top_k": kept})["results"]
        listed = [one["index"] for one in similar]
        short = {**body, "method": "cross-encoder", "passages": [MANY[at] for at in listed]}
        best = site.ask("/rerank", short)["results"]
    assert answer["method"] == "bi+cross-encoder"
    assert [(one["index"], one["score"]) for one in answer["results"]] == [
        (listed[one["index"]], one["score"]) for one in best
    ]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/v1/rerank", {"top_k": 1}),
        ("/api/v1/rerank", {"top_k": 50, "use_cross_encoder": True}),
        ("/api/v1/rerank", {"use_cross_encoder": True}),
        ("/rerank", {"top_k": 1, "method": "cross-encoder"}),
    ],
)
def test_without_being_asked_for_nothing_is_shortlisted(tmp_path: Path, path: str, fields: dict[str, Any]) -> None:
    with Site(tmp_path, BOTH) as site:
        assert site.ask(path, {"query": QUERY, "passages": MANY} | fields)["method"] == "cross-encoder"
        assert site.rows == {"embed": 0, "rerank": 50}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_other_protocols_never_shortlist(tmp_path: Path, path: str) -> None:
    with Site(tmp_path, BOTH) as site:
        answer = site.ask(path, {"model": "judge", "query": QUERY, "documents": MANY, "top_n": 1})
        assert len(answer["results"]) == 1
        assert site.rows == {"embed": 0, "rerank": 50}
