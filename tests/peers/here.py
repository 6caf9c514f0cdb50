"""`make bench`: a server of this checkout, and a short bench of it beside the model without HTTP."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.peers.serving import bench, serving, vecgate

PLACE = Path(__file__).parent.parent.parent / ".bench"
SHORT = (
    "--mix",
    "queries,mixed",
    "--concurrency",
    "1,8,64",
    "--seconds",
    "3",
    "--warm-up",
    "1",
    "--rounds",
    "3",
    "--raw",
)


def main(argv: Sequence[str]) -> int:
    """`argv`: flags of `vecgate bench` instead of SHORT."""
    PLACE.mkdir(exist_ok=True)
    page = PLACE / "report.html"
    with serving(vecgate("serve", "--port", "PORT"), PLACE / "vecgate.log") as served:
        report = bench([served.url], [*(argv or SHORT), "--html", str(page)], PLACE / "report.json")
    print(f"The page is {page}.")
    return bool(report.errors)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
