"""Rows of float32 as what goes over the wire: float lists, base64, and the four small integer forms.

Every protocol encodes through here. Knows numpy and JSON, no protocol and no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from vecgate.core import Vectors
from vecgate.errors import InvalidRequest

Encoding = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
Integers: TypeAlias = NDArray[np.int8] | NDArray[np.uint8]

_encoder = msgspec.json.Encoder()

SLICE_ROWS = 64
"""Rows encoded between two turns of the loop: under 2 ms for 1,024 float dimensions; neither library frees the GIL."""


def encode(vectors: Vectors, encoding: Encoding) -> list[Any]:
    """(N, D) rows as N values that msgspec.json.encode writes as they are to be sent."""
    return ENCODINGS[encoding](vectors)


def encode_float(vectors: Vectors) -> list[Any]:
    """Each number in its shortest text that reads back as the same float32."""
    return _arrays(np.ascontiguousarray(vectors, np.float32))


def encode_base64(vectors: Vectors) -> list[Any]:
    """Little-endian float32; msgspec writes `bytes` as base64, faster than a call of our own."""
    return [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]


def int8(vectors: Vectors) -> NDArray[np.int8]:
    """(N, D) in -127..127: round(127 x / max|x|), the maximum taken per row; a row of zeros stays zeros."""
    peak = np.abs(vectors).max(axis=1, keepdims=True)
    return np.rint(127.0 * (vectors / np.where(peak > 0.0, peak, 1.0))).astype(np.int8)


def uint8(vectors: Vectors) -> NDArray[np.uint8]:
    """(N, D) in 1..255: int8 + 128."""
    return (int8(vectors).astype(np.int16) + 128).astype(np.uint8)


def ubinary(vectors: Vectors) -> NDArray[np.uint8]:
    """(N, ceil(D / 8)): one bit a number, set where it is above 0, the first in the highest bit, zeros at the end."""
    return np.packbits(vectors > 0.0, axis=1)


def binary(vectors: Vectors) -> NDArray[np.int8]:
    """(N, ceil(D / 8)) in -128..127: ubinary - 128."""
    return (ubinary(vectors).astype(np.int16) - 128).astype(np.int8)


def check_packs(width: int, encodings: Collection[Encoding], param: str) -> None:
    """Raises InvalidRequest for bits of rows that fill no whole number of bytes."""
    if width % 8 and not {"binary", "ubinary"}.isdisjoint(encodings):
        message = f"binary and ubinary pack 8 numbers into one; {width} dimensions are not a multiple of 8."
        raise InvalidRequest(message, param)


async def join(vectors: Vectors, rows: Callable[[int, Vectors], list[Any]]) -> list[Any] | msgspec.Raw:
    """The JSON array of `rows(start, part)` over all parts of at most SLICE_ROWS rows; the loop turns between them.

    For msgspec's encoder: the list itself where it is one part, else its text. There is at least one row.
    """
    if len(vectors) <= SLICE_ROWS:
        return rows(0, vectors)
    body = bytearray()
    for start in range(0, len(vectors), SLICE_ROWS):
        if start:
            await asyncio.sleep(0)
        at = max(len(body) - 1, 0)  # on the last slice's closing bracket
        _encoder.encode_into(rows(start, vectors[start : start + SLICE_ROWS]), body, at)
        if start:
            body[at : at + 1] = b","
    return msgspec.Raw(body)


def _arrays(rows: NDArray[np.float32] | Integers) -> list[Any]:
    return [msgspec.Raw(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)) for row in rows]


ENCODINGS: dict[Encoding, Callable[[Vectors], list[Any]]] = {
    "float": encode_float,
    "base64": encode_base64,
    "int8": lambda vectors: _arrays(int8(vectors)),
    "uint8": lambda vectors: _arrays(uint8(vectors)),
    "binary": lambda vectors: _arrays(binary(vectors)),
    "ubinary": lambda vectors: _arrays(ubinary(vectors)),
}
