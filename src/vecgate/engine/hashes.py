"""sha256 of files, each read once: remembered by path, inode, size and time of change.

Knows files, neither models nor threads; where nothing can be remembered, the next start reads them again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from vecgate.engine import remembered

PART_BYTES = 2**20
"""Read between two looks at whether to go on."""
BLOB = re.compile(r"[0-9a-f]{64}")
MEMORY = "checked.json"

Mark = tuple[int, int, int]


class Stopped(Exception):
    """Nobody waits for the hash any more."""


def mark(path: Path) -> Mark:
    """What changes with a file's content: inode, size and time of change. Raises OSError."""
    seen = path.stat()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def named(path: Path) -> str | None:
    """The hash that the hub's cache calls a large file by; None for other files, and for small ones, which it calls by
    git's."""
    blob = path.resolve()
    return blob.name if path.is_symlink() and blob.parent.name == "blobs" and BLOB.fullmatch(blob.name) else None


def sha256(path: Path, cache: Path | None, go_on: Callable[[], bool] = lambda: True) -> str:
    """In hex digits; read only where the folder `cache` does not remember it. Raises OSError and Stopped."""
    file = path.resolve()
    before = mark(file)
    match remembered.read(cache, MEMORY).get(str(file)):
        case [*seen, str(digest)] if tuple(seen) == before:
            return digest
    digest = _read(file, go_on)
    if mark(file) == before:
        remembered.write(cache, MEMORY, {**remembered.read(cache, MEMORY), str(file): [*before, digest]})
    return digest


def forget(path: Path, cache: Path | None) -> None:
    """So that the next `sha256` reads it."""
    known = remembered.read(cache, MEMORY)
    if known.pop(str(path.resolve()), None):
        remembered.write(cache, MEMORY, known)


def _read(path: Path, go_on: Callable[[], bool]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            digest.update(part)
            if not go_on():
                raise Stopped
    return digest.hexdigest()
