"""HTTP/1.1 as a load generator needs it: a kept connection, one request at a time, an answer in few microseconds.

What the client spends on a request is read as the server's latency, so it does as little as it can; each run measures how
much that is. Knows no route: requests are bytes made beforehand, answers are bytes.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from vecgate.errors import CommandError

MOST_HEAD_BYTES = 64 * 1024


class Broken(Exception):
    """No answer; `str` is the kind of failure: refused, closed, timeout or malformed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """headers: lower-case names; of a repeated one the last."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is. path: what stands before every route, without a slash at its end."""

    url: str
    host: str
    port: int
    tls: bool
    path: str
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Place:
        """Out of a base address, with or without /v1; raises CommandError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            parts, port = SplitResult("", "", "", "", ""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise CommandError(f"{url!a} is no address: give one like http://127.0.0.1:9000.")
        path = parts.path.rstrip("/").removesuffix("/v1")
        tls = parts.scheme == "https"
        return cls(
            f"{parts.scheme}://{parts.netloc}{path}", parts.hostname, port or (443 if tls else 80), tls, path, key
        )

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The whole request as it goes over the wire."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        head = [f"{method} {self.path}{path} HTTP/1.1", f"host: {shown}:{self.port}", "accept: application/json"]
        if self.key:
            head.append(f"authorization: Bearer {self.key}")
        if body:
            head += ["content-type: application/json", f"content-length: {len(body)}"]
        return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


class Connection:
    """One connection, opened at the first request and again when the server has closed it."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self._place = place
        self._timeout_s = timeout_s
        self._wire: Wire | None = None

    async def ask(self, request: bytes) -> Answer:
        """Raises Broken. A kept connection that the server closed in the meantime is no failure of the server's."""
        wire, fresh = self._wire, False
        if wire is None or wire.over:
            wire, fresh = await self._open(), True
        try:
            return await wire.ask(request, self._timeout_s)
        except Broken as error:
            if fresh or str(error) != "closed" or wire.heard:
                raise
        return await (await self._open()).ask(request, self._timeout_s)

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _open(self) -> Wire:
        place, loop = self._place, asyncio.get_running_loop()
        context = ssl.create_default_context() if place.tls else None
        try:
            async with asyncio.timeout(self._timeout_s):
                _, self._wire = await loop.create_connection(Wire, place.host, place.port, ssl=context)
        except TimeoutError:
            raise Broken("timeout") from None
        except OSError as error:
            raise Broken("refused") from error
        return self._wire


class Wire(asyncio.Protocol):
    """What arrives on one connection, put together to one answer after another.

    heard: whether a byte of the current answer has come. over: nothing more can be asked.
    """

    def __init__(self) -> None:
        self.over = False
        self.heard = False
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[Answer] | None = None
        self._forget()

    def _forget(self) -> None:
        self._data = bytearray()
        self._status = 0
        self._headers: dict[str, str] = {}
        self._begin = self._end = -1  # of the body in the data; an unknown end stays below 0
        self._chunked = False

    async def ask(self, request: bytes, timeout_s: float) -> Answer:
        assert self._transport is not None
        self._forget()
        self.heard = False
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        alarm = self._loop.call_later(timeout_s, self._fail, "timeout")
        self._transport.write(request)
        try:
            return await waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            alarm.cancel()
            self._waiter = None

    def close(self) -> None:
        self.over = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status and self._end < 0 and not self._chunked:
            self._done(bytes(self._data[self._begin :]))  # a body without a length ends with its connection
        self._fail("closed")

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self._fail("malformed")  # nobody asked for it
            return
        self.heard = True
        self._data += data
        try:
            self._read()
        except (ValueError, UnicodeDecodeError):
            self._fail("malformed")

    def _read(self) -> None:
        while self._begin < 0:
            stop = self._data.find(b"\r\n\r\n")
            if stop < 0:
                if len(self._data) > MOST_HEAD_BYTES:
                    raise ValueError("a head without end")
                return
            self._read_head(bytes(self._data[:stop]).decode("latin-1"), stop + 4)
        if self._chunked:
            self._read_chunks()
        elif 0 <= self._end <= len(self._data):
            self._done(bytes(self._data[self._begin : self._end]))

    def _read_head(self, head: str, begin: int) -> None:
        first, *lines = head.split("\r\n")
        version, status, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(first)
        self._status = int(status)
        if 100 <= self._status < 200:
            del self._data[:begin]
            return
        pairs = (line.partition(":") for line in lines)
        self._headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._begin = begin
        self._chunked = "chunked" in self._headers.get("transfer-encoding", "").lower()
        if self._status in (204, 304):
            self._end = begin
        elif "content-length" in self._headers:
            self._end = begin + int(self._headers["content-length"])

    def _read_chunks(self) -> None:
        """The body, once all of its chunks are there."""
        at, parts = self._begin, list[bytes]()
        while (stop := self._data.find(b"\r\n", at)) >= 0:
            size = int(self._data[at:stop].split(b";")[0], 16)
            begin, end = stop + 2, stop + 2 + size
            if size == 0:
                if self._data.find(b"\r\n\r\n", stop) >= 0:  # trailers end as a head does
                    self._done(b"".join(parts))
                return
            if len(self._data) < end + 2:
                return
            parts.append(bytes(self._data[begin:end]))
            at = end + 2

    def _done(self, body: bytes) -> None:
        answer = Answer(self._status, self._headers, body)
        if self._headers.get("connection", "").lower() == "close":
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _fail(self, kind: str) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Broken(kind))
