"""`python -m tests.compat record|check|install [ENVIRONMENT...]`: drives real clients; status 1 where something is not so."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.compat import environments, runs


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.compat", description=__doc__)
    parser.add_argument("what", choices=("record", "check", "install"))
    parser.add_argument("environment", nargs="*", help="by name; all where none is named")
    told = parser.parse_args()
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
