"""The whole app over the fake backend on a socket, in this process: a test sees both ends, and the backend's own counters."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from tests import small
from tests.live import free_port
from vecgate import config
from vecgate.app import build
from vecgate.backends import fake
from vecgate.guard import Guard
from vecgate.server import BACKLOG, BACKPRESSURE

FILES = 8192
"""Both ends of a burst are this process's."""


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Near:
    port: int
    guard: Guard
    script: fake.Script

    async def connect(self, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"".join(parts))
        await writer.drain()
        return reader, writer

    async def post(self, path: str, body: Any, *, length: int | None = None) -> Answered:
        """length: what is announced instead of the body's own."""
        data = json.dumps(body).encode()
        return await self.answer(*await self.connect(head(path, len(data) if length is None else length), data))

    async def get(self, path: str) -> Answered:
        return await self.answer(*await self.connect(b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % path.encode()))

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answered:
        try:
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        return Answered(int(status.split()[1]), headers, body)

    async def metric(self, line: str) -> float:
        """The value behind a metric's name and labels; 0 where it is not there yet."""
        found = [one for one in (await self.get("/metrics")).body.decode().splitlines() if one.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    async def waiting(self, rows: int) -> None:
        """Until so many rows wait for the device."""
        while (await self.get("/health")).json["queue"]["items"] != rows:
            pass


async def until(so: Callable[[], bool]) -> None:
    while not so():  # noqa: ASYNC110 - the server has no event for what only a test asks
        await asyncio.sleep(0.002)


def head(path: str, length: int | None) -> bytes:
    """Of a POST; None: chunked."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{size}\r\n\r\n".encode()


@asynccontextmanager
async def near(cwd: Path, script: fake.Script, **names: str) -> AsyncIterator[Near]:
    """Ready; the script may be changed from then on. Ends without waiting for what is held."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
    model = str(small.folder(cwd / "small"))
    given = {"BACKEND": "fake", "MODEL_NAME": model, "VECGATE_CACHE_DIR": str(cwd / "cache"), **names}
    with patch.object(fake, "load", partial(fake.load, script=script)):
        guard, _ = build(config.load({}, given, cwd))
        made = Near(free_port(), guard, script)
        server = Server(
            guard,
            address="127.0.0.1",
            port=made.port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=BACKPRESSURE,
            log_enabled=False,
        )
        serving = asyncio.create_task(server.serve())
        try:
            await _ready(made)
            yield made
        finally:
            if script.hold is not None:
                script.hold.set()
            await guard.drain(0.0)
            server.stop()  # type: ignore[no-untyped-call]
            await serving


async def _ready(made: Near) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            if (await made.get("/health/ready")).status == 200:
                return
        await asyncio.sleep(0.01)
