"""The matrix client x case, from the stored fixtures: docs/compatibility.md and what `make compat` prints.

Knows the fixtures and nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.compat import fixtures
from tests.compat.clients.driving import CASES

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"
Fixtures = list[dict[str, Any]]

HEAD = """\
# Compatibility

Written by `make compat`; a change by hand is lost.

Each client, of the version named, from an environment of its own, has been driven through each case twice: against a server
with the fake backend, through a proxy that wrote every exchange down (`compat_fixtures/recorded/CLIENT/CASE.json`), and against
one with all-MiniLM-L6-v2 on torch, where what it gave its user was judged. `make test` sends every recorded request again and
compares the answers byte for byte.

"""
LEGEND = """
| | |
|---|---|
| `yes` | what it gave its user is right |
| `retried` | the server was busy twice, and the client asked again until it was not |
| an error's name | what its user gets to catch: the SDK's own class, with the HTTP status where it tells one |
| `-` | the client has no such thing, or cannot be asked for it; see below |

What the cases are, and what is right on the real model:

- `embedding`, `batch`: the rows have 384 numbers, length one, and are those the server gives for each text alone, in the order of
  the texts; a paraphrase is nearer than an unrelated text; the usage is the sum of the texts' tokens.
- `base64`: the same where the client asks for packed rows, or by its own default.
- `dimensions`: 4 of them, of length one.
- `token-ids`: the ids of a text give the row of that text.
- `roles`: one query and three documents by whatever the client has for it; the right document is the nearest.
- `rerank`: the two best of three documents, the right one first, scores falling and within 0 and 1.
  huggingface-hub has `sentence_similarity` for it, and leaves the order to its caller.
- `errors`: a model that is not there. `wrong-key`: a key that the server does not know. Both are the SDK's own exception, with
  the server's words.
- `retries`: two answers of 503 with Retry-After: 1 before the right one.
- `long-input`: 20,000 characters; the row of its first 256 tokens, or one near it where the client cuts the text itself.
"""


def cell(found: Mapping[str, Any] | None) -> str:
    """What became of a case, in a word."""
    if found is None:
        return "not tried"
    outcome = found["outcome"]
    if "skipped" in outcome:
        return "-"
    if "error" in outcome:
        status = outcome["error"]["status"]
        return f"{outcome['error']['class']} {status}" if status else str(outcome["error"]["class"])
    refused = sum(one.get("by") == "proxy" for one in found["exchanges"])
    return "retried" if refused else "yes"


def judged(found: Fixtures) -> Fixtures:
    """Those of clients that were judged on the real model too."""
    known = fixtures.judged()
    return [one for one in found if known.get(one["client"]) == one["version"]]


def rows(found: Fixtures) -> list[list[str]]:
    """One row a client, beginning with its name and version."""
    known = {(one["client"], one["case"]): one for one in found}
    versions = {one["client"]: one["version"] for one in found}
    return [
        [client, version, *(cell(known.get((client, case))) for case in CASES)]
        for client, version in sorted(versions.items())
    ]


def document(found: Fixtures) -> str:
    head = ["client", "version", *CASES]
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows(found))]
    return HEAD + "\n".join(lines) + "\n" + LEGEND + _reasons(found)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _reasons(found: Fixtures) -> str:
    """Why there is a `-`, for each reason once."""
    why: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if "skipped" in one["outcome"]:
            why.setdefault((one["client"], one["outcome"]["skipped"]), []).append(one["case"])
    lines = [f"- {client}, {', '.join(cases)}: {reason}." for (client, reason), cases in sorted(why.items())]
    return "\n## What there is not\n\n" + "\n".join(lines) + "\n" if lines else ""


def plain(found: Fixtures) -> str:
    """For a terminal."""
    table = [["client", "version", *CASES], *rows(found)]
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in table)


def write() -> None:
    DOCUMENT.write_text(document(judged(fixtures.stored())), "utf-8")
