"""Real clients against the live server with the real MiniLM: LangChain and LlamaIndex from an environment of their own, and
the Python of the pages of docs/ and of its examples, which prints what it says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live import ROOT, Live, environment
from tests.test_compat_fixtures import tables

SCRIPT = Path(__file__).parent / "clients" / "langchain_and_llama_index.py"
PAGES_SCRIPT = SCRIPT.with_name("pages.py")
CLIENTS = Path(sys.prefix, "clients", "bin", "python")
OWN = [
    *(f"docs/clients/{name}.md" for name in ("azure", "cohere", "ollama", "openai", "tei")),
    "README.md",
    "docs/quickstart.md",
    "docs/examples/rag_openai.py",
]
"""Pages and examples whose clients are among the development tools."""
THEIRS = [
    "docs/clients/langchain.md",
    "docs/clients/llama-index.md",
    "docs/spaces.md",
    "docs/examples/rag_langchain.py",
    "docs/examples/rag_llama_index.py",
]
"""Those of SCRIPT's environment."""
TEXTS = ["a cat", "The station is near the river.", "What is the capital of France?"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("server"), TIKTOKEN_CACHE_DIR=str(tables())) as started:
        yield started.ready()


@pytest.fixture(scope="module")
def found(server: Live) -> dict[str, Any]:
    """What every case of SCRIPT gave; its clients find OpenAI's token table where the server finds it."""
    return ran([str(CLIENTS), str(SCRIPT), server.url, *THEIRS], json.dumps(TEXTS))


@pytest.fixture(scope="module")
def printed(server: Live, found: dict[str, Any]) -> dict[str, str]:
    """What the Python of every page and example printed."""
    return found | ran([sys.executable, str(PAGES_SCRIPT), server.url, *OWN])


def ran(arguments: list[str], given: str = "") -> dict[str, Any]:
    environ = environment(TIKTOKEN_CACHE_DIR=str(tables()))
    done = subprocess.run(arguments, input=given, env=environ, cwd=ROOT, capture_output=True, text=True)
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


@pytest.mark.parametrize("page", [one for one in OWN + THEIRS if one.endswith(".md")])
def test_a_page_s_python_prints_what_the_page_says(printed: dict[str, str], page: str) -> None:
    said = re.findall(r"^ *print\(.*\)  # (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert said
    assert printed[page].splitlines() == said


def test_every_example_is_run() -> None:
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "examples").glob("*.py")}
    assert examples == {one for one in OWN + THEIRS if one.endswith(".py")}


@pytest.mark.parametrize("example", [one for one in OWN + THEIRS if one.endswith(".py")])
def test_an_example_retrieves_reranks_and_ends_with_the_right_passage(printed: dict[str, str], example: str) -> None:
    retrieved, reranked = re.fullmatch(
        r"retrieved:\n((?:  .*\n){4})reranked:\n((?:  .*\n){2})answer: Refunds are paid to the card .*\n",
        printed[example],
    ).groups()  # type: ignore[union-attr]
    first, scores = retrieved.splitlines(), [float(line.split()[0]) for line in reranked.splitlines()]
    cosines = [float(line.split()[0]) for line in first]
    assert cosines == sorted(cosines, reverse=True)
    assert scores == pytest.approx([(1 + cosine) / 2 for cosine in cosines[:2]], abs=1e-3)


def test_the_examples_ask_the_same_of_the_same_passages() -> None:
    assert len({constants(ROOT / one) for one in OWN + THEIRS if one.endswith(".py")}) == 1


def constants(path: Path) -> str:
    """What stands in capitals in the script."""
    body = ast.parse(path.read_text("utf-8")).body
    assigned = (node for node in body if isinstance(node, ast.Assign))
    return "\n".join(ast.unparse(node) for node in assigned if ast.unparse(node.targets[0]).isupper())
