"""Plain ASGI around the app: every request's id, permission, size, time and end, so that no handler thinks of them.

The order is the point: what costs least comes first, and nothing is read of a body that will be refused (measured: a
burst shed before its bodies are read leaves /health at 46 ms, shed after parsing at 1.9 s). What may call is decided
in access.py. Knows no protocol: an error becomes bytes through `render`, by the path alone
until the app says in the record by what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from vecgate import access
from vecgate.core import Call, Record
from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    TooLarge,
    Unauthenticated,
    VecgateError,
)
from vecgate.flight import Flight, Pairs, Receive, Scope, Send, replay, reply, work
from vecgate.keys import Keys, offered_keys
from vecgate.logs import stack
from vecgate.rates import EVERYBODY, Exhausted, Rates, Spent
from vecgate.turns import SHARE_S, Turns

App = Callable[[Any, Any, Any], Awaitable[None]]
Render = Callable[[str, VecgateError], tuple[int, dict[str, str], bytes]]
"""Canonical path, error -> status, headers beside content-type and content-length, JSON body."""
OnRequest = Callable[[str, int, float, Record], None]
"""Method, status, seconds from the first byte of the request's head to the last of the answer, record."""
Trace = Callable[[str, int, float, Record, Pairs], str]
"""The same, and the headers that came -> the id of the request's trace."""
Shed = Literal["in_flight", "body_memory", "queue", "draining"] | Spent

log = logging.getLogger("vecgate.guard")
access_log = logging.getLogger("vecgate.access")

ANSWER_S = 1.0
"""What a drain grants to requests it has just cancelled, to answer 503."""
CLOSE = (b"connection", b"close")


