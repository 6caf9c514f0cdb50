"""How much memory this process may use: the machine's, or its container's where that is less; and how to hand some back.

psutil knows the machine alone: in a container of 2 GiB on a machine of 64 it says 64, and what relies on that is killed.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = "proc/self/cgroup"
"""Linux's list of the control groups that this process is in: a number, controllers and a path, with colons between them."""
MOUNT = "sys/fs/cgroup"
MAPPED_BYTES = 256 * 1024
"""A block of so many bytes or more is mapped by itself."""
TRIM_BYTES = 64 * 2**20
"""Free memory at the heap's end that is kept."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt's own numbers, of glibc's malloc.h."""
FILES = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""The controllers of a line -> the folder below MOUNT and the limit's file: cgroup v2, which names none, and v1."""


def settle() -> None:
    """What lives now will live on: Python's collector need not look at it any more. torch and transformers are 400,000
    objects, and every look at them stops all threads for 250 ms (measured on a slow core)."""
    gc.collect()
    gc.freeze()


def collect() -> None:
    """Free what only holds itself, also among what was settled."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if settled:
        gc.freeze()


def usable_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the least that one of this process's control groups allows."""
    return min([psutil.virtual_memory().total, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Of every group from the process's own up to the top, since each bounds all below it. "max" is none."""
    try:
        lines = (root / GROUPS).read_text("ascii", "replace").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in FILES:
            continue
        folder, name = FILES[controllers]
        top = root / MOUNT / folder
        own = top / path.lstrip("/")  # not there where the container sees only its own group, as the top
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
            with suppress(OSError, ValueError):
                yield int((group / name).read_text("ascii"))


def give_back() -> None:
    """Hand freed memory back to the system: glibc keeps much of it (measured: 300 of 330 MB of a closed MLX model)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def map_large_blocks() -> None:
    """Have large blocks go back to the system when they are freed, as batches of ever new sizes leave holes in the heap.

    glibc puts them onto its heap once some were freed (measured, MiniLM on torch: 200 MB more after 500 texts of random
    lengths, and none with this, which costs 3 % of a forward at most). Other libraries' malloc has no such fault.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_THRESHOLD, MAPPED_BYTES)
        tune(M_TRIM_THRESHOLD, TRIM_BYTES)
