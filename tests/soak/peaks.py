"""What one batch of the real model really takes, beside the estimate that decides whether it fits: the part `peaks`.

At the edges: the longest rows, the most rows, one row. Each backend in a process of its own; `python -m tests.soak.peaks
torch` is one of them. On Linux alone: nothing else lets a process's peak begin anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tests.live import environment
from tests.soak.memory import BACKENDS, BLAS, THREADS
from vecgate.backends import open_backend
from vecgate.core import Batch, Checkpoint, Tokens
from vecgate.engine import checkpoint
from vecgate.footprint import footprint
from vecgate.traits import Backend

MOST = 1.25
"""Of the estimate of the fullest batch that one may take: the allocator's own share, 1.12 measured, comes on top."""
RESET = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
Estimate = Callable[[int, int], int]
"""Rows and the tokens of each -> bytes."""


def shapes(longest: int, tokens: int) -> list[tuple[int, int]]:
    """Rows and the tokens of each."""
    return [(tokens // longest, longest), (min(tokens // 16, 128), 16), (1, longest), (1, 8)]


def peak_bytes(backend: Backend, rows: int, length: int) -> int:
    """By how much a forward's resident peak exceeds what was held before."""
    ids = np.full(length, 1037, np.int32)
    backend.trim()
    RESET.write_text(RESET_PEAK)
    before = footprint().now_bytes
    backend.forward(Batch((Tokens(ids),) * rows))
    return footprint().peak_bytes - before


def torch_estimate(read: Checkpoint) -> Estimate:
    families, room = (import_module(f"vecgate.backends.torch.{name}") for name in ("families", "room"))
    float32, found = import_module("torch").float32, families.find(read)
    return lambda rows, length: int(room.batch_bytes(found, rows * length, length, float32))


def mlx_estimate(read: Checkpoint) -> Estimate:
    config = import_module(import_module("vecgate.backends.mlx").FAMILIES[read.family]).Config.read(read)
    return lambda rows, length: int(rows * length * config.token_bytes(length, 4))


ESTIMATES = {"torch": torch_estimate, "mlx": mlx_estimate}


def one(name: str) -> int:
    """Prints a line for each shape; 1 where a batch took more than `MOST` of its estimate at the fullest."""
    read = checkpoint.read(checkpoint.resolve("minilm").folder)
    estimate, backend = ESTIMATES[name](read), open_backend(name, read)
    full = shapes(read.max_tokens, backend.card.batch_tokens)
    for rows, length in full:  # what the first forward of a shape sets up stays, and is no batch's
        backend.forward(Batch((Tokens(np.full(length, 1037, np.int32)),) * rows))
    over = 0
    for rows, length in full:
        took, told = peak_bytes(backend, rows, length), estimate(rows, length)
        print(f"{name:<6}{rows:>4} rows of {length:>4}: {took / 2**20:>7.1f} MiB of an estimate of {told / 2**20:.1f}")
        over |= took > MOST * estimate(*full[0])
    return over


def run(_folder: Path) -> list[str]:
    """Prints what each backend says; which of them took more."""
    if not RESET.exists():
        print("not on this system")
        return []
    there = [name for name, packages in BACKENDS.items() if all(map(find_spec, packages))]
    found = []
    for name in there:
        told = [sys.executable, "-m", "tests.soak.peaks", name]
        if subprocess.run(told, env=environment(**THREADS, **BLAS), check=False).returncode:
            found.append(f"{name}: a batch took more than {MOST} of the estimate of the fullest")
    return found


if __name__ == "__main__":
    status = one(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)