class Guard:
    """The app with everything around it.

    routes: the exact paths that exist, so that a request refused early still has its route in log and metrics. A body
    may take `body_grace_s` plus its length over `body_bytes_per_s`, judged as it arrives, so that a silent sender is
    gone after the grace whatever length it announced. What is on its way of a refused body is read and thrown away
    after the answer, for `linger_s` at most: else granian closes the connection under a client that still writes, which
    may then never see the answer (measured). At a drain a proxy can't send again a body that it has passed on in part, so those
    that arrive within `drain_read_s` are answered. local: see access.Hosts. root: the path that may stand before any other, taken
    off. proxies: see access.Proxies. rate_limit, key_concurrency: of each key, in
    requests a minute and at once; what is public is not counted. waits_s: of work that goes before a body of so many bytes.
    watching: how many requests do no more than look on, which take nobody's room.
    """

    def __init__(
        self,
        app: App,
        *,
        render: Render,
        keys: Sequence[str] = (),
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        bind_host: str = "127.0.0.1",
        local: bool = False,
        root: str = "",
        proxies: Sequence[str] = (),
        rate_limit: int | None = None,
        key_concurrency: int | None = None,
        routes: Collection[str] = (),
        request_timeout_s: float = 300.0,
        body_limit_bytes: int = 32 * 2**20,
        body_memory_bytes: int = 512 * 2**20,
        max_in_flight: int = 4096,
        body_grace_s: float = 10.0,
        body_bytes_per_s: int = 64 * 2**10,
        linger_s: float = 2.0,
        drain_read_s: float = 1.0,
        share_s: float = SHARE_S,
        waits_s: Callable[[int], float] = lambda _: 0.0,
        watching: Callable[[], int] = lambda: 0,
        retry_after_s: Callable[[], int] = lambda: 1,
        on_request: OnRequest = lambda *_: None,
        on_shed: Callable[[Shed], None] = lambda _: None,
        trace: Trace | None = None,
    ) -> None:
        self.app = app
        self.render = render
        self.routes = frozenset(routes)
        self.request_timeout_s = request_timeout_s
        self.body_limit_bytes = body_limit_bytes
        self.body_memory_bytes = body_memory_bytes
        self.max_in_flight = max_in_flight
        self.body_grace_s = body_grace_s
        self.body_bytes_per_s = body_bytes_per_s
        self.linger_s = linger_s
        self.drain_read_s = drain_read_s
        self.waits_s = waits_s
        self.watching = watching
        self.retry_after_s = retry_after_s
        self.on_request = on_request
        self.on_shed = on_shed
        self.trace = trace
        self.draining = False
        self.body_bytes = 0
        self._keys = Keys.of(keys)
        self._rates = Rates(rate_limit, key_concurrency)
        self._hosts = access.Hosts.of(hosts, bind_host, local=local)
        self._origins = access.Origins.of(origins)
        self._root = root
        self._proxies = access.Proxies.of(proxies) if proxies else None
        self._flights: set[Flight] = set()
        self._turns = Turns(share_s)
        self._idle = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return len(self._flights) - self.watching()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # a websocket, which nothing here speaks
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def is_probe(self, scope: Scope) -> bool:
        """Before it has begun, as whatever path it is asked for."""
        return scope["type"] == "http" and access.is_probe(scope["method"], self._meant(scope["path"]))

    def _meant(self, asked: str) -> str:
        return access.canonical(access.below(self._root, asked) if self._root else asked)

    async def drain(self, timeout_s: float) -> None:
        """Refuse what is new, wait for the rest, for bodies on their way `drain_read_s`; what is left then answers 503."""
        self.draining = True
        read_s = min(self.drain_read_s, timeout_s)
        if await self._empty(read_s):
            return
        for flight in self._flights:
            if flight.reading:
                flight.end("draining")
        if not await self._empty(timeout_s - read_s):
            for flight in self._flights:
                flight.end("draining")
            await self._empty(ANSWER_S)

    async def _empty(self, timeout_s: float) -> bool:
        if self._flights:
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
        return not self._flights

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = access.headers_of(scope["headers"])
        flight = self._begin(scope, headers, send)
        try:
            if self._permit(flight, headers):
                await self._fly(flight, scope, receive)
            else:
                await reply(flight, 204, access.preflight(headers), b"")
        except VecgateError as error:
            await self._turn(flight)
            await self._refuse(flight, error)
        finally:
            self._note(flight, scope["headers"])
        if flight.unread:
            await self._linger(receive)

    async def _turn(self, flight: Flight) -> None:
        """Let a probe go before what is ready in great number: work that begins, and refusals."""
        if not access.is_probe(flight.method, flight.path):
            await self._turns.take()

    def _begin(self, scope: Scope, headers: access.Headers, send: Send) -> Flight:
        id_, asked, client = access.request_id(headers), scope["path"], scope.get("client")
        path = self._meant(asked)
        peer = client[0] or None if client else None  # granian's is empty over a Unix socket
        return Flight(
            id=id_,
            method=scope["method"],
            path=path,
            begun_s=asyncio.get_running_loop().time(),
            record=Record(Call(id_, self.request_timeout_s), path if path in self.routes else None),
            client=peer if self._proxies is None else self._proxies.client(peer, headers),
            server_send=send,
            headers=[(b"x-request-id", id_.encode()), (b"vary", b"origin")],
            unread=access.announces_body(headers),
        )

    def _permit(self, flight: Flight, headers: access.Headers) -> bool:
        """Whether the body may be read now; False for a preflight, which needs no more. Raises what refuses it."""
        probe = access.is_probe(flight.method, flight.path)
        if self.draining and not probe:
            self.on_shed("draining")
            raise _draining()
        host = self._hosts.check(headers)
        origin = self._origins.check(headers, host, self._hosts)
        if origin is not None:
            flight.headers += access.cors(origin)
            if access.is_preflight(flight.method, headers):
                return False
        flight.key = self._keys.find(headers) if self._keys.digests else None
        flight.record.trusted = not self._keys.digests or flight.key is not None
        public = access.is_public(flight.method, flight.path, origin is not None)
        if not flight.record.trusted and not public:
            # OpenAI's own words: by them LiteLLM knows a wrong key from any other bad request
            given = "Incorrect API key provided" if offered_keys(headers) else "An API key is needed"
            raise Unauthenticated(f"{given}: send it as 'Authorization: Bearer KEY', 'api-key' or 'x-api-key'.")
        access.check_encoding(headers)
        length = access.content_length(headers)
        if length > self.body_limit_bytes:
            raise TooLarge(f"The body has {length} bytes; the limit is {self.body_limit_bytes}.")
        if not probe:
            self._check_room(length)
            if flight.method == "POST":
                self._check_wait(length)
            if not public and self._rates.limited:
                self._meter(flight)
        return True

    def _meter(self, flight: Flight) -> None:
        """Take the request from its key's allowance, in whose terms the answer then speaks."""
        flight.metered = flight.key or EVERYBODY
        now_s = asyncio.get_running_loop().time()
        try:
            self._rates.take(flight.metered, now_s, self._wait_s)
        except Exhausted as error:
            self.on_shed(error.reason)
            raise
        finally:
            flight.headers += self._rates.told(flight.metered, now_s)

    def _check_room(self, length: int) -> None:
        if self.in_flight >= self.max_in_flight:
            raise self._shed("in_flight", f"{self.in_flight} requests are in flight, the most at once")
        if self.body_bytes and self.body_bytes + length > self.body_memory_bytes:
            raise self._shed("body_memory", f"Bodies in flight fill {self.body_memory_bytes} bytes, the most at once")

    def _check_wait(self, length: int) -> None:
        """Raises Overloaded where a request whose body has so many bytes would wait past its deadline, whatever model it
        is for; the engine asks again once it knows which."""
        wait_s = self.waits_s(length)
        if wait_s > self.request_timeout_s:
            told = f"{wait_s:.0f} s of work wait; a request may take {self.request_timeout_s:g} s (REQUEST_TIMEOUT)"
            raise self._shed("queue", told)

    def _shed(self, why: Shed, message: str) -> Overloaded:
        self.on_shed(why)
        wait_s = self._wait_s()
        return Overloaded(f"{message}; try again in {wait_s} s.", wait_s)

    def _wait_s(self) -> int:
        return max(1, min(60, self.retry_after_s()))

    async def _fly(self, flight: Flight, scope: Scope, receive: Receive) -> None:
        self._flights.add(flight)
        if flight.metered is not None:
            self._rates.began(flight.metered)
        try:
            async with asyncio.timeout(None) as flight.work:
                flight.due_s = self._body_due_s(flight)
                flight.watch_clock()
                await self._run(flight, scope, receive)
        except TimeoutError:  # from flight.end alone: what the app raises ends inside _run
            await self._answer_for(flight)
        finally:
            flight.work = None
            if flight.alarm is not None:
                flight.alarm.cancel()
            self.body_bytes -= flight.held_bytes
            self._flights.discard(flight)
            if flight.metered is not None:
                self._rates.ended(flight.metered)
            if not self._flights:
                self._idle.set()

    async def _run(self, flight: Flight, scope: Scope, receive: Receive) -> None:
        try:
            body = await self._read(flight, receive)
            await self._turn(flight)
            await self._hand_over(flight, scope, body, receive)
        except VecgateError as error:
            await self._refuse(flight, error)
        except Exception as error:  # noqa: BLE001  what nobody foresaw must not reach the client, nor end the server
            self._log_failure(flight, error)
            message = f"Internal error; the server's log has the details under request id {flight.id}."
            await self._refuse(flight, BackendFailed(message))

    async def _read(self, flight: Flight, receive: Receive) -> bytes | bytearray:
        """The whole body. Raises InvalidRequest where it breaks off, TooLarge and Overloaded where it grows too far."""
        body = bytearray()  # a list of parts would cost a client's one-byte chunks forty times their size
        while True:
            message = await receive()
            if message["type"] != "http.request":
                flight.unread = False
                raise InvalidRequest(f"The body ended early, after {len(body)} bytes.")
            part = message.get("body", b"")
            self._hold(flight, len(part))
            if not message.get("more_body"):
                break
            body += part
            flight.due_s = self._body_due_s(flight)
        flight.reading = flight.unread = False
        flight.due_s = flight.begun_s + self.request_timeout_s
        if not body:
            return bytes(part)
        body += part
        return body  # as it is: a copy of 32 MiB would hold the loop up for 20 ms

    def _hold(self, flight: Flight, size: int) -> None:
        flight.held_bytes += size
        self.body_bytes += size
        if flight.held_bytes > self.body_limit_bytes:
            raise TooLarge(f"The body has over {flight.held_bytes - 1} bytes; the limit is {self.body_limit_bytes}.")
        if flight.held_bytes < self.body_bytes and self.body_bytes > self.body_memory_bytes:
            raise self._shed("body_memory", f"Bodies in flight fill {self.body_memory_bytes} bytes, the most at once")

    def _body_due_s(self, flight: Flight) -> float:
        earned_s = self.body_grace_s + flight.held_bytes / self.body_bytes_per_s
        return flight.begun_s + min(earned_s, self.request_timeout_s)

    async def _hand_over(self, flight: Flight, scope: Scope, body: bytes | bytearray, receive: Receive) -> None:
        """The app, run while `receive` watches for the client's leaving, which cancels it."""
        left_s = flight.begun_s + self.request_timeout_s - asyncio.get_running_loop().time()
        flight.record.call = Call(flight.id, max(0.0, left_s))
        inner = {**scope, "vecgate": flight.record}
        if flight.path != scope["path"]:
            inner |= {"path": flight.path, "raw_path": access.raw(flight.path)}
        gone = asyncio.ensure_future(receive())  # granian gives a future, which create_task refuses
        gone.add_done_callback(flight.watch_client)
        try:
            await self.app(inner, replay(body, gone), flight.send)
        finally:
            gone.remove_done_callback(flight.watch_client)  # or the loop would run it, only to see a cancelled future
            gone.cancel()
        if flight.status is None and flight.ended is None:
            raise RuntimeError("the app returned without an answer")

    async def _answer_for(self, flight: Flight) -> None:
        """Answer a request whose work was cancelled."""
        if flight.ended == "left":
            return
        if flight.reading:
            flight.headers.append(CLOSE)
            flight.unread = False
        if flight.ended == "draining":
            error: VecgateError = _draining()
        elif flight.reading and flight.due_s < flight.begun_s + self.request_timeout_s:
            error = BodyTimeout(
                f"The body came too slowly: {flight.held_bytes} bytes so far; it may take {self.body_grace_s:g} s and "
                f"a second for every {self.body_bytes_per_s} bytes."
            )
        else:
            error = DeadlineExceeded(f"The request took longer than {self.request_timeout_s:g} s (REQUEST_TIMEOUT).")
        await self._refuse(flight, error)

    async def _refuse(self, flight: Flight, error: VecgateError) -> None:
        render = flight.record.render or partial(self.render, flight.path)
        status, headers, body = render(error)
        if flight.status is not None:  # the answer has begun: lines get one more, any other is broken off
            flight.status = status
            if flight.lines and not flight.sent:
                await flight.send({"type": "http.response.body", "body": body + b"\n"})
            return
        pairs = [
            (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()
        ]
        kind = [(b"content-type", b"application/json")] if body else []
        await reply(flight, status, [*kind, *pairs], body)

    async def _linger(self, receive: Receive) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.linger_s):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass

    def _note(self, flight: Flight, headers: Pairs) -> None:
        record, seconds = flight.record, asyncio.get_running_loop().time() - flight.begun_s
        status = flight.outcome()
        self.on_request(flight.method, status, seconds, record)
        traced = {} if self.trace is None else {"trace": self.trace(flight.method, status, seconds, record, headers)}
        if access_log.isEnabledFor(logging.INFO):
            whose = traced if flight.key is None else {"key": flight.key, **traced}
            fields = {"id": flight.id, "ms": round(seconds * 1e3, 2), "client": flight.client, **whose, **work(record)}
            parts = {"method": flight.method, "route": record.route or "-", "status": status}
            extra = {"parts": parts, "fields": fields}
            # As .info() would, without its walk up the stack for the caller's line.
            line = access_log.makeRecord(
                access_log.name, logging.INFO, __file__, 0, "%s %s %d", tuple(parts.values()), None, extra=extra
            )
            access_log.handle(line)

    def _log_failure(self, flight: Flight, error: Exception) -> None:
        fields = {"id": flight.id, "error": type(error).__name__, "stack": stack(error)}
        log.error("%s %s failed", flight.method, flight.record.route or "-", extra={"fields": fields})


def _draining() -> NotReady:
    return NotReady("The server is shutting down; try again in a few seconds.")
