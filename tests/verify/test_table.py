"""What is printed: every figure that was measured, and what was not checked."""

from __future__ import annotations

import json

from vecgate.core import Check
from vecgate.verify import table
from vecgate.verify.run import Report

BATCH = Check("batch", "passed", "3 texts", 1.0, 1e-7)
OFF = Check("golden", "failed", "6 rows", 0.5, 0.25)
MOVED = Check("bfloat16", "deviates", "against float32", 0.9999458, 2.6e-3)
LEFT = Check("reference", "skipped", "it is not installed")
REPORT = Report("small", (BATCH, OFF, LEFT), (MOVED,), "embed", "bert", "torch", "cpu", "float32", 10, 1.25)


def test_the_table_has_what_was_measured_and_what_was_not() -> None:
    lines = table.text([REPORT]).splitlines()
    assert lines[0] == "small  (bert embed; torch on cpu, float32)"
    assert lines[2:5] == [
        "  check   result  cosine     difference",
        "  batch   passed  1.0000000  1.0e-07     3 texts",
        "  golden  FAILED  0.5000000  2.5e-01     6 rows",
    ]
    assert "    reference: it is not installed" in lines
    assert "  bfloat16     deviates  0.9999458  2.6e-03     against float32" in lines
    assert lines[-1] == "  FAILED: golden (1.2 s)"


def test_a_model_that_nobody_could_vouch_for_passes_with_doubts() -> None:
    assert "passed, with doubts" in table.text([Report("small", (BATCH, LEFT))])
    seen = Check("reference", "passed", "", 1.0, 1e-7)
    assert "passed (0.0 s)" in table.text([Report("small", (BATCH, seen))])


def test_a_model_that_did_not_load_has_no_place() -> None:
    assert table.text([Report("x", (Check("load", "failed", "no file"),))]).startswith("x  (not loaded)\n")


def test_json_has_every_field_and_no_number_that_is_none() -> None:
    told = json.loads(table.json([REPORT, Report("x", (Check("batch", "failed", "", float("nan")),))]))
    assert told["passed"] is False
    assert told["models"][0]["checks"][0] == {
        "name": "batch",
        "verdict": "passed",
        "note": "3 texts",
        "cosine": 1.0,
        "difference": 1e-7,
    }
    assert told["models"][0]["offered"][0]["name"] == "bfloat16"
    assert told["models"][1]["checks"][0]["cosine"] is None
