"""A request's bytes -> a Struct, in bounded steps: what a large body would cost is counted before any of it is made.

msgspec and Python's collector stop every thread while they work, so that a thread alone would not keep the loop alive:
32 MiB of `[7],` are 8 million lists, 5 s. Knows msgspec, no route and no setting.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from vecgate.errors import InvalidRequest
from vecgate.ram import uncollected

T = TypeVar("T")

INLINE_BYTES = 64 * 2**10
"""Up to this size a body is decoded on the loop, 10 ms at worst; a larger one in a thread."""
MOST_VALUES = 2**20
"""Numbers and texts of one body, its token ids first of all: three times what OpenAI takes in one request."""
MOST_NODES = 2**17
"""Lists, objects and their fields of one body; each costs as much as ten numbers."""
STEP_BYTES = 2**20
"""Looked at between two moments at which other threads may run: about 5 ms."""


async def aside(gate: asyncio.Semaphore, work: Callable[[], T]) -> T:
    """`work()` in a thread; `gate` holds how many of those there are at once."""
    async with gate:
        return await asyncio.to_thread(work)


def check(raw: bytes) -> None:
    """Raises InvalidRequest where the body is not UTF-8 (msgspec does not look into what it skips or keeps raw), and
    where it holds more than may become objects."""
    at = 0
    try:
        while at < len(raw):
            _, used = codecs.utf_8_decode(raw[at : at + STEP_BYTES], "strict", at + STEP_BYTES >= len(raw))
            at += used
    except UnicodeDecodeError as error:
        message = f"The body is not valid JSON: byte {at + error.start} is not UTF-8 ({error.reason})."
        raise InvalidRequest(message) from error
    if len(raw) > INLINE_BYTES and not _within(*_at_most(raw)):
        values, nodes = _weight(raw)
        if values > MOST_VALUES:
            message = f"The body holds {values} values (token ids, texts and so on); the limit is {MOST_VALUES}."
            raise InvalidRequest(message)
        if nodes > MOST_NODES:
            raise InvalidRequest(f"The body holds {nodes} lists, objects and fields; the limit is {MOST_NODES}.")


def finder(keys: Sequence[str]) -> Callable[[bytes], int | None]:
    """What tells which of the keys a body holds, by its place; a single key needs no look.

    "outer.inner" is a key of an object within. One that holds null counts where no other is there. A body that is no
    JSON object holds the one that is written first in it, else the first: its decoder will say what is wrong.
    """
    if len(keys) < 2:
        return lambda _: 0
    names = [key.partition(".") for key in keys]
    outer, *inner = (_decoder_of(found) for found in ({key for key, _, _ in names}, *({name} for _, _, name in names)))

    def find(raw: bytes) -> int | None:
        null = None
        try:
            found = outer.decode(raw)
            for at, ((key, _, name), decoder) in enumerate(zip(names, inner)):
                value = getattr(found, key)
                if value is msgspec.UNSET or (name and not _holds(decoder, value, name)):
                    continue
                if bytes(memoryview(value)[:5]) != b"null":
                    return at
                null = at if null is None else null
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return written(keys, raw)
        return null

    return find


def written(keys: Sequence[str], raw: bytes) -> int:
    """The place of the key that is written first in what is no JSON, else 0: its error has a dialect, too."""
    if len(keys) == 1:
        return 0
    start = raw[:INLINE_BYTES]
    places = [start.find(b'"%b"' % key.rpartition(".")[2].encode()) for key in keys]
    return min(range(len(keys)), key=lambda at: (places[at] < 0, places[at], at))


def _decoder_of(names: set[str]) -> msgspec.json.Decoder[Any]:
    """Of these keys only; it makes no object of any other."""
    fields = [(name, msgspec.Raw, msgspec.UNSET) for name in names if name]
    return msgspec.json.Decoder(msgspec.defstruct("Keys", fields))


def _holds(decoder: msgspec.json.Decoder[Any], raw: msgspec.Raw, name: str) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{" and getattr(decoder.decode(raw), name) is not msgspec.UNSET


def decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """Raises InvalidRequest, naming the field where it is one that is wrong."""
    try:
        if len(raw) <= INLINE_BYTES:
            return decoder.decode(raw)
        with uncollected():  # looking for garbage took nine tenths of the time
            return decoder.decode(raw)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        name = path.rstrip("`").removeprefix("$").removeprefix(".") or None
        where = f" at {name!r}" if name else ""
        raise InvalidRequest(f"{message}{where}.", name or _missing(message)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error


def _missing(message: str) -> str | None:
    """The field of the body that is not there, which msgspec names in its sentence only."""
    return message.partition("missing required field `")[2].rstrip("`") or None


def _within(values: int, nodes: int) -> bool:
    return values <= MOST_VALUES and nodes <= MOST_NODES


def _at_most(raw: bytes) -> tuple[int, int]:
    """Values and nodes, were all of the body outside of texts; for most bodies that is few enough."""
    found = [0, 0]
    for at in range(0, len(raw), STEP_BYTES):
        part = raw[at : at + STEP_BYTES]
        found[0] += part.count(b",")
        found[1] += part.count(b":") + part.count(b"[") + part.count(b"{")
    return found[0] + 1, found[1]


def _weight(raw: bytes) -> tuple[int, int]:
    """Values (commas outside of texts, and one) and nodes, up to where the body stops being JSON, if it does."""
    commas = nodes = inside = 0
    rest = b""  # a backslash whose partner is in the next part
    for at in range(0, len(raw), STEP_BYTES):
        part = (rest + raw[at : at + STEP_BYTES]).replace(rb"\\", b"").replace(rb"\"", b"")
        rest = b"\\" if part.endswith(b"\\") else b""
        codes = np.frombuffer(part, np.uint8)
        texts = np.bitwise_xor.accumulate((codes == ord('"')).view(np.uint8)) ^ np.uint8(inside)
        inside = int(texts[-1]) if len(texts) else inside
        counts: Any = np.bincount(codes[texts == 0], minlength=128)
        commas += int(counts[ord(",")])
        nodes += int(counts[ord(":")] + counts[ord("[")] + counts[ord("{")])
    return commas + 1, nodes
