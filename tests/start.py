"""How long a start takes: `python -m tests.start` starts `vecgate serve` four times, and asks until a row comes.

Beside each start: what importing torch and the model's class alone takes. `--model` and `--backend` are vecgate's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import httpx

from tests.live import Live, environment

ROUNDS, LIMIT_S = 4, 120.0
PAUSE_S = 0.1
"""Between two questions: a client that asks at once again takes from the start what it measures."""
IMPORTS = "import torch; from transformers import BertModel"


def started(folder: Path, *flags: str, module: str = "vecgate", **settings: str) -> tuple[float, float]:
    """Seconds from the process's start to the first /health and to the first row. Raises TimeoutError."""
    with httpx.Client() as client:
        begun = perf_counter()
        with Live(folder, *flags, module=module, **settings) as server:

            def until(answers: Callable[[], httpx.Response], pause_s: float) -> float:
                while perf_counter() - begun < LIMIT_S:
                    try:
                        if answers().status_code == 200:
                            return perf_counter() - begun
                    except httpx.TransportError:  # nobody listens yet
                        pass
                    sleep(pause_s)
                raise TimeoutError(f"no answer in {LIMIT_S:.0f} s:\n{server.log()}")

            health = until(lambda: client.get(f"{server.url}/health/live"), PAUSE_S / 5)
            row = {"input": "a cat"}
            return health, until(lambda: client.post(f"{server.url}/v1/embeddings", json=row), PAUSE_S)


def imports() -> float:
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], env=environment(), check=True)
    return perf_counter() - begun


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.start", description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--backend", default="torch")
    given = parser.parse_args(arguments)
    beyond = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in repeat(None, ROUNDS):
            health, first = started(
                Path(folder), "--model", given.model, "--backend", given.backend, LOG_LEVEL="WARNING"
            )
            alone = imports()
            beyond.append(first - alone)
            print(f"/health {health:.2f} s, first row {first:.2f} s; torch and BertModel alone {alone:.2f} s")
    print(f"first row beyond those imports: {median(beyond):.2f} s ({min(beyond):.2f} to {max(beyond):.2f})")


if __name__ == "__main__":
    main()
