"""What `vecgate verify` prints: a table for eyes, or JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vecgate.core import Check
from vecgate.verify.run import Report


def text(reports: Sequence[Report]) -> str:
    """A block a model: its checks, what was not checked, and its rows in each number type."""
    return "\n".join(line for report in reports for line in (*_block(report), ""))


def json(reports: Sequence[Report]) -> str:
    """The same as one JSON object; a figure that is no number is null."""
    told = {"passed": not any(one.failed for one in reports), "models": [*reports]}
    return msgspec.json.format(msgspec.json.encode(told)).decode() + "\n"


def _block(report: Report) -> list[str]:
    where = f"{report.backend} on {report.device}, {report.dtype}" if report.backend else "not loaded"
    made = [one for one in report.checks if one.verdict != "skipped"]
    lines = [f"{report.model}  ({' '.join(filter(None, (report.family, report.task)))}; {where})".replace("(; ", "(")]
    lines += ["", *_rows([("check", "result", "cosine", "difference", ""), *map(_cells, made)])]
    if left := [one for one in report.checks if one.verdict == "skipped"]:
        lines += ["", "  not checked:", *(f"    {one.name}: {one.note}" for one in left)]
    if report.offered:
        lines += ["", *_rows([("number type", "result", "cosine", "difference", ""), *map(_cells, report.offered)])]
    return [*lines, "", f"  {_verdict(report)} ({report.took_s:.1f} s)"]


def _verdict(report: Report) -> str:
    wrong = ", ".join(one.name for one in report.checks if one.verdict == "failed")
    if wrong:
        return f"FAILED: {wrong}"
    return "passed, with doubts: see what deviates or was not checked" if report.doubtful else "passed"


def _cells(check: Check) -> tuple[str, ...]:
    cosine = "" if check.cosine is None else f"{check.cosine:.7f}"
    difference = "" if check.difference is None else f"{check.difference:.1e}"
    verdict = "FAILED" if check.verdict == "failed" else check.verdict
    return check.name, verdict, cosine, difference, check.note


def _rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    return [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[4]]).rstrip() for row in rows
    ]
