"""Clients that ask through the proxy while gateways die, and what became of each of their requests.

Knows bodies and rows; what happens to the servers meanwhile is scenes.py's.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import msgspec
import numpy as np

from tests.soak.wire import Answer, Connection, Lost, Place, request
from vecgate.core import Vectors

Outcome = Literal["right", "refused", "failed", "lost", "wrong"]
"""right: 200 and every row of its text. refused: 429 or 503 with Retry-After, by a gateway or by the proxy. failed: any
other status. lost: no whole answer. wrong: 200, and something else than the rows."""
NEAR = 1e-4
"""Of any number: room for other batches of a real model in float32 (1e-6, measured), none for another text's row."""
PATIENCE_S = 60.0
NEW_SOCKET = 0.1
"""Of the calls, come on a new connection."""
HEAD_BYTES = 2048
"""What a proxy's buffer has to hold beside the body: the head, and HAProxy's own reserve of 1 KiB."""


@dataclass(frozen=True, slots=True)
class Size:
    """A kind of request. share: of all. body: "whole" is as large as its texts make it, "full" as large as what the proxy
    can send again, "over" two to four times as large."""

    name: str
    share: float
    texts: int
    form: Literal["float", "base64"]
    body: Literal["whole", "full", "over"] = "whole"


SIZES = (
    Size("1 text", 60, 1, "float"),
    Size("1 text, base64", 15, 1, "base64"),
    Size("32 texts", 12, 32, "float"),
    Size("256 texts", 3, 256, "float"),
    Size("a full buffer", 4, 8, "base64", "full"),
    Size("over the buffer", 8, 8, "base64", "over"),
)
Rows = Mapping[str, Vectors]
"""Each text and the row that it must get, of length 1."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One request. over: larger than what the proxy can send again. why: of one that is not right."""

    begin_s: float
    end_s: float
    size: str
    over: bool
    outcome: Outcome
    why: str = ""


class _Row(msgspec.Struct):
    index: int
    embedding: str | list[float]


class _Rows(msgspec.Struct):
    data: list[_Row]


_rows = msgspec.json.Decoder(_Rows)


class Client:
    """buffer_bytes: the proxy's. think_s: the mean pause between an answer and the next request."""

    def __init__(self, place: Place, rows: Rows, buffer_bytes: int, think_s: float, seed: int) -> None:
        self._place, self._rows, self._think_s = place, rows, think_s
        self._texts = list(rows)
        self._buffer_bytes = buffer_bytes
        self._rng = random.Random(seed)

    async def run(self, shots: list[Shot], ended: Callable[[], bool]) -> None:
        async with Connection(self._place) as one:
            while not ended():
                shots.append(await self._shoot(one))
                if self._rng.random() < NEW_SOCKET:
                    one.close()
                await asyncio.sleep(self._rng.expovariate(1 / self._think_s))

    async def _shoot(self, one: Connection) -> Shot:
        (size,) = self._rng.choices(SIZES, [size.share for size in SIZES])
        texts = self._rng.sample(self._texts, size.texts)
        data = request("POST", "/v1/embeddings", self.body(size, texts))
        begin_s = monotonic()
        try:
            answer = await one.ask(data, PATIENCE_S)
            end_s = monotonic()
            outcome, why = judge(answer, texts, self._rows)
        except Lost as error:
            end_s, outcome, why = monotonic(), "lost", str(error)
        return Shot(begin_s, end_s, size.name, size.body == "over", outcome, why)

    def body(self, size: Size, texts: Sequence[str]) -> bytes:
        told = {"input": list(texts), "encoding_format": size.form}
        body = msgspec.json.encode(told)
        if size.body == "whole":
            return body
        wanted = self._buffer_bytes - HEAD_BYTES
        if size.body == "over":
            wanted = int(self._buffer_bytes * self._rng.uniform(2, 4))
        return msgspec.json.encode(told | {"user": "u" * max(0, wanted - len(body) - len(',"user":""'))})


def judge(answer: Answer, texts: Sequence[str], rows: Rows) -> tuple[Outcome, str]:
    """What became of it, and why where it is not right."""
    if answer.status in (429, 503) and answer.headers.get("retry-after", "").isdigit():
        return "refused", f"{answer.status} {answer.body[:100]!r}"
    if answer.status != 200:
        return "failed", f"{answer.status} {answer.body[:100]!r}"
    try:
        told = _rows.decode(answer.body).data
        found = np.array([_numbers(row.embedding) for row in told], np.float32)
    except (msgspec.DecodeError, ValueError) as error:
        return "wrong", f"{type(error).__name__} {error}"
    expected = np.stack([rows[text] for text in texts])
    if [row.index for row in told] != list(range(len(texts))) or found.shape != expected.shape:
        return "wrong", f"{found.shape} rows for {expected.shape}"
    off = np.abs(found - expected).max(axis=1)
    return ("right", "") if off.max() < NEAR else ("wrong", f"row {int(off.argmax())} is {off.max():.2g} off")


def _numbers(embedding: str | list[float]) -> Sequence[float] | Vectors:
    return np.frombuffer(base64.b64decode(embedding), "<f4") if isinstance(embedding, str) else embedding
