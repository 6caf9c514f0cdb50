"""What a request costs in this process, without socket and model: the whole app over a bare handler that does as much work.

`python -m tests.cost` prints microseconds and ratios, in turns: bare (decode the body, encode one row of 384), the Litestar
route alone, and the app with its guard, without and with the access log. Ratios are what to trust.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import msgspec
import numpy as np
import orjson

from tests.protocols.stub import StubEngine
from vecgate import config
from vecgate.app import create_app
from vecgate.core import Applied, Call, Embeddings, Record
from vecgate.guard import Guard

DIMENSIONS = 384
ROW = np.random.default_rng(0).standard_normal((1, DIMENSIONS)).astype(np.float32)
ROW /= np.linalg.norm(ROW)
ROUNDS, REQUESTS = 9, 400
App = Callable[[Any, Any, Any], Awaitable[None]]


class Null(StubEngine):
    """Every row is ROW, at once."""

    async def embed(self, *_: Any, **__: Any) -> Embeddings:
        return Embeddings(ROW, Applied(self.name, None, (8,), (8,), 0.0, 0.0, 0.0))


class Body(msgspec.Struct):
    """As much of OpenAI's request as the app reads."""

    input: str | list[str | int | list[int]]
    model: str
    encoding_format: str = "float"
    dimensions: int | None = None
    user: str | None = None


class Item(msgspec.Struct):
    index: int
    embedding: msgspec.Raw | bytes
    object: str = "embedding"


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Answer(msgspec.Struct):
    data: list[Item]
    model: str
    usage: Usage
    object: str = "list"


DECODER, ENCODER = msgspec.json.Decoder(Body), msgspec.json.Encoder()


async def bare(_scope: Any, receive: Any, send: Any) -> None:
    """The least that answers: nothing checked, nothing counted."""
    body = DECODER.decode((await receive())["body"])
    as_text = body.encoding_format == "float"
    row = msgspec.Raw(orjson.dumps(ROW[0], option=orjson.OPT_SERIALIZE_NUMPY)) if as_text else ROW[0].tobytes()
    content = ENCODER.encode(Answer([Item(0, row)], body.model, Usage(8, 8)))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@dataclass(slots=True)
class Client:
    """Asks an app again and again; the body is there at once and the client never leaves."""

    encoding: str
    sent: int = 0

    async def ask(self, app: App, *, inner: bool = False) -> None:
        body = msgspec.json.encode({"input": "what is it?", "model": "stub", "encoding_format": self.encoding})
        loop = asyncio.get_running_loop()
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/embeddings",
            "raw_path": b"/v1/embeddings",
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"127.0.0.1:9000"),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
            ],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 9000),
            "state": {},
        }
        if inner:
            scope["vecgate"] = Record(Call("id"))
        asked = False

        def receive() -> Awaitable[Any]:
            nonlocal asked
            answer: asyncio.Future[Any] = loop.create_future()
            if not asked:
                answer.set_result({"type": "http.request", "body": body, "more_body": False})
            asked = True
            return answer

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] != 200:
                raise AssertionError(message)
            self.sent += len(message.get("body", b""))

        await app(scope, receive, send)


async def seconds(client: Client, asked: App, requests: int, *, inner: bool = False) -> float:
    """Of CPU, of one request: what other processes do does not count."""
    begin_s = thread_time()
    for _ in range(requests):
        await client.ask(asked, inner=inner)
    return (thread_time() - begin_s) / requests


def app() -> Guard:
    """The whole app over Null, as `vecgate serve` joins it."""
    return create_app(config.load({}, {}, Path("/nonexistent")), Null())


async def costs(encoding: str, rounds: int = ROUNDS, requests: int = REQUESTS) -> dict[str, list[float]]:
    """Seconds a request of each round, by what was asked."""
    whole = app()
    client, log = Client(encoding), logging.getLogger("vecgate.access")
    log.addHandler(logging.NullHandler())
    propagates, level = log.propagate, log.level
    found: dict[str, list[float]] = {"bare": [], "route": [], "app": [], "app and access log": []}
    try:
        log.propagate = False
        for _ in range(rounds):
            log.setLevel(logging.WARNING)
            found["bare"].append(await seconds(client, bare, requests))
            found["route"].append(await seconds(client, whole.app, requests, inner=True))
            found["app"].append(await seconds(client, whole, requests))
            log.setLevel(logging.INFO)
            found["app and access log"].append(await seconds(client, whole, requests))
    finally:
        log.propagate, log.level = propagates, level
    return found


def ratio(found: dict[str, list[float]], what: str) -> float:
    """The median over the rounds, of each to the bare handler beside it."""
    return median(one / base for one, base in zip(found[what], found["bare"]))


def main(_argv: Sequence[str]) -> int:
    for encoding in ("float", "base64"):
        found = asyncio.run(costs(encoding))
        for what, times in found.items():
            print(f"{encoding:7} {what:20} {1e6 * min(times):7.1f} us  {ratio(found, what):5.2f} x bare")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
