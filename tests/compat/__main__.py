"""`python -m tests.compat record|check|install|table [ENVIRONMENT...]`: drives real clients; status 1 where something is not so.

table writes docs/compatibility.md from what is stored and was judged.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.compat import environments, matrix, runs


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.compat", description=__doc__)
    parser.add_argument("what", choices=("record", "check", "install", "table"))
    parser.add_argument("environment", nargs="*", help="by name; all where none is named")
    told = parser.parse_args()
    if told.what == "table":
        matrix.write()
        return 0
    chosen = environments.chosen(told.environment)
    for one in chosen:
        environments.install(one)
    if told.what == "install":
        return 0
    with tempfile.TemporaryDirectory() as folder:
        run = runs.record if told.what == "record" else runs.check
        return run(chosen, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
