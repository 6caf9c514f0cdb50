"""Texts to files of vectors in constant memory: rows stream in, a few blocks are in flight, vectors stream out in order.

A run that was broken off leaves what it wrote and a state file beside it; the same run goes on from there. What embeds is
a callable: no model, no HTTP and no flags are known here.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
import orjson

from vecgate.core import Vectors
from vecgate.errors import CommandError, VecgateError
from vecgate.texts import Input, Place, Row

Form = Literal["json", "jsonl", "npy"]
Embed = Callable[[Sequence[str]], Awaitable[tuple[Vectors, int]]]
"""Texts -> (N, D) float32 and how many texts were cut."""

BLOCK_CHARACTERS = 262_144
"""Of one block; a longer text is a block of its own. Bounds the memory of what is in flight."""
SAVE_S = 1.0
"""Between two saves of the state: what a run that is killed (not interrupted) has to do again."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are embedded by one call. first: the number of the first one, from 0."""

    first: int
    rows: Sequence[Row]

    @property
    def where(self) -> str:
        first, last = self.rows[0].where, self.rows[-1].where
        return first if first == last else f"{first} to {last}"


class State(msgspec.Struct, kw_only=True):
    """What has been done, as the state file holds it.

    input: what was read. asked: everything else that decides the output. place: what has been read and written. written:
    the bytes of each file of the output. width: numbers of a row. cut: texts that were over the model's limit.
    """

    input: Input
    asked: dict[str, Any]
    place: Place = Place()
    written: list[int] = []
    width: int | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Track:
    """One file of the output: its beginning for so many rows of a width, what a block adds, and its end."""

    head: Callable[[int, int], bytes]
    part: Callable[[Block, Vectors], bytes]
    tail: bytes = b""


# the forms


def _records(block: Block, vectors: Vectors) -> Iterator[bytes]:
    for row, vector in zip(block.rows, vectors):
        yield b'{"id":%b,"embedding":%b}' % (row.id, orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))


def _lines(block: Block, vectors: Vectors) -> bytes:
    return b"".join(record + b"\n" for record in _records(block, vectors))


def _items(block: Block, vectors: Vectors) -> bytes:
    return (b",\n" if block.first else b"") + b",\n".join(_records(block, vectors))


def _npy_head(rows: int, width: int) -> bytes:
    """What numpy.save writes before the numbers. A file that ends early is refused by numpy.load, as it should be:
    an array made in full and filled bit by bit would pass for one with rows of zeros."""
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return head.getvalue()


def _numbers(_: Block, vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, "<f4").tobytes()


def _ids(block: Block, _: Vectors) -> bytes:
    return b"".join(row.id + b"\n" for row in block.rows)


def _nothing(_rows: int, _width: int) -> bytes:
    return b""


TRACKS: dict[Form, Track] = {
    "json": Track(lambda _rows, _width: b"[\n", _items, b"\n]\n"),
    "jsonl": Track(_nothing, _lines),
    "npy": Track(_npy_head, _numbers),
}
IDS = Track(_nothing, _ids)


def ids_beside(target: Path) -> Path:
    """Where the ids of an .npy file's rows stand, one JSON value a line."""
    return target.with_name(target.name + ".ids.jsonl")


def state_beside(target: Path) -> Path:
    return target.with_name(target.name + ".state.json")


# the output


class Output:
    """Files, or one stream, that grow by whole blocks. Opened by the first block, so that a run that fails before it
    leaves what was there as it was."""

    def __init__(self, target: Path | BinaryIO, form: Form, state: State, *, with_ids: bool, resumable: bool) -> None:
        """with_ids: put the ids beside an .npy file. resumable: keep a state file."""
        self.state = state
        self._target = target
        self._tracks = [TRACKS[form]]
        self._paths: list[Path] = []
        if isinstance(target, Path):
            self._paths.append(target)
            if form == "npy" and with_ids:
                self._tracks.append(IDS)
                self._paths.append(ids_beside(target))
        self._resumable = resumable
        self._files: list[BinaryIO | FileIO] = []
        self._saved_s = monotonic()

    def add(self, block: Block, vectors: Vectors, cut: int) -> None:
        """Append a block; the state speaks of whole blocks only."""
        self._open(vectors.shape[1])
        self._append([track.part(block, vectors) for track in self._tracks])
        self.state.place = block.rows[-1].after
        self.state.cut += cut
        if self._resumable and monotonic() - self._saved_s > SAVE_S:
            self._save()

    def finish(self) -> None:
        """End the files; the state file goes."""
        if self.state.input.rows not in (None, self.state.place.rows):
            self._forget()
            raise CommandError(
                f"The input had {self.state.input.rows} rows and changed while it was read: start again."
            )
        if not self.state.place.rows:
            raise CommandError("The input is empty: there is nothing to embed.")
        self._open(self.state.width or 0)
        self._append([track.tail for track in self._tracks])
        self._close()
        self._forget()

    def _forget(self) -> None:
        """The run needs no state any more."""
        if self._resumable and isinstance(self._target, Path):
            state_beside(self._target).unlink(missing_ok=True)
        self._resumable = False

    def leave(self) -> None:
        """Stop where it stands; where that is of use, the state is saved."""
        if self._files and self._resumable:
            self._save()
        self._close()

    def kept(self) -> str:
        """A sentence on what a broken-off run leaves; empty where it leaves nothing to go on from."""
        rows = self.state.place.rows
        if not (rows and self._resumable):
            return ""
        return f"{rows} of {self.state.input.rows} rows are in {self._target}; the same command goes on from there."

    def _open(self, width: int) -> None:
        if self._files:
            return
        state = self.state
        if state.width not in (None, width):
            raise CommandError(
                f"{self._target} was begun with rows of {state.width} numbers and these have {width}: remove "
                f"{self._target}.state.json to begin anew."
            )
        state.width = width
        self._files = [_locked(path) for path in self._paths] if self._paths else [_stream(self._target)]
        if not state.written:
            state.written = [0] * len(self._tracks)
            self._append([track.head(state.input.rows or 0, width) for track in self._tracks])

    def _append(self, parts: Sequence[bytes]) -> None:
        """To every file, where the last whole block ended; then to the account of them."""
        for file, part, at in zip(self._files, parts, self.state.written):
            if self._paths:
                file.seek(at)
                file.truncate()
            _write(file, part)
        self.state.written = [at + len(part) for at, part in zip(self.state.written, parts)]

    def _save(self) -> None:
        """The files first: the state must never tell of bytes that a power cut takes away."""
        for file in self._files:
            os.fsync(file.fileno())
        assert isinstance(self._target, Path)
        path = state_beside(self._target)
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(self.state)))
        fresh.replace(path)
        self._saved_s = monotonic()

    def _close(self) -> None:
        for file in self._files:
            if self._paths:
                file.close()
            else:
                file.flush()
        self._files = []


