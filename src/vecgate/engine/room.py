"""Whether the served models can ever be on this machine together, said before anything is loaded or listens.

A bound from below: the weights alone, by their files' headers, against all that may be used. A device counts more when a
model is loaded on it (the working room, what the process holds). Knows checkpoints and the machine, no device.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from vecgate.core import Checkpoint
from vecgate.errors import NoRoom
from vecgate.ram import usable_bytes

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
CARDS = ("dev/nvidiactl", "dev/nvidia0", "dev/kfd", "dev/dxg")
"""What a Linux with a card has (NVIDIA's, AMD's, Windows' own below WSL): memory that is not the machine's."""


def weight_bytes(read: Checkpoint, dtype: str, *, as_stored: bool) -> int:
    """In the type that they are computed in: packed ones stay so; `auto` leaves them as stored, or is float32."""
    if read.quantization is not None or (dtype == "auto" and as_stored):
        return read.weight_bytes
    return read.weight_bytes * WIDTHS.get(dtype, 4) // WIDTHS.get(read.stored_dtype, 4)


def check(models: Sequence[Checkpoint], dtype: str, fraction: float, root: Path = Path("/")) -> None:
    """Raises NoRoom, with the arithmetic, where their weights are more than `fraction` of the machine's memory; where a
    card with memory of its own may be what computes, that is left to the load."""
    if any((root / card).exists() for card in CARDS):
        return
    gpu = platform.system() == "Darwin"  # takes 16 bits as they are, and has no more than the machine's memory
    sizes = {read.name: weight_bytes(read, dtype, as_stored=gpu) for read in models}
    total, need = usable_bytes(root), sum(sizes.values())
    if need <= fraction * total:
        return
    parts = ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())
    raise NoRoom(
        f"The weights take {_size(need)} ({parts}): more than DEVICE_MEMORY_FRACTION allows, {fraction:g} x {_size(total)} = "
        f"{_size(int(fraction * total))}. Serve fewer or smaller models, quantised ones, or those of 32 bits with "
        "DTYPE=bfloat16."
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"
