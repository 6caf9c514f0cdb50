"""The real model's memory: texts of random lengths through it, and what the server holds after each hundred.

Each backend that is installed, in a server of its own; a length that was not seen before is what makes caches grow.
"""

from __future__ import annotations

import random
import string
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import psutil

from tests.live import Live
from tests.soak.tally import Footprint

BACKENDS = {"torch": ("torch", "transformers"), "mlx": ("mlx",)}
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""More of them than free cores spin instead of computing."""
BLAS = {"LD_PRELOAD": "libopenblas.so.0"} if sys.platform == "linux" else {}
"""That in MLX's own wheel is 16 times slower."""
HUNDRED = 100
WARM_SHARE = 0.2
"""Of the texts: by then the shapes that cost most have been there."""
GROWTH_BYTES = 64 * 2**20
"""Of resident memory from there to the end."""
LONGEST_WORDS = 300
"""Over MiniLM's limit of 256 tokens."""


def text(rng: random.Random) -> str:
    """Words that nobody knows, so that no cache of words helps; lengths evenly from one word up."""
    words = (
        "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(rng.randint(1, LONGEST_WORDS))
    )
    return " ".join(words)


def measure(folder: Path, backend: str, count: int) -> list[int]:
    """Resident bytes after each share of `HUNDRED` texts, the first before any."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with Live(folder, BACKEND=backend, LOG_LEVEL="ERROR", **THREADS, **BLAS).ready() as server:
        process = psutil.Process(server.process.pid)
        held = [process.memory_info().rss]
        left = count
        while left:
            size = min(rng.choice((1, 1, 1, 2, 5, 16, 32)), left, HUNDRED - (count - left) % HUNDRED)
            status, _, body = server.post(
                "/v1/embeddings", {"model": "minilm", "input": [text(rng) for _ in range(size)]}
            )
            assert status == 200, body
            left -= size
            if (count - left) % HUNDRED == 0:
                held.append(process.memory_info().rss)
    return held


def run(folder: Path, count: int) -> list[str]:
    """Prints a line for each backend; what was not as it must be."""
    found = []
    for backend, packages in BACKENDS.items():
        if any(find_spec(package) is None for package in packages):
            print(f"{backend}: not installed")
            continue
        held = measure(folder, backend, count)
        warm = max(held[: 1 + max(1, int(WARM_SHARE * len(held)))])
        footprint = Footprint(warm, held[-1], max(held))
        steps = " ".join(f"{(after - before) / 2**20:+.1f}" for before, after in pairwise(held))
        print(f"{backend}: {count} texts, {footprint}; MiB a hundred: {steps} from {held[0] / 2**20:.0f}", flush=True)
        if held[-1] - warm > GROWTH_BYTES:
            found.append(f"{backend}: {footprint}; {GROWTH_BYTES >> 20} MiB more are allowed")
    return found
