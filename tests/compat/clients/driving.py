"""What the drivers of real clients share: the inputs, the cases, and one line of JSON for each case.

    python DRIVER.py BASE_URL CONTROL_URL KEY

Knows no client and nothing of vecgate; it lies beside the drivers, which are run by path.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any

TEXTS = [
    "The cat sits on the mat.",
    "A feline rests on a rug.",
    "Stock markets fell sharply today.",
    "hello world",
]
QUERY = "What is the capital of France?"
DOCUMENTS = ["Dogs bark at night.", "Paris is the capital of France.", "Rust is a programming language."]
TOP_N = 2
DIMENSIONS = 4
TOKEN_IDS = [101, 7592, 2088, 102]
"""TEXTS[3] by MiniLM's tokenizer."""
LONG = "The cat sits on the mat. " * 800
"""20,000 characters."""
MODEL = "all-MiniLM-L6-v2"
RERANKER = "rerank-v3.5"
UNKNOWN = "no-such-model"
FAILING = "fail-twice"
WRONG_KEY = "wrong-key"

CASES = (
    "embedding",
    "batch",
    "base64",
    "dimensions",
    "token-ids",
    "roles",
    "rerank",
    "errors",
    "retries",
    "wrong-key",
    "long-input",
)

Result = dict[str, Any]
Call = Callable[[], Result]


def arguments() -> tuple[str, str, str]:
    """BASE_URL, CONTROL_URL, KEY."""
    base, control, key = sys.argv[1:]
    return base, control, key


def vectors(rows: Iterable[Iterable[float]], usage: int | None = None) -> Result:
    """In the order of the texts; of `roles` the query's row, then the documents'."""
    return {"vectors": [[float(x) for x in row] for row in rows]} | ({} if usage is None else {"usage": usage})


def ranking(pairs: Iterable[tuple[int, float]], usage: int | None = None) -> Result:
    """(index of the document, score), in the order the client gave them."""
    ranked = [{"index": int(index), "score": float(score)} for index, score in pairs]
    return {"ranking": ranked} | ({} if usage is None else {"usage": usage})


def drive(control: str, client: str, version: str, cases: Mapping[str, Call | str]) -> None:
    """Runs every case in the order of CASES, and prints a line for each; a string says why the client has no such thing."""
    missing = set(CASES) ^ set(cases)
    if missing:
        raise SystemExit(f"{client}: these cases are missing, or unknown: {sorted(missing)}")
    for case in CASES:
        call = cases[case]
        if isinstance(call, str):
            result: Result = {"skipped": call}
        else:
            begin(control, client, case)
            result = outcome(call)
        print(json.dumps({"client": client, "case": case, "version": version, **result}), flush=True)


def begin(control: str, client: str, case: str) -> None:
    """Tells the recording proxy whose the next requests are."""
    body = json.dumps({"client": client, "case": case}).encode()
    with urllib.request.urlopen(urllib.request.Request(control, body, {"Content-Type": "application/json"})) as answer:
        answer.read()


def outcome(call: Call) -> Result:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # whatever a client raises is the result
        return {"error": {"class": type(error).__name__, "message": str(error), "status": status(error)}}


def status(error: BaseException) -> int | None:
    """Of the exception, its response, or what caused it."""
    response = getattr(error, "response", None)
    found = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    cause = error.__cause__ or error.__context__
    return found if isinstance(found, int) or cause is None else status(cause)
