"""The judge of what clients give their users passes what is right and sees each thing that is wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.compat import behaviour
from tests.compat.behaviour import WIDTH, Truth, judged, wrong
from tests.compat.clients.driving import DIMENSIONS, DOCUMENTS, LONG, QUERY, TEXTS
from tests.compat.exchanges import Exchange, Message

ALIKE = [[TEXTS[0], TEXTS[1], LONG], [TEXTS[2]], [TEXTS[3]], [QUERY, DOCUMENTS[1]], [DOCUMENTS[0]], [DOCUMENTS[2]]]


def row(text: str, width: int = WIDTH) -> list[float]:
    """Texts of one kind share one direction, and have a little of their own."""
    (kind,) = [place for place, texts in enumerate(ALIKE) if text in texts]
    found = np.full(width, 0.001 * (1 + ALIKE[kind].index(text)))
    found[kind % width] += 1.0
    return [float(x) for x in found / np.linalg.norm(found)]


class Server:
    """Answers a text with its row, and a token a word."""

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        text = body["input"]
        found = {"embedding": row(text, body.get("dimensions", WIDTH))}
        usage = {"prompt_tokens": len(text.split())}
        return 200, {}, json.dumps({"data": [found], "usage": usage}).encode()


def seen(status: int, words: str = "no such thing") -> list[Exchange]:
    answer = Message(str(status), (), json.dumps({"error": {"message": words}}).encode())
    return [Exchange(Message("POST /v1/embeddings", (), b""), answer)]


def told(case: str, **result: Any) -> dict[str, Any]:
    return {"client": "a-client", "case": case, "version": "1.0", **result}


def error(message: str = "SDK: no such thing", status: int | None = 404, kind: str = "NotFoundError") -> dict[str, Any]:
    return {"error": {"class": kind, "message": message, "status": status}}


FOUR = [row(text) for text in TEXTS]
WORDS = sum(len(text.split()) for text in TEXTS)
RANKED = [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.2}]
RIGHT = {
    "embedding": told("embedding", vectors=FOUR[:1], usage=len(TEXTS[0].split())),
    "batch": told("batch", vectors=FOUR, usage=WORDS),
    "base64": told("base64", vectors=FOUR),
    "dimensions": told("dimensions", vectors=[row(text, DIMENSIONS) for text in TEXTS]),
    "token-ids": told("token-ids", vectors=FOUR[3:]),
    "roles": told("roles", vectors=[row(text) for text in [QUERY, *DOCUMENTS]]),
    "rerank": told("rerank", ranking=RANKED),
    "retries": told("retries", vectors=FOUR[:1]),
    "long-input": told("long-input", vectors=[row(TEXTS[1])]),
}


def found(line: dict[str, Any], exchanges: list[Exchange], recorded: dict[str, Any]) -> list[str]:
    return judged(line, exchanges, Truth(Server()), recorded)


def recorded_as(line: dict[str, Any]) -> dict[str, Any]:
    kinds = {"vectors": "rows", "ranking": "ranking", "error": "error", "skipped": "skipped"}
    return {name: line.get(kind) for kind, name in kinds.items() if kind in line}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_passes(case: str) -> None:
    assert found(RIGHT[case], seen(200), recorded_as(RIGHT[case])) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (told("batch", vectors=FOUR[::-1]), "rows off by"),
        (told("batch", vectors=FOUR[:3]), "rows (3, 384), must be (4, 384)"),
        (told("batch", vectors=[[2 * x for x in one] for one in FOUR]), "lengths"),
        (told("batch", vectors=FOUR, usage=WORDS + 1), "usage"),
        (told("batch", **error()), "failed"),
        (told("embedding", ranking=RANKED), "gave no rows"),
        (told("base64", vectors=[*FOUR[:3], FOUR[0]]), "rows off by"),
        (told("dimensions", vectors=FOUR), "must be (4, 4)"),
        (told("token-ids", vectors=FOUR[:1]), "rows off by"),
        (told("roles", vectors=[row(text) for text in [QUERY, *DOCUMENTS[::-1]]][::-1]), "rows off by"),
        (told("rerank", ranking=RANKED[:1]), "1 documents, asked for 2"),
        (told("rerank", ranking=[{"index": 0, "score": 0.9}, {"index": 1, "score": 0.2}]), "order [0, 1]"),
        (told("rerank", ranking=[RANKED[0], RANKED[0]]), "order [1, 1]"),
        (told("rerank", ranking=[{"index": 1, "score": 0.1}, RANKED[1]]), "scores"),
        (told("rerank", ranking=[{"index": 1, "score": 1.5}, RANKED[1]]), "scores"),
        (told("errors", vectors=FOUR[:1]), "was answered"),
        (told("wrong-key", vectors=FOUR[:1]), "was answered"),
        (told("long-input", vectors=FOUR[2:3]), "cosine"),
    ],
)
def test_what_is_wrong_is_seen(line: dict[str, Any], says: str) -> None:
    assert says in " ".join(found(line, seen(200), recorded_as(line)))


@pytest.mark.parametrize(
    ("line", "exchanges", "says"),
    [
        (told("errors", **error(kind="APIConnectionError")), seen(404), "APIConnectionError, recorded"),
        (told("errors", **error(message="SDK: error")), seen(404), "leaves out what the server said"),
        (told("errors", **error(status=500)), seen(404), "the client says 500"),
        (told("errors", **error(status=None)), seen(500), "the server answered 500"),
        (told("wrong-key", **error()), seen(404), "the server answered 404"),
    ],
)
def test_an_error_that_is_not_the_servers_is_seen(line: dict[str, Any], exchanges: list[Exchange], says: str) -> None:
    assert says in " ".join(found(line, exchanges, error()))


def test_the_servers_error_passes_and_so_does_a_refusal_by_the_client_itself() -> None:
    assert found(told("errors", **error()), seen(404), error()) == []
    assert found(told("token-ids", **error(status=400)), seen(400), error()) == []
    assert found(told("token-ids", **error(status=None)), [], error()) == []


def test_another_kind_of_outcome_than_the_recorded_is_seen() -> None:
    line = told("roles", **error())
    assert "error on the real model" in found(line, [], {"rows": [4, 8]})[0]
    assert found(told("roles", skipped="it has none"), [], {"skipped": "it has none"}) == []


def test_a_paraphrase_must_be_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.compat.test_behaviour.ALIKE", [[TEXTS[0], TEXTS[2]], [TEXTS[1]], [TEXTS[3]]])
    line = told("batch", vectors=[row(text) for text in TEXTS])
    assert "paraphrase" in found(line, seen(200), {"rows": [4, 8]})[0]


def test_each_line_names_the_client_and_the_case() -> None:
    lines = [(told("batch", vectors=FOUR[:3]), seen(200))]
    (line,) = wrong(lines, Server(), {("a-client", "batch"): {"rows": [4, 8]}})
    assert line.startswith("a-client batch: rows (3, 384)")


def test_words_are_found_in_every_dialect() -> None:
    bodies = [b'{"error":{"message":"no"}}', b'{"message":"no"}', b'{"error":"no","error_type":"x"}', b'"no"']
    assert [behaviour.said(body) for body in bodies] == ["no"] * 4
    assert behaviour.said(b"") == ""
