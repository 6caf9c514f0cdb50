"""Whether this machine's GPU computes, asked of each library in a process of its own.

    python -m tests.gpu --output FILE --summary FILE mlx torch    appends mlx=gpu or mlx=cpu, and a table that says why

A GPU may be there and abort, hang or answer zeros: in a virtual machine, above all.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIMIT_S = 180.0
ASKED = """
import numpy as np

random = np.random.default_rng(7)
a, b = (random.standard_normal((384, 384), np.float32) / 384**0.25 for _ in range(2))
for name, most in (("float32", 2e-3), ("float16", 5e-2)):
    for what, want, got in (
        ("product", a @ b, product(name)),
        ("exponential", np.exp(a), exponential(name)),
    ):
        off = float(np.abs(np.asarray(got, np.float32) - want).max())
        if not off <= most:
            raise SystemExit(f"its {what} in {name} is off by {off:.2g}")
print(device)
"""
LIBRARIES = {
    "mlx": """
import mlx.core as mx

if not mx.metal.is_available():
    raise SystemExit("MLX finds none")
mx.set_default_device(mx.gpu)
device = "gpu"
product = lambda name: mx.array(a).astype(getattr(mx, name)) @ mx.array(b).astype(getattr(mx, name))
exponential = lambda name: mx.exp(mx.array(a).astype(getattr(mx, name)))
""",
    "torch": """
import torch

device = "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else None
if device is None:
    raise SystemExit("torch finds none")
there = lambda array, name: torch.from_numpy(array).to(device, getattr(torch, name))
product = lambda name: (there(a, name) @ there(b, name)).float().cpu().numpy()
exponential = lambda name: there(a, name).exp().float().cpu().numpy()
""",
}


@dataclass(frozen=True, slots=True)
class Found:
    """device: as VECGATE_DEVICE takes it; cpu where the GPU does not compute, which `why` tells."""

    device: str
    why: str


@cache
def found(library: str) -> Found:
    try:
        script = LIBRARIES[library] + ASKED
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Found("cpu", f"no answer in {LIMIT_S:.0f} s")
    if run.returncode == 0:
        return Found(run.stdout.split()[-1], "its products and exponentials are numpy's")
    return Found("cpu", (run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"])[-1])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("libraries", nargs="+", choices=LIBRARIES)
    parser.add_argument("--output", type=Path, help="a file that gets LIBRARY=DEVICE lines")
    parser.add_argument("--summary", type=Path, help="a file that gets a table in Markdown")
    wish = parser.parse_args(argv)
    answers = {library: found(library) for library in wish.libraries}
    lines = "".join(f"{library}={one.device}\n" for library, one in answers.items())
    rows = "".join(f"| {library} | {one.device} | {one.why} |\n" for library, one in answers.items())
    for path, text in ((wish.output, lines), (wish.summary, f"| Library | Runs on | Its GPU |\n|---|---|---|\n{rows}")):
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
    print(rows, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
