"""Those who do it wrong: bad input, clients that leave, sockets that sit there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from tests.soak.calls import Calls
from tests.soak.tally import Tally
from tests.soak.wire import Connection, Lost, Place, request

Bad = tuple[str, bytes, bool]
"""What is wrong, the bytes, and whether HTTP itself is broken, so that the server may also just close."""

DEEP = b"[" * 100_000
EMBED = "/v1/embeddings"


def bad_requests() -> list[Bad]:
    """One of every kind; each is answered 4xx."""

    def post(body: bytes, path: str = EMBED, **headers: str) -> bytes:
        return request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def input_of(value: bytes) -> bytes:
        return post(b'{"model": "m", "input": ' + value + b"}")

    bodies = {
        "no body": post(b""),
        "no JSON": post(b"paris"),
        "half JSON": post(b'{"model": "m", "input": "par'),
        "invalid UTF-8": input_of(b'"\xff\xfe"'),
        "lone surrogate": input_of(rb'"\ud800"'),
        "deep nesting": input_of(DEEP),
        "deep nesting aside": post(b'{"input": "w1", "user": ' + DEEP),
        "NaN": input_of(b"NaN"),
        "huge number": input_of(b"[1e999]"),
        "huge id": input_of(b"[99999999999999999999]"),
        "wrong type": input_of(b'{"a": 1}'),
        "mixed types": input_of(b'["w1", 2, null]'),
        "nothing in it": input_of(b"[]"),
        "3,000 inputs": input_of(b"[" + b'"w1",' * 2999 + b'"w1"]'),
        "100,000 inputs": input_of(b"[" + b'"w1",' * 99_999 + b'"w1"]'),
        "no width": post(b'{"input": "w1", "dimensions": 0}'),
        "control character": input_of(b'"a\x01"'),
        "rerank without documents": post(b'{"query": "w1"}', "/v2/rerank"),
        "200 native texts": post(b'{"texts": [' + b'"w1",' * 199 + b'"w1"]}', "/api/v1/embed"),
        "compressed": post(b"\x1f\x8b", content_encoding="gzip"),
        "foreign origin": post(b'{"input": "w1"}', origin="https://evil.example"),
        "foreign host": post(b'{"input": "w1"}', host="evil.example"),
        "over the limit": request("POST", EMBED, None, {"content-length": str(1 << 40)}),
        "wrong method": request("GET", EMBED),
        "nowhere": request("GET", "/nowhere/../../etc/passwd"),
    }
    broken = {
        "broken chunk": b"POST /embed HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
        "no HTTP": b"hello\r\n\r\n",
        "200 headers": request("GET", "/health", None, {f"x-{at}": "1" for at in range(200)}),
        "no host": b"GET /health HTTP/1.1\r\n\r\n",
        "two lengths": b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    }
    return [(name, data, name in broken) for name, data in (bodies | broken).items()]


async def bad_input(place: Place, tally: Tally, rng: random.Random, ended: Callable[[], bool]) -> None:
    """One bad request after the other, each on a socket of its own."""
    kinds = bad_requests()
    while not ended():
        name, data, broken = rng.choice(kinds)
        async with Connection(place) as one:
            try:
                answer = await one.ask(data)
            except Lost as lost:
                closed = broken and "answer" not in str(lost)
                tally.add("bad input", "rejected" if closed else "lost", why=f"{name}: {lost}")
                continue
        told = answer.body.lower()
        if 400 <= answer.status < 500 and b"traceback" not in told and b".py" not in told:
            tally.add("bad input", "rejected")
        else:
            tally.add("bad input", "wrong", why=f"{name}: {answer.status} {answer.body[:200]!r}")
        await asyncio.sleep(0.02)


async def leave(place: Place, tally: Tally, calls: Calls, rng: random.Random, ended: Callable[[], bool]) -> None:
    """Ask and go: in the middle of the body, while it waits or is computed, in the middle of the answer."""
    while not ended():
        with suppress(OSError, TimeoutError):  # the server may be the first to close
            async with asyncio.timeout(10), Connection(place) as one:
                await _leave(one, calls, rng)
        tally.add("left", "left")


async def _leave(one: Connection, calls: Calls, rng: random.Random) -> None:
    data = calls.openai(rng.choice((1, 32, 32, 32, 2048)), "float").data
    how = rng.randrange(4)
    await one.send(data[: len(data) // 2] if how == 0 else data)
    if how == 1:
        await asyncio.sleep(rng.uniform(0.001, 0.3))
    elif how == 2:
        await one.some(1000)
    if rng.random() < 0.5:
        one.reset()


async def sit(place: Place, rng: random.Random, ended: Callable[[], bool]) -> None:
    """A socket that says nothing, or a little now and then, until the server has had enough; and another one."""
    starts = (b"", b"POST /v1/embeddings HTTP/1.1\r\nhost: local", request("POST", EMBED, b" " * 5000)[:200])
    while not ended():
        with suppress(OSError):
            async with Connection(place) as one:
                start = rng.choice(starts)
                await one.send(start)
                while not ended() and not await _closed(one):
                    await one.send(b" " if start else b"")
        await asyncio.sleep(0.5)


async def _closed(one: Connection) -> bool:
    """Whether the server ends it within a second."""
    try:
        async with asyncio.timeout(1):
            return not await one.some(1 << 16)
    except TimeoutError:
        return False
