"""What this machine can do at most in one matrix product and one copy: a script, run by path in a process of its own.

`python ceilings.py LIBRARY DTYPE DEVICE` prints one line of JSON. The library is the one that serves (torch, mlx), else
numpy; importing it costs the bench nothing. Imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from time import perf_counter
from typing import Any

SIZES = (1024, 2048, 4096)
COPY_BYTES = 512 * 2**20
"""Beyond every cache."""
REPEATS_S = 0.7
"""Of each size: enough that one of the runs is not disturbed."""

Work = Callable[[], object]


def best_s(work: Work) -> float:
    """The shortest of many runs: what the machine can do, not what it did."""
    work()
    until, best = perf_counter() + REPEATS_S, float("inf")
    while perf_counter() < until:
        begin = perf_counter()
        work()
        best = min(best, perf_counter() - begin)
    return best


def with_numpy(dtype: str, _device: str) -> dict[str, Any]:
    import numpy as np

    kind = np.dtype(dtype if dtype in ("float32", "float64") else "float32")

    def product(size: int) -> Work:
        a, b, c = (np.ones((size, size), kind) for _ in range(3))
        return lambda: np.matmul(a, b, out=c)

    source = np.ones(COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    return measured(product, lambda: np.copyto(target, source)) | {
        "version": np.__version__,
        "dtype": kind.name,
        "device": "cpu",
        "threads": os.cpu_count() or 1,
    }


def with_torch(dtype: str, device: str) -> dict[str, Any]:
    import torch

    kind = getattr(torch, dtype)
    place = torch.device(device)
    wait: Work = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(place.type, lambda: None)

    def product(size: int) -> Work:
        a = torch.ones((size, size), dtype=kind, device=place)
        b = torch.ones((size, size), dtype=kind, device=place)
        return lambda: (torch.matmul(a, b), wait())

    source = torch.ones(COPY_BYTES // 4, device=place)
    target = torch.empty_like(source)
    with torch.inference_mode():
        found = measured(product, lambda: (target.copy_(source), wait()), 2 if place.type == "cpu" else 8)
    return found | {
        "version": torch.__version__,
        "dtype": dtype,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def with_mlx(dtype: str, device: str) -> dict[str, Any]:
    import mlx.core as mx

    if device == "cpu":
        mx.set_default_device(mx.Device(mx.cpu))

    def product(size: int) -> Work:
        a, b = (mx.ones((size, size), getattr(mx, dtype)) for _ in range(2))
        mx.eval(a, b)
        return lambda: mx.eval(a @ b)

    source = mx.ones(COPY_BYTES // 4)
    mx.eval(source)
    return measured(product, lambda: mx.eval(source + 1)) | {
        "version": version("mlx"),
        "dtype": dtype,
        "device": str(mx.default_device()),
        "threads": os.cpu_count() or 1,
    }


def measured(product: Callable[[int], Work], copy: Work, largest: int = 2) -> dict[str, Any]:
    """`largest`: by how much the last size may exceed 2048 (a GPU is not full before)."""
    sizes = SIZES if largest == 2 else (*SIZES, 1024 * largest)
    flops_per_s = max(2.0 * size**3 / best_s(product(size)) for size in sizes)
    return {"flops_per_s": flops_per_s, "bytes_per_s": 2.0 * COPY_BYTES / best_s(copy)}


LIBRARIES = {"numpy": with_numpy, "torch": with_torch, "mlx": with_mlx}

if __name__ == "__main__":
    name, dtype, device = sys.argv[1:]
    sys.stdout.write(json.dumps({"library": name, **LIBRARIES[name](dtype, device)}) + "\n")
