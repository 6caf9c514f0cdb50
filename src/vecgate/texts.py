"""Texts from files, pipes and arguments: one a line, or one JSON object a line, read without holding more than a line.

Knows no model and no output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from vecgate.errors import CommandError, ConfigError

Form = Literal["txt", "jsonl"]

MOST_LINE_BYTES = 64 * 1024 * 1024
"""A longer line is a file of another kind, and would end the promise of constant memory."""
ENDINGS: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "txt"}
BOM = b"\xef\xbb\xbf"

KINDS = {b"[": "a list", b"{": "an object", b"n": "null", b"t": "true", b"f": "false"}

_string = msgspec.json.Decoder(str)
_line: msgspec.json.Decoder[str | dict[str, msgspec.Raw]] = msgspec.json.Decoder(str | dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Fields:
    """Where a JSON line has its text and its id."""

    text: str = "text"
    id: str = "id"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file has been read: rows and lines before this place, and its byte."""

    rows: int = 0
    lines: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One text. id: its JSON as it stood there, or the row's number from 0. after: the place behind it. where: for
    messages."""

    id: bytes
    text: str
    after: Place
    where: str


@dataclass(frozen=True, slots=True)
class Input:
    """What there is to read, as far as it was measured (None: not, it can be read only once)."""

    bytes: int | None = None
    sha256: str | None = None
    rows: int | None = None


def form_of(path: Path) -> Form:
    """By the file's ending; what is no .jsonl is lines of text. Raises ConfigError for a .json file."""
    if path.suffix.lower() == ".json":
        raise ConfigError(f"{path} ends in .json: give one JSON object a line in a .jsonl file, or say --input-format.")
    return ENDINGS.get(path.suffix.lower(), "txt")


def of(texts: Sequence[str]) -> Iterator[Row]:
    """Rows of texts that are already here; raises CommandError for one that is no text."""
    for index, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CommandError(f"Text {index + 1} is not UTF-8: give it as UTF-8, or in a file.") from None
        yield Row(str(index).encode(), text, Place(index + 1), f"text {index + 1}")


def read(stream: BinaryIO, name: str, form: Form, fields: Fields, start: Place = Place()) -> Iterator[Row]:
    """The rows from `start` on, where the stream already stands; raises CommandError naming the line."""
    rows, lines, offset = start.rows, start.lines, start.offset
    for line in _lines(stream, name, lines):
        lines, offset = lines + 1, offset + len(line)
        if lines == 1:
            line = line.removeprefix(BOM)
        if form == "jsonl" and not line.strip():
            continue
        where = f"line {lines} of {name}"
        own, text = _object(line, fields, where) if form == "jsonl" else (None, _text(line, where))
        yield Row(str(rows).encode() if own is None else own, text, Place(rows + 1, lines, offset), where)
        rows += 1


def measure(stream: BinaryIO, name: str, form: Form) -> Input:
    """Read it to its end, for its size, its hash and its rows, and go back to its start."""
    size, rows, digest = 0, 0, sha256()
    for line in _lines(stream, name, 0):
        size += len(line)
        digest.update(line)
        rows += form == "txt" or line.removeprefix(BOM).strip() != b""
    stream.seek(0)
    return Input(size, digest.hexdigest(), rows)


def _lines(stream: BinaryIO, name: str, before: int) -> Iterator[bytes]:
    """The lines, ends included. before: how many come before the first one."""
    while line := stream.readline(MOST_LINE_BYTES + 1):
        before += 1
        if len(line) > MOST_LINE_BYTES:
            raise CommandError(
                f"line {before} of {name} is longer than {MOST_LINE_BYTES >> 20} MiB: split its text into several lines."
            )
        yield line


def _text(line: bytes, where: str) -> str:
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise CommandError(f"{where} is not UTF-8 at byte {error.start}: convert the file to UTF-8.") from None


def _object(line: bytes, fields: Fields, where: str) -> tuple[bytes | None, str]:
    """(id or None, text) of one JSON line, which may also be a bare string."""
    try:
        found = _line.decode(_text(line, where))
    except (msgspec.DecodeError, RecursionError) as error:
        raise CommandError(f"{where} is no JSON object and no JSON string: {error}.") from None
    if isinstance(found, str):
        return None, found
    if fields.text not in found:
        there = ", ".join(sorted(found))[:200] or "none at all"
        raise CommandError(f"{where} has no field {fields.text!r}, but {there}; --text-field names the one to read.")
    raw, own = bytes(found[fields.text]), bytes(found.get(fields.id, b"null"))
    try:
        return (None if own == b"null" else own), _string.decode(raw)
    except msgspec.DecodeError:
        kind = KINDS.get(raw[:1], "a number")
        raise CommandError(f"{where}: the field {fields.text!r} is {kind}, not a text.") from None
