"""`python -m tests.soak`: one part after the other, a table of each, and status 1 where something was not as it must be."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.soak import memory, mixed, peaks, scenarios


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of the mixed load (%(default)s)")
    parser.add_argument("--clients", type=int, default=24, help="well-behaved ones of the mixed load (%(default)s)")
    parser.add_argument("--texts", type=int, default=1000, help="through the real model (%(default)s)")
    parser.add_argument("--parts", default="mixed,scenarios,memory,peaks", help="which (%(default)s)")
    parser.add_argument("--scenarios", default="", help="names with semicolons between them (all)")
    parser.add_argument("--timed", action="store_true", help="assert seconds too")
    told = parser.parse_args()
    parts: dict[str, Callable[[Path], list[str]]] = {
        "mixed": partial(mixed.run, seconds=told.seconds, clients=told.clients, timed=told.timed),
        "scenarios": partial(scenarios.run, timed=told.timed, only=told.scenarios),
        "memory": partial(memory.run, count=told.texts),
        "peaks": peaks.run,
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in told.parts.split(","):
            print(f"\n{name}", flush=True)
            found += parts[name](Path(folder) / name)
    print("\n" + "\n".join(["The soak failed:", *found] if found else ["The soak held."]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
