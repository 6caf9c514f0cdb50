"""How much memory this process may use: the machine's, or its container's where that is less; and how to hand some back.

psutil knows the machine alone: in a container of 2 GiB on a machine of 64 it says 64, and what relies on that is killed.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GROUPS = "proc/self/cgroup"
"""Linux's list of the control groups that this process is in: a number, controllers and a path, with colons between them."""
MOUNT = "sys/fs/cgroup"
KEPT_BYTES = 2**30
"""Only a block of so many bytes goes back to the system by itself, or so many free ones at the heap's end."""
MOST_BYTES = 32 * 2**20
"""The most that older glibcs take as the first of the two."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""mallopt's own numbers, of glibc's malloc.h."""
FILES = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""The controllers of a line -> the folder below MOUNT and the limit's file: cgroup v2, which names none, and v1."""


def settle() -> None:
    """What lives now will live on: Python's collector need not look at it any more. torch and transformers are 400,000
    objects, and every look at them stops all threads for 250 ms (measured on a slow core)."""
    gc.collect()
    gc.freeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector, for what makes many objects and no garbage: torch's import and transformers' took 0.8 of the
    time. It stops all threads' collecting; where two of them are here, it is on again once the first that came is through."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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


def keep_large_blocks() -> None:
    """Have freed blocks of any size kept for the next batch: what went back to the system comes again page by page, each
    filled with zeros (measured, MiniLM on torch: 1.4 to 1.6 times the tokens/s of a malloc that hands them back).

    What is kept grows with batches of ever new sizes, which leave holes, so somebody has to `give_back` from time to time.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_TRIM_THRESHOLD, KEPT_BYTES)
        if not tune(M_MMAP_THRESHOLD, KEPT_BYTES):
            tune(M_MMAP_THRESHOLD, MOST_BYTES)


class Resident:
    """This process's memory, told apart as a device's is: what is in use, and what came since the last `trim`, most of which
    malloc keeps for reuse. One for the process, as its models share the heap."""

    def __init__(self) -> None:
        self._used_bytes = _resident_bytes()

    def held(self) -> tuple[int, int]:
        """(bytes in use, bytes kept for reuse); together they are what is resident."""
        now_bytes = _resident_bytes()
        self._used_bytes = min(self._used_bytes, now_bytes)
        return self._used_bytes, now_bytes - self._used_bytes

    def trim(self) -> None:
        give_back()
        self._used_bytes = _resident_bytes()


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
