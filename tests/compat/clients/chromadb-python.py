"""Chroma's embedding functions against a server: those for OpenAI and for TEI, called as a collection calls them."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import driving
from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction
from driving import (
    DIMENSIONS,
    DOCUMENTS,
    FAILING,
    LONG,
    MODEL,
    QUERY,
    TEXTS,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)

OPENAI = "text-embedding-3-small"
"""The function sends `dimensions` for this name's like only."""
NO_IDS = "it takes texts only"
NO_RERANK = "Chroma has no rerank"

Cases = dict[str, Call | str]


def many(function: Any, texts: list[str] = TEXTS) -> Result:
    return driving.vectors(function(texts))


def both(query: Any, document: Any) -> Result:
    return driving.vectors([*query.embed_query([QUERY]), *document(DOCUMENTS)])


def openai(base: str, right_key: str) -> Cases:
    def function(model: str = MODEL, key: str = right_key, **more: Any) -> OpenAIEmbeddingFunction:
        return OpenAIEmbeddingFunction(api_base=f"{base}/v1", api_key=key, model_name=model, **more)

    return {
        "embedding": lambda: many(function(), TEXTS[:1]),
        "batch": lambda: many(function()),
        "base64": lambda: many(function()),  # the SDK beneath asks for it, and the function can't tell it otherwise
        "dimensions": lambda: many(function(OPENAI, dimensions=DIMENSIONS)),
        "token-ids": NO_IDS,
        "roles": lambda: both(function(f"{MODEL}:query"), function(f"{MODEL}:document")),
        "rerank": NO_RERANK,
        "errors": lambda: many(function(UNKNOWN), TEXTS[:1]),
        "retries": lambda: many(function(FAILING), TEXTS[:1]),
        "wrong-key": lambda: many(function(key=WRONG_KEY), TEXTS[:1]),
        "long-input": lambda: many(function(), [LONG]),
    }


def tei(base: str, right_key: str) -> Cases:
    def function(key: str = right_key) -> HuggingFaceEmbeddingServer:
        return HuggingFaceEmbeddingServer(url=f"{base}/embed", api_key=key)

    return {
        "embedding": lambda: many(function(), TEXTS[:1]),
        "batch": lambda: many(function()),
        "base64": "TEI's API knows lists of numbers only",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": "it sends no name of a prompt",
        "rerank": NO_RERANK,
        "errors": "it sends no name of a model",
        "retries": lambda: many(function(), TEXTS[:1]),
        "wrong-key": lambda: many(function(key=WRONG_KEY), TEXTS[:1]),
        "long-input": lambda: many(function(), [LONG]),
    }


if __name__ == "__main__":
    base, control, key = driving.arguments()
    warnings.simplefilter("ignore", DeprecationWarning)  # a key as an argument is not kept with a collection
    for name, cases in {"openai": openai, "tei": tei}.items():
        driving.drive(control, f"chromadb-{name}", version("chromadb"), cases(base, key))
