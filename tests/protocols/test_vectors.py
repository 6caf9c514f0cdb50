"""Every encoding read back and compared with the row it came from."""

import asyncio
import base64
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vecgate.core import Vectors
from vecgate.protocols import vectors as v

NUMBERS = st.floats(-1e6, 1e6, width=32, allow_nan=False)
ROWS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=NUMBERS)


def unit_rows(n: int, width: int) -> Vectors:
    rows = np.random.default_rng(7).standard_normal((n, width)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def sent(rows: Vectors, encoding: v.Encoding) -> Any:
    return msgspec.json.decode(msgspec.json.encode(v.encode(rows, encoding)))


@given(ROWS)
def test_float_reads_back_as_the_same_float32(rows: Vectors) -> None:
    np.testing.assert_array_equal(np.asarray(sent(rows, "float"), np.float32), rows)


@given(ROWS)
def test_base64_is_little_endian_float32(rows: Vectors) -> None:
    read = [np.frombuffer(base64.b64decode(text, validate=True), "<f4") for text in sent(rows, "base64")]
    np.testing.assert_array_equal(np.stack(read), rows)


def test_float_is_the_shortest_float32_text() -> None:
    rows = np.array([[0.1, -0.020249814, 1e-8]], np.float32)
    assert msgspec.json.encode(v.encode(rows, "float")) == b"[[0.1,-0.020249814,1e-8]]"


@pytest.mark.parametrize("encoding", v.ENCODINGS)
def test_a_view_that_is_not_contiguous_is_encoded_too(encoding: v.Encoding) -> None:
    rows = unit_rows(6, 32)
    assert sent(rows[::2, ::2], encoding) == sent(rows[::2, ::2].copy(), encoding)


def test_int8_is_the_definition_number_by_number() -> None:
    rows = np.array([[0.5, -0.25, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.3, 2.0]], np.float32)
    assert sent(rows, "int8") == [[127, -64, 25, 0], [0, 0, 0, 0], [-127, 64, 19, 127]]


def test_uint8_is_int8_plus_128() -> None:
    rows = unit_rows(4, 48)
    np.testing.assert_array_equal(np.array(sent(rows, "uint8")), np.array(sent(rows, "int8")) + 128)


@given(ROWS)
def test_integers_stay_in_their_range(rows: Vectors) -> None:
    signed, shifted = np.array(sent(rows, "int8")), np.array(sent(rows, "uint8"))
    assert -127 <= signed.min() <= signed.max() <= 127
    assert 1 <= shifted.min() <= shifted.max() <= 255


def test_int8_keeps_the_direction() -> None:
    rows = unit_rows(50, 384)
    decoded = np.array(sent(rows, "int8"), np.float64)
    cosines = (decoded * rows).sum(axis=1) / np.linalg.norm(decoded, axis=1)
    assert cosines.min() >= 0.999


def test_ubinary_holds_the_signs_first_number_in_the_highest_bit() -> None:
    rows = np.array([[1, -1, 1, 1, 0, -2, 3, -4, 5, 0]], np.float32)
    assert sent(rows, "ubinary") == [[0b10110010, 0b10000000]]
    assert sent(rows, "binary") == [[0b10110010 - 128, 0]]


@given(ROWS)
def test_binary_unpacks_to_the_signs(rows: Vectors) -> None:
    packed = (np.array(sent(rows, "binary")) + 128).astype(np.uint8)
    bits = np.unpackbits(packed, axis=1, count=rows.shape[1]).astype(bool)
    np.testing.assert_array_equal(bits, rows > 0)


@pytest.mark.parametrize("n", [1, 64, 65, 200])
def test_join_is_one_array_of_all_rows_in_order(n: int) -> None:
    rows = unit_rows(n, 3)
    body = asyncio.run(v.join(rows, lambda start, part: list(range(start, start + len(part)))))
    assert msgspec.json.decode(msgspec.json.encode(body)) == list(range(n))


def test_join_lets_the_loop_turn_between_slices() -> None:
    async def turns() -> int:
        seen = 0

        def count(start: int, part: Vectors) -> list[Any]:
            sizes.append(len(part))
            return v.encode(part, "float")

        task = asyncio.create_task(v.join(unit_rows(300, 4), count))
        while not task.done():
            await asyncio.sleep(0)
            seen += 1
        return seen

    sizes: list[int] = []
    assert asyncio.run(turns()) >= 5
    assert max(sizes) <= v.SLICE_ROWS
    assert sum(sizes) == 300