def begin(target: Path, read: Input, asked: dict[str, Any]) -> State:
    """The state of a run that was broken off, or a fresh one; raises CommandError where it was another run."""
    path = state_beside(target)
    try:
        state = msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return State(input=read, asked=asked)
    except msgspec.DecodeError as error:
        raise CommandError(f"{path} is no state of a run ({error}): remove it to begin {target} anew.") from None
    if state.input != read:
        raise CommandError(f"{target} was begun from other input: give the same, or remove {path} to begin anew.")
    for name, value in asked.items():
        if (before := state.asked.get(name)) != value:
            raise CommandError(
                f"{target} was begun with {name} {_shown(before)}, and this is {_shown(value)}: give the same, or "
                f"remove {path} to begin anew."
            )
    files = [target, ids_beside(target)][: len(state.written)]
    if not all(file.is_file() and file.stat().st_size >= size for file, size in zip(files, state.written)):
        raise CommandError(f"{target} is shorter than {path} says: remove that file to begin anew.")
    return state


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _locked(path: Path) -> FileIO:
    """The file to write, unbuffered (a block is one write), with a lock against a second run; what it holds stays."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CommandError(f"{path} is being written by another run: wait for it, or choose another file.") from None
    return file


def _stream(target: Path | BinaryIO) -> BinaryIO:
    assert not isinstance(target, Path)
    return target


def _write(file: BinaryIO | FileIO, data: bytes) -> None:
    """All of it: an unbuffered file may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


# the run


def blocks(rows: Iterator[Row], most_rows: int, first: int = 0) -> Iterator[Block]:
    """Rows in groups of at most `most_rows` and BLOCK_CHARACTERS; `first` is the first row's number.

    Raises CommandError for a row that can't be read, after the rows before it.
    """
    held: list[Row] = []
    characters = 0
    try:
        for row in rows:
            if held and (len(held) >= most_rows or characters + len(row.text) > BLOCK_CHARACTERS):
                yield Block(first, held)
                first, held, characters = first + len(held), [], 0
            held.append(row)
            characters += len(row.text)
    except CommandError:
        if held:
            yield Block(first, held)
        raise
    if held:
        yield Block(first, held)


async def run(
    embed: Embed,
    rows: Iterator[Row],
    output: Output,
    *,
    block_rows: int,
    in_flight: int,
    on_rows: Callable[[int], object] = lambda _: None,
) -> None:
    """Embed the rows, at most `in_flight` blocks at once, and write them in order.

    on_rows: told of rows that are written. Raises CommandError: which rows failed and why, and what is kept.
    """
    waiting: deque[tuple[Block, asyncio.Task[tuple[Vectors, int]]]] = deque()
    source: Iterator[Block] | None = blocks(rows, block_rows, output.state.place.rows)
    unread: CommandError | None = None
    try:
        while True:
            while source is not None and len(waiting) < in_flight:
                try:
                    block = next(source, None)
                except CommandError as error:  # said when the rows before it are written
                    block, unread = None, error
                if block is None:
                    source = None
                else:
                    texts = [row.text for row in block.rows]
                    waiting.append((block, asyncio.create_task(_called(embed, texts))))
            if not waiting:
                break
            block, task = waiting[0]
            output.add(block, *await _told(block, task))
            waiting.popleft()
            on_rows(len(block.rows))
        if unread is not None:
            raise unread
        output.finish()
    except CommandError as error:
        raise CommandError(f"{error} {output.kept()}".strip()) from error
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
        output.leave()


async def _called(embed: Embed, texts: Sequence[str]) -> tuple[Vectors, int]:
    """`embed(texts)`, called by the task: one that is cancelled before it begins leaves no coroutine behind."""
    return await embed(texts)


async def _told(block: Block, task: asyncio.Task[tuple[Vectors, int]]) -> tuple[Vectors, int]:
    try:
        return await task
    except VecgateError as error:
        raise CommandError(f"{str(error).rstrip('.')} (at {block.where}).") from error
