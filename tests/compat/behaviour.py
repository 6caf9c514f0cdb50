"""Whether what a client gave its user on the real model is right: rows, order, ranking, usage, the SDK's own errors.

The server's own rows, asked one text at a time and without any client, are the measure. Knows no file but the fixtures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tests.compat.clients.driving import DIMENSIONS, DOCUMENTS, LONG, QUERY, TEXTS, TOP_N
from tests.compat.exchanges import Exchange
from tests.compat.servers import KEY, NAME

Told = dict[str, Any]
Recorded = dict[tuple[str, str], dict[str, Any]]
"""(client, case) -> the outcome on the fake server."""
Rows = np.ndarray

WIDTH = 384
TOLERANCE = 1e-5
"""Between a client's row and the server's: the same text in another batch, and base64's float32."""
LONG_COSINE = 0.9
"""A client that cuts a long text in parts and averages them gets another row, but near the one of its beginning."""
REFUSABLE = {"dimensions", "token-ids", "roles"}
"""Where a refusal is right as long as it is the recorded one."""


class Asked(Protocol):
    """A server that answers a POST."""

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]: ...


@dataclass(frozen=True, slots=True)
class Truth:
    """What the server itself says of a text."""

    server: Asked
    _known: dict[tuple[str, str, int | None], tuple[Rows, int]] = field(default_factory=dict)

    def row(self, text: str, role: str = "", dimensions: int | None = None) -> tuple[Rows, int]:
        """(row, tokens)"""
        asked = (text, role, dimensions)
        if asked not in self._known:
            body = {"input": text, "model": NAME + role, **({"dimensions": dimensions} if dimensions else {})}
            status, _, answer = self.server.post("/v1/embeddings", body, Authorization=f"Bearer {KEY}")
            assert status == 200, answer
            found = json.loads(answer)
            self._known[asked] = np.array(found["data"][0]["embedding"]), found["usage"]["prompt_tokens"]
        return self._known[asked]

    def rows(self, texts: Sequence[str], role: str = "", dimensions: int | None = None) -> Rows:
        return np.array([self.row(text, role, dimensions)[0] for text in texts])

    def tokens(self, texts: Sequence[str]) -> int:
        return sum(self.row(text)[1] for text in texts)


def wrong(lines: Iterable[tuple[Told, Sequence[Exchange]]], server: Asked, recorded: Recorded) -> list[str]:
    """One line for each thing that is not as it must be."""
    truth = Truth(server)
    found = []
    for told, seen in lines:
        who = (told["client"], told["case"])
        found += [f"{' '.join(who)}: {what}" for what in judged(told, seen, truth, recorded.get(who, {}))]
    return found


def judged(told: Told, seen: Sequence[Exchange], truth: Truth, outcome: dict[str, Any]) -> list[str]:
    kind = next(name for name in ("vectors", "ranking", "error", "skipped") if name in told)
    same = {"vectors": "rows"}.get(kind, kind) in outcome
    unlike = [] if same else [f"{kind} on the real model, {sorted(outcome)} on the fake: {told.get('error', '')}"]
    if kind == "skipped":
        return unlike
    if kind == "error":
        return unlike + _error(told, seen, outcome)
    return unlike + CHECKS[told["case"]](told, truth)


def _error(told: Told, seen: Sequence[Exchange], outcome: dict[str, Any]) -> list[str]:
    """The class that was recorded, and the server's status and words, where the client asked the server at all."""
    error, case = told["error"], told["case"]
    if case not in {*REFUSABLE, *STATUSES}:
        return [f"failed: {error}"]
    found = []
    if error["class"] != outcome.get("error", {}).get("class"):
        found.append(f"{error['class']}, recorded {outcome.get('error')}")
    if seen:
        last = seen[-1].response
        status = int(last.start)
        if status not in STATUSES.get(case, {400}):
            found.append(f"the server answered {status}")
        if error["status"] not in (None, status):
            found.append(f"the client says {error['status']}, the server said {status}")
        if said(last.body) not in error["message"] and not SILENT.keys() & {told["client"], f"{told['client']} {case}"}:
            found.append(f"{error['message'][:200]!r} leaves out what the server said, {said(last.body)!r}")
    return found


STATUSES = {"errors": {400, 404, 422}, "retries": {503}, "wrong-key": {401}}
SILENT: dict[str, str] = {
    "chromadb-tei": "it makes numbers of whatever comes, and fails at the first word",
    "haystack-jina retries": 'of an answer without "detail" it says that there is none; the proxy\'s has none',
    "llama-index-jina": 'of an answer without "detail" it says that there is none; OpenAI\'s errors have none',
    "llama-index-tei": "it takes the first of whatever comes, and says that there is no 0",
}
"""Clients, or one case of a client, that keep the server's words from their user -> what they say instead."""


