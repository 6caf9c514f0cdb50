"""docs/compatibility.md is what the stored fixtures say, and says nothing of a client that was not judged."""

from __future__ import annotations

from typing import Any

from tests.compat import fixtures, matrix
from tests.compat.clients.driving import CASES


def one(case: str, outcome: dict[str, Any], *by: str) -> dict[str, Any]:
    exchanges = [{"by": who} if who else {} for who in by]
    return {"client": "a-client", "version": "1.0", "case": case, "outcome": outcome, "exchanges": exchanges}


def test_the_document_agrees_with_the_fixtures() -> None:
    found = matrix.judged(fixtures.stored())
    assert matrix.DOCUMENT.read_text("utf-8") == matrix.document(found), "`python -m tests.compat table` writes it anew"


def test_every_client_was_driven_through_every_case_and_judged() -> None:
    recorded = {(found["client"], found["case"]) for found in fixtures.stored()}
    versions = {found["client"]: found["version"] for found in fixtures.stored()}
    assert recorded == {(client, case) for client in versions for case in CASES}
    assert fixtures.judged() == versions, "`make compat` judges what was recorded"


def test_a_cell_says_what_became_of_the_case() -> None:
    assert matrix.cell(None) == "not tried"
    assert matrix.cell(one("batch", {"rows": [4, 8]}, "")) == "yes"
    assert matrix.cell(one("retries", {"rows": [1, 8]}, "proxy", "proxy", "")) == "retried"
    assert matrix.cell(one("rerank", {"skipped": "it has none"})) == "-"
    error = {"class": "NotFoundError", "message": "x", "status": 404}
    assert matrix.cell(one("errors", {"error": error}, "")) == "NotFoundError 404"
    assert matrix.cell(one("errors", {"error": error | {"status": None}}, "")) == "NotFoundError"


def test_a_skipped_case_has_its_reason_in_the_document() -> None:
    written = matrix.document([one("rerank", {"skipped": "it has none"}), one("roles", {"skipped": "it has none"})])
    assert "| a-client | 1.0 | not tried |" in written
    assert "- a-client, rerank, roles: it has none." in written
