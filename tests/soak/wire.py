"""HTTP/1.1 by hand over asyncio's streams: a client that can be as well or as badly behaved as the soak needs it.

Knows no route. A library would mend, hide or forbid what is to be seen and done here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_S = 320.0
"""An answer that takes longer is lost; over the server's REQUEST_TIMEOUT, so that it has its say."""


class Lost(Exception):
    """No whole answer came: refused, reset, cut off, or too late."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Place:
    host: str
    port: int


def request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a proper request."""
    lines = {"host": "localhost", **(headers or {})}
    if body is not None:
        lines = {"content-type": "application/json", "content-length": str(len(body))} | lines
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")


class Connection:
    """`async with Connection(place) as one:` requests one after the other, on one socket while the server keeps it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def reset(self) -> None:
        """Leave without a goodbye: RST instead of FIN."""
        if self._writer is not None:
            found: socket.socket = self._writer.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
            self._writer = None

    async def send(self, data: bytes) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._place.host, self._place.port)
        self._writer.write(data)
        await self._writer.drain()

    async def some(self, count: int) -> bytes:
        return await self._reader.read(count)

    async def ask(self, data: bytes, patience_s: float = PATIENCE_S) -> Answer:
        """The answer to a request's bytes; raises Lost."""
        try:
            async with asyncio.timeout(patience_s):
                return await self._ask(data)
        except TimeoutError as error:
            self.reset()
            raise Lost(f"no answer in {patience_s:g} s") from error
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error

    async def _ask(self, data: bytes) -> Answer:
        await self.send(data[:1])
        sending = asyncio.ensure_future(self.send(data[1:]))  # the answer may come before a long body is sent
        try:
            answer = await self._answer(bodiless=data.startswith(b"HEAD "))
        finally:
            done = sending.done()
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()  # what the server did not want to read is no loss
        if not done or answer.headers.get("connection") == "close":
            self.close()
        return answer

    async def _answer(self, bodiless: bool) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        if bodiless or status == 204:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, await self._chunks())
        return Answer(status, headers, await self._reader.readexactly(int(headers["content-length"])))

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readline(), 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readline()
        return b"".join(parts)