def said(body: bytes) -> str:
    """The words of an error in any dialect; TEI's 401 has none."""
    found: Any = json.loads(body or b'""')
    for key in ("error", "message"):
        found = found.get(key, found) if isinstance(found, dict) else found
    return str(found)


def _like(told: Told, want: Rows, tolerance: float = TOLERANCE) -> list[str]:
    """Shape, length one, and the server's own rows in the order of the texts."""
    if "vectors" not in told:
        return ["gave no rows"]
    rows = np.array(told["vectors"])
    if rows.shape != want.shape:
        return [f"rows {rows.shape}, must be {want.shape}"]
    found = []
    lengths = np.linalg.norm(rows, axis=1)
    if np.abs(lengths - 1).max() > TOLERANCE:
        found.append(f"lengths {lengths}")
    if (off := float(np.abs(rows - want).max())) > tolerance:
        found.append(f"rows off by {off:.2g}")
    return found


def _usage(told: Told, want: int) -> list[str]:
    usage = told.get("usage")
    return [] if usage in (None, want) else [f"usage {usage}, must be {want}"]


def _one(told: Told, truth: Truth) -> list[str]:
    return _like(told, truth.rows(TEXTS[:1])) + _usage(told, truth.tokens(TEXTS[:1]))


def _four(told: Told, truth: Truth) -> list[str]:
    found = _like(told, truth.rows(TEXTS)) + _usage(told, truth.tokens(TEXTS))
    if not found:
        rows = np.array(told["vectors"])
        near, far = float(rows[0] @ rows[1]), float(rows[0] @ rows[2])
        found += [] if near > far + 0.2 else [f"paraphrase {near:.3f}, unrelated {far:.3f}"]
        found += [] if rows.shape[1] == WIDTH else [f"{rows.shape[1]} numbers, must be {WIDTH}"]
    return found


def _short(told: Told, truth: Truth) -> list[str]:
    return _like(told, truth.rows(TEXTS, dimensions=DIMENSIONS))


def _ids(told: Told, truth: Truth) -> list[str]:
    """Of the ids that the driver has, or of all texts by a client that makes ids of them itself."""
    texts = TEXTS if len(told.get("vectors", ())) == len(TEXTS) else TEXTS[3:]
    return _like(told, truth.rows(texts)) + _usage(told, truth.tokens(texts))


def _roles(told: Told, truth: Truth) -> list[str]:
    query, documents = truth.rows([QUERY], ":query"), truth.rows(DOCUMENTS, ":document")
    found = _like(told, np.concatenate([query, documents]))
    if not found:
        rows = np.array(told["vectors"])
        best = int((rows[1:] @ rows[0]).argmax())
        found += [] if best == 1 else [f"document {best} is nearest to the query"]
    return found


def _rerank(told: Told, _truth: Truth) -> list[str]:
    if "ranking" not in told:
        return ["gave no ranking"]
    indexes = [one["index"] for one in told["ranking"]]
    scores = [one["score"] for one in told["ranking"]]
    right = {
        f"{len(indexes)} documents, asked for {TOP_N}": len(indexes) == TOP_N,
        f"order {indexes}": indexes[:1] == [1] and len(set(indexes)) == len(indexes),
        f"scores {scores}": scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores),
        f"usage {told.get('usage')}": told.get("usage", 1) > 0,
    }
    return [what for what, holds in right.items() if not holds]


def _retried(told: Told, truth: Truth) -> list[str]:
    return _rerank(told, truth) if "ranking" in told else _one(told, truth)


def _refused(told: Told, _truth: Truth) -> list[str]:
    return ["was answered"]


def _long(told: Told, truth: Truth) -> list[str]:
    want = truth.rows([LONG])
    return _like(told, want, 1.0) or [
        f"cosine {cosine:.3f} with the row of its beginning"
        for cosine in [float(np.array(told["vectors"])[0] @ want[0])]
        if cosine < LONG_COSINE
    ]


CHECKS: dict[str, Callable[[Told, Truth], list[str]]] = {
    "embedding": _one,
    "batch": _four,
    "base64": _four,
    "dimensions": _short,
    "token-ids": _ids,
    "roles": _roles,
    "rerank": _rerank,
    "errors": _refused,
    "retries": _retried,
    "wrong-key": _refused,
    "long-input": _long,
}
