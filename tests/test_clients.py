"""LangChain and LlamaIndex against the live server with the real MiniLM, from an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live import Live, environment
from tests.test_compat_fixtures import tables

SCRIPT = Path(__file__).parent / "clients" / "langchain_and_llama_index.py"
CLIENTS = Path(sys.prefix, "clients", "bin", "python")
TEXTS = ["a cat", "The station is near the river.", "What is the capital of France?"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("server"), TIKTOKEN_CACHE_DIR=str(tables())) as started:
        yield started.ready()


@pytest.fixture(scope="module")
def found(server: Live, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every case of SCRIPT gave; its clients find OpenAI's token table where the server finds it."""
    done = subprocess.run(
        [str(CLIENTS), str(SCRIPT), server.url],
        input=json.dumps(TEXTS),
        env=environment(TIKTOKEN_CACHE_DIR=str(tables())),
        cwd=tmp_path_factory.mktemp("clients"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture(scope="module")
def expected(server: Live) -> np.ndarray:
    body = json.loads(server.post("/v1/embeddings", {"input": TEXTS})[2])
    return np.array([one["embedding"] for one in body["data"]])


@pytest.mark.parametrize(
    "case",
    [
        "langchain-openai, its default (token ids)",
        "langchain-openai, texts",
        "langchain-openai, a query",
        "langchain-ollama",
        "langchain-cohere",
        "llama-index, OpenAILike",
    ],
)
def test_every_client_gets_the_texts_rows(found: dict[str, Any], expected: np.ndarray, case: str) -> None:
    np.testing.assert_allclose(found[case], expected, rtol=0, atol=1e-6)


def test_langchain_reranks(found: dict[str, Any]) -> None:
    ranked = found["langchain-cohere, rerank"]
    assert ranked[0]["index"] == 1
    assert [one["relevance_score"] for one in ranked] == sorted(
        (one["relevance_score"] for one in ranked), reverse=True
    )
    assert all(0 <= one["relevance_score"] <= 1 for one in ranked)
    assert found["langchain-cohere, compress"] == ["Paris is the capital of France."]


def test_llama_index_reranks(found: dict[str, Any]) -> None:
    assert found["llama-index, rerank"][0] == "Paris is the capital of France."
    assert len(found["llama-index, rerank"]) == 2
