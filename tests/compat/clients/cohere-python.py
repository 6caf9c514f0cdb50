"""cohere-python against a server: its client for v1 of the API, and the one for v2."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import cohere
import driving
from driving import (
    DIMENSIONS,
    DOCUMENTS,
    FAILING,
    LONG,
    QUERY,
    RERANKER,
    TEXTS,
    TOP_N,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)

MODEL = "embed-english-v3.0"
DOCUMENT, ASKED = "search_document", "search_query"

Embed = Callable[..., Any]
"""`embed(texts, model=, key=, input_type=, ...)`: the SDK's own answer."""


def rows(answer: Any) -> list[list[float]]:
    """Of v2, or of v1 with embedding_types, the ones by type; of v1 without, a bare list."""
    found = answer.embeddings
    return found if isinstance(found, list) else found.float_


def result(answer: Any) -> Result:
    return driving.vectors(rows(answer), int(answer.meta.billed_units.input_tokens))


def packed(answer: Any) -> Result:
    unpacked = [base64.b64decode(one) for one in answer.embeddings.base64]
    return driving.vectors([struct.unpack(f"<{len(one) // 4}f", one) for one in unpacked])


def roles(embed: Embed) -> Result:
    return driving.vectors([*rows(embed([QUERY], input_type=ASKED)), *rows(embed(DOCUMENTS, input_type=DOCUMENT))])


def ranked(answer: Any) -> Result:
    return driving.ranking((one.index, one.relevance_score) for one in answer.results)


def cases(embed: Embed, rerank: Callable[[], Any], dimensions: Call | str) -> dict[str, Call | str]:
    return {
        "embedding": lambda: result(embed(TEXTS[:1])),
        "batch": lambda: result(embed(TEXTS)),
        "base64": lambda: packed(embed(TEXTS, embedding_types=["base64"])),
        "dimensions": dimensions,
        "token-ids": "the SDK takes texts and images only",
        "roles": lambda: roles(embed),
        "rerank": lambda: ranked(rerank()),
        "errors": lambda: result(embed(TEXTS[:1], model=UNKNOWN)),
        "retries": lambda: result(embed(TEXTS[:1], model=FAILING)),
        "wrong-key": lambda: result(embed(TEXTS[:1], key=WRONG_KEY)),
        "long-input": lambda: result(embed([LONG])),
    }


if __name__ == "__main__":
    base, control, right_key = driving.arguments()
    asked = {"query": QUERY, "documents": DOCUMENTS, "top_n": TOP_N, "model": RERANKER}

    def v1(texts: list[str], model: str = MODEL, key: str = right_key, **more: Any) -> Any:
        with cohere.Client(key, base_url=base) as client:
            return client.embed(texts=texts, model=model, **more)

    def v2(texts: list[str], model: str = MODEL, key: str = right_key, input_type: str = DOCUMENT, **more: Any) -> Any:
        types = {"embedding_types": ["float"], **more}
        with cohere.ClientV2(key, base_url=base) as client:
            return client.embed(texts=texts, model=model, input_type=input_type, **types)

    driving.drive(
        control,
        "cohere-python-v1",
        version("cohere"),
        cases(v1, lambda: cohere.Client(right_key, base_url=base).rerank(**asked), "embed of v1 has no such argument"),
    )
    driving.drive(
        control,
        "cohere-python-v2",
        version("cohere"),
        cases(
            v2,
            lambda: cohere.ClientV2(right_key, base_url=base).rerank(**asked),
            lambda: result(v2(TEXTS, output_dimension=DIMENSIONS)),
        ),
    )
