"""Well-formed requests over the routes and dialects, each with the check of its answer against the oracle."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson

from tests.soak.texts import HARMLESS, MAYBE, TROUBLES, Oracle, troubled
from tests.soak.wire import Answer, request

NEAR = 2e-6
"""float32 rows, normalised here in float64."""
TEI_FAILED = 424
"""TEI's status for a failure of its model."""
TROUBLE = 0.03
"""Of the calls, have a text that sets the backend off."""


@dataclass(frozen=True, slots=True)
class Call:
    """kind: for the table. data: the bytes. check: what is wrong with a 200's body (None: nothing). trouble: the word that
    one of its texts has."""

    kind: str
    data: bytes
    check: Callable[[Any], str | None]
    trouble: str | None = None

    def judge(self, answer: Answer) -> tuple[str, str]:
        """(outcome, why)."""
        if answer.status in (429, 503):
            wait = answer.headers.get("retry-after", "")
            return ("refused", "") if wait.isdigit() and 1 <= int(wait) <= 60 else ("wrong", f"Retry-After {wait!r}")
        fails = self.trouble is not None and self.trouble not in HARMLESS
        if fails and (500 <= answer.status < 600 or answer.status == TEI_FAILED) and orjson.loads(answer.body):
            return "scripted", ""
        if answer.status != 200:
            return "wrong", f"{answer.status} {answer.body[:300]!r}"
        if fails and self.trouble not in MAYBE:
            return "wrong", f"200 for a text with {self.trouble}"
        try:
            why = self.check(answer.body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            why = f"{type(error).__name__} {error} in {answer.body[:200]!r}"
        return ("wrong", why) if why else ("right", "")


class Calls:
    """`next()`: one of the mix, by its weight."""

    def __init__(self, oracle: Oracle, seed: int) -> None:
        self._oracle = oracle
        self._rng = random.Random(seed)
        self._mix: tuple[tuple[float, Callable[[], Call]], ...] = (
            (30, partial(self.openai, 1, "float")),
            (10, partial(self.openai, 1, "base64")),
            (6, partial(self.openai, 32, "float")),
            (4, partial(self.openai, 32, "base64")),
            (8, partial(self.plain, "tei query", "/embed", "inputs", 1, tei)),
            (3, partial(self.plain, "tei 32", "/embed", "inputs", 32, tei)),
            (6, partial(self.plain, "ollama query", "/api/embed", "input", 1, ollama)),
            (6, partial(self.plain, "native 8", "/api/v1/embed", "texts", 8, native)),
            (3, partial(self.cohere, "/v1/embed", "query")),
            (3, partial(self.cohere, "/v2/embed", "document")),
            (4, partial(self.rerank, "cohere rerank 1x50", "/v2/rerank", "documents", cohere_ranks)),
            (3, partial(self.rerank, "tei rerank 1x50", "/rerank", "texts", tei_ranks)),
            (3, partial(self.rerank, "native rerank 1x50", "/api/v1/rerank", "passages", native_ranks)),
            (4, self.similarity),
            (4, self.tokenize),
            (6, self.page),
            (0.4, partial(self.openai, 2048, "base64")),
            (0.2, partial(self.openai, 2048, "float")),
        )  # fmt: skip

    def next(self) -> Call:
        weights, makers = zip(*self._mix, strict=True)
        made: Call = self._rng.choices(makers, weights)[0]()
        return made

    def texts(self, count: int, troubles: Sequence[str] = TROUBLES) -> tuple[list[str], str | None]:
        """Of the pool, and the trouble that one of them may have been given; all are short where they are many."""
        texts = self._rng.choices(self._oracle.pool if count < 100 else self._oracle.short, k=count)
        if self._rng.random() > TROUBLE:
            return texts, None
        at, trouble = self._rng.randrange(count), self._rng.choice(troubles)
        texts[at] = troubled(texts[at], trouble)
        return texts, trouble

    def openai(self, count: int, form: str) -> Call:
        texts, trouble = self.texts(count)
        body = {"model": "m", "input": texts[0] if count == 1 else texts, "encoding_format": form}
        kind = "query" if count == 1 else str(count)
        return self._embed(f"openai {kind} {form}", "/v1/embeddings", body, texts, trouble, openai)

    def plain(self, kind: str, path: str, key: str, count: int, read: Callable[[Any], Any]) -> Call:
        texts, trouble = self.texts(count)
        return self._embed(kind, path, {key: texts}, texts, trouble, read)

    def cohere(self, path: str, role: str) -> Call:
        texts, trouble = self.texts(8)
        body = {"model": "m", "texts": texts, "input_type": f"search_{role}", "embedding_types": ["float"]}
        return self._embed(f"cohere {path[1:3]} 8", path, body, texts, trouble, cohere, role)

    def _embed(
        self,
        kind: str,
        path: str,
        body: dict[str, Any],
        texts: list[str],
        trouble: str | None,
        read: Callable[[Any], Any],
        role: str | None = None,
    ) -> Call:
        def check(data: bytes) -> str | None:
            got = np.asarray(read(orjson.loads(data)), np.float32)
            expected = self._oracle.rows(texts, role)
            if got.shape != expected.shape:
                return f"{got.shape} rows for {expected.shape}"
            off = np.abs(got - expected).max(axis=1)
            return f"row {int(off.argmax())} of {len(off)} is {off.max():.2g} off" if not off.max() < NEAR else None

        return Call(kind, request("POST", path, orjson.dumps(body)), check, trouble)

    def rerank(self, kind: str, path: str, key: str, read: Callable[[Any], list[tuple[int, float]]]) -> Call:
        query = self._rng.choice(self._oracle.short)
        texts = self._rng.choices(self._oracle.short, k=50)
        trouble = None
        if self._rng.random() < TROUBLE:
            trouble = self._rng.choice([one for one in TROUBLES if one != "zero!"])  # a logit of 0 is a fine logit
            texts[7] = troubled(texts[7], trouble)

        def check(data: bytes) -> str | None:
            ranks = read(orjson.loads(data))
            if sorted(index for index, _ in ranks) != list(range(50)):
                return f"{len(ranks)} ranks for 50 documents"
            scores = [score for _, score in ranks]
            off = max(abs(score - self._oracle.score(query, texts[index])) for index, score in ranks)
            if scores != sorted(scores, reverse=True):
                return "the best is not first"
            return f"a score is {off:.2g} off" if not off < NEAR else None

        return Call(kind, request("POST", path, orjson.dumps({"query": query, key: texts})), check, trouble)

    def similarity(self) -> Call:
        query, *texts = self._rng.choices(self._oracle.short, k=6)
        body = {"inputs": {"source_sentence": query, "sentences": texts}}

        def check(data: bytes) -> str | None:
            off = np.abs(orjson.loads(data) - self._oracle.rows(texts) @ self._oracle.row(query)).max()
            return f"a cosine is {off:.2g} off" if not off < NEAR else None

        return Call("tei similarity", request("POST", "/similarity", orjson.dumps(body)), check)

    def tokenize(self) -> Call:
        texts, _ = self.texts(4, ("hang!",))  # which the device would have to see

        def check(data: bytes) -> str | None:
            got = [[token["id"] for token in tokens] for tokens in orjson.loads(data)]
            return None if got == [self._oracle.tokens(text) for text in texts] else "other tokens"

        return Call("tei tokenize", request("POST", "/tokenize", orjson.dumps({"inputs": texts})), check)

    def page(self) -> Call:
        path = self._rng.choice(("/health", "/health/ready", "/metrics", "/v1/models", "/openapi.json", "/info"))
        return Call("page", request("GET", path), lambda data: None if data else "nothing")


def openai(told: Any) -> Any:
    """The rows in order of their index, which is that of the list."""
    rows = [one["embedding"] for at, one in enumerate(told["data"]) if one["index"] == at]
    return [np.frombuffer(base64.b64decode(row), "<f4") for row in rows] if isinstance(rows[0], str) else rows


def tei(told: Any) -> Any:
    return told


def ollama(told: Any) -> Any:
    return told["embeddings"]


def native(told: Any) -> Any:
    return told["vectors"]


def cohere(told: Any) -> Any:
    found = told["embeddings"]
    return found["float"] if isinstance(found, dict) else found


def cohere_ranks(told: Any) -> list[tuple[int, float]]:
    return [(one["index"], one["relevance_score"]) for one in told["results"]]


def tei_ranks(told: Any) -> list[tuple[int, float]]:
    return [(one["index"], one["score"]) for one in told]


def native_ranks(told: Any) -> list[tuple[int, float]]:
    return [(one["index"], one["score"]) for one in told["results"]]
