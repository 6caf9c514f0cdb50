"""What stands between Litestar and the routes: `mount` makes one handler a path out of all routes that share it.

Reads a body, finds whose it is, and sends the answer or the error in that route's dialect. No protocol imports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
from litestar.handlers import HTTPRouteHandler, asgi
from litestar.types import ASGIApp, ExceptionHandlersMap, Method, Receive, Scope, Send

from vecgate.core import Applied, Call, Record
from vecgate.errors import InvalidRequest, MethodNotAllowed, VecgateError
from vecgate.protocols import Answer, Ask, Part, Render, Route, Site, bodies, cuts, expecting, headers_of, shown
from vecgate.traits import Engine

TOLD = frozenset((b"accept", b"if-none-match", b"x-vecgate-space"))
"""The headers that say something to a route."""
METHODS: list[Method] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""What reaches an endpoint, which answers 405 itself; others end at Litestar's own 405."""


def mount(table: Iterable[Route], engine: Engine, site: Site) -> list[Any]:
    """One Litestar ASGI handler per path, each holding the routes of that path by method."""
    by_path: dict[str, list[Route]] = {}
    for route in table:
        for path in route.paths:
            by_path.setdefault(path, []).append(route)
    gate = asyncio.Semaphore(1)  # large bodies at once: each stops all other threads for a while
    return [_handler(path, _endpoint(path, found, engine, site, gate)) for path, found in by_path.items()]


class _Fixed(asgi):
    """Litestar would merge the exception handlers of all layers anew for each request."""

    _merged: ExceptionHandlersMap | None = None

    def resolve_exception_handlers(self) -> ExceptionHandlersMap:
        if self._merged is None:
            self._merged = super().resolve_exception_handlers()
        return self._merged


def _handler(path: str, endpoint: ASGIApp) -> Any:
    """A path with parameters becomes an HTTP handler: Litestar 2.25 raises KeyError for them in an ASGI handler."""
    if "{" not in path:
        return _Fixed(path, copy_scope=False)(endpoint)

    async def whole() -> ASGIApp:
        return endpoint

    return HTTPRouteHandler(path, http_method=METHODS)(whole)


def _endpoint(template: str, found: list[Route], engine: Engine, site: Site, gate: asyncio.Semaphore) -> Any:
    bodied = [route for route in found if route.body is not None]
    keys = [str(route.key) for route in bodied]
    find = bodies.finder(keys)
    speaker = next((route for route in bodied if route.neither), (bodied or found)[0])
    decoders = {route.key: msgspec.json.Decoder(route.body) for route in bodied}
    allowed = tuple(dict.fromkeys(method for route in found for method in (route.method, *_implied(route.method))))
    first: dict[str, Route] = {route.method: route for route in reversed(found)}

    def read(record: Record, raw: bytes) -> tuple[Route, Any]:
        """Whose body it is, and the body."""
        record.render = bodied[bodies.written(keys, raw)].render  # in whose dialect it is told that it can't be read
        bodies.check(raw)
        at = find(raw)
        route = speaker if at is None else bodied[at]
        record.render = route.render
        if at is None:
            raise InvalidRequest(f"The body must hold one of: {', '.join(keys)}.")
        return route, bodies.decode(decoders[route.key], raw)

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["vecgate"]  # type: ignore[typeddict-item]
        record.route = template
        asked: str = scope["method"]  # type: ignore[typeddict-item]
        method = "GET" if asked == "HEAD" else asked
        route = first.get(method, found[0])
        try:
            if method not in first:
                raise MethodNotAllowed(f"{asked} is not offered here; use {' or '.join(allowed)}.", allowed)
            body = None
            if route.body is not None:
                raw = await _read(receive)
                if len(raw) <= bodies.INLINE_BYTES:
                    route, body = read(record, raw)
                else:
                    route, body = await bodies.aside(gate, partial(read, record, raw))
            told = _told(scope)
            call = _call(record.call, told.get(b"x-vecgate-space"), body)
            accept, known = told.get(b"accept", ""), told.get(b"if-none-match", "")
            ask = Ask(engine, site, call, body, _parameters(scope), record.trusted, accept, known)
            answer = await route.handle(ask)
            if isinstance(answer.body, bytes):
                await _send(send, answer, answer.body, record, with_body=asked != "HEAD")
            elif asked == "HEAD":
                await answer.body.aclose()
                await _send(send, answer, b"", record, with_body=False)
            else:
                await _stream(send, answer, answer.body, record, route.render)
        except VecgateError as error:
            status, headers, rendered = (record.render or route.render)(error)
            answer = Answer(rendered, status=status, headers=headers)
            await _send(send, answer, rendered, record, with_body=asked != "HEAD")

    return endpoint


def _implied(method: str) -> tuple[str, ...]:
    return ("HEAD",) if method == "GET" else ()


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise InvalidRequest("The body ended early.")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _parameters(scope: Scope) -> dict[str, str]:
    found = scope.get("path_params")
    return {name: str(value) for name, value in found.items()} if found else {}


def _told(scope: Scope) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for name, raw in scope["headers"]:
        if name in TOLD:
            value = raw.decode("latin-1")
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _call(call: Call, header: str | None, body: Any) -> Call:
    """With the vector space that the request expects, by its header or by its body."""
    field = getattr(body, "space", None)
    if header is not None and field is not None and header != field:
        raise InvalidRequest(f"space is {shown(field)}, and the header x-vecgate-space says {shown(header)}.", "space")
    return expecting(call, header if field is None else field)


async def _send(send: Send, answer: Answer, body: bytes, record: Record, *, with_body: bool) -> None:
    headers = {"content-type": answer.media_type}
    if answer.status != 304:
        headers["content-length"] = str(len(body))
    headers.update(answer.headers)
    if answer.applied is not None:
        headers.update(headers_of(answer.applied, answer.encode_s))
        _note(record, answer.applied)
        record.encode_s = answer.encode_s
    await _start(send, answer.status, headers)
    await send({"type": "http.response.body", "body": body if with_body else b"", "more_body": False})


async def _stream(
    send: Send, answer: Answer, parts: AsyncGenerator[Part, None], record: Record, render: Render
) -> None:
    """Send the body part by part, beginning when there is a first one."""
    async with aclosing(parts):
        part = await anext(parts, None)
        await _start(send, answer.status, {"content-type": answer.media_type, **answer.headers})
        while part is not None:
            if part.applied is not None:
                _note(record, part.applied)
            await send({"type": "http.response.body", "body": part.body, "more_body": True})
            try:
                part = await anext(parts, None)
            except VecgateError as error:
                part = Part(render(error)[2] + b"\n")
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


def _note(record: Record, applied: Applied) -> None:
    """Add what was done; parts of one answer wait and are computed side by side, so the longest time counts."""
    record.model = record.model or applied.model
    record.inputs += len(applied.tokens)
    record.tokens += sum(applied.tokens) + applied.query_tokens
    record.truncated += len(cuts(applied))
    record.queue_s = max(record.queue_s, applied.queue_s)
    record.tokenize_s += applied.tokenize_s
    record.forward_s = max(record.forward_s, applied.forward_s)
