"""What goes over the wire between a client and the server, and how it is kept: masked, folded, hashed.

Knows no client, no server and no file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Headers = tuple[tuple[str, str], ...]
Rules = tuple[tuple[re.Pattern[str], str], ...]

HOST = "<host>"
LENGTH = "<length>"

_ALL = re.compile(r".+", re.DOTALL)
HEADER_MASKS: dict[str, Rules] = {
    "host": ((_ALL, HOST),),
    "user-agent": (
        (re.compile(r"\([^)]*\)"), "(<machine>)"),
        (re.compile(r"(?i)(?<![\w-])(python|node|node\.js|torch)/v?\d[\w.+]*"), r"\1/<version>"),
    ),
    "x-stainless-arch": ((_ALL, "<machine>"),),
    "x-stainless-os": ((_ALL, "<machine>"),),
    "x-stainless-runtime-version": ((_ALL, "<version>"),),
    "x-fern-platform": ((_ALL, "<machine>"),),
    "x-fern-runtime-version": ((_ALL, "<version>"),),
    "x-amzn-trace-id": ((_ALL, "<id>"),),
    "date": ((_ALL, "<time>"),),
    "x-request-id": ((_ALL, "<id>"),),
    "server-timing": ((re.compile(r"dur=[\d.]+"), "dur=<time>"),),
    **{f"x-{what}-time": ((_ALL, "<time>"),) for what in ("compute", "total", "tokenization", "queue", "inference")},
}
"""Header -> what of it differs from call to call or from machine to machine, and what stands for it."""

BODY_MASKS: dict[str, Rules] = {
    "id": ((re.compile(r'"id":"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"'), '"id":"<id>"'),),
    "durations": ((re.compile(r'"(\w+_duration)":\d+'), r'"\1":<time>'),),
    "times": ((re.compile(r'"(created_at|modified_at|expires_at)":"[^"]*"'), r'"\1":"<time>"'),),
    "host": ((re.compile(r"127\.0\.0\.1:\d+"), HOST),),
}
"""The same of a response's body, by name."""

MESSAGE_MASKS: Rules = (
    (re.compile(r"""(['"](?:date|x-request-id)['"]: )(['"]).*?\2"""), r"\1\2<masked>\2"),
    (re.compile(r"dur=[\d.]+"), "dur=<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), HOST),
    (re.compile(r"0x[0-9a-f]{6,}"), "<address>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
)
"""The same of what a client says of an error."""

FOLD_OVER = 2000
_REPEATED = re.compile(r"(.{8,400}?)\1{7,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a response. start: `METHOD PATH`, or the status."""

    start: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """by_proxy: the server never saw it."""

    request: Message
    response: Message
    by_proxy: bool = False


def kept(exchange: Exchange) -> dict[str, Any]:
    """As it stands in a fixture."""
    method, _, path = exchange.request.start.partition(" ")
    request = {"method": method, "path": path, **kept_message(exchange.request, {})}
    response = {"status": int(exchange.response.start), **kept_message(exchange.response, BODY_MASKS)}
    return {"request": request, "response": response} | ({"by": "proxy"} if exchange.by_proxy else {})


def kept_message(message: Message, body_masks: Mapping[str, Rules]) -> dict[str, Any]:
    """Its headers and body, masked; the names of what was; the hash of the message as it would go over the wire."""
    headers, names = masked_headers(message.headers)
    body, body_names = masked_body(message.body.decode("utf-8", "surrogateescape"), body_masks)
    if body_names:
        headers = [(name, LENGTH if name.lower() == "content-length" else value) for name, value in headers]
    return {
        "headers": dict(headers),
        "body": folded(body),
        "masked": [*names, *(f"body: {name}" for name in body_names)],
        "sha256": digest(message.start, headers, body),
    }


def masked_headers(headers: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    found, names = [], []
    for name, value in headers:
        shown = masked(value, HEADER_MASKS.get(name.lower(), ()))
        found.append((name, shown))
        if shown != value:
            names.append(name)
    return found, names


def masked_body(body: str, masks: Mapping[str, Rules]) -> tuple[str, list[str]]:
    names = []
    for name, rules in masks.items():
        shown = masked(body, rules)
        if shown != body:
            names.append(name)
        body = shown
    return body, names


def masked(text: str, rules: Rules) -> str:
    for pattern, placeholder in rules:
        text = pattern.sub(placeholder, text)
    return text


def digest(start: str, headers: Iterable[tuple[str, str]], body: str) -> str:
    """sha256 of start line, headers, an empty line and the body, with CRLF, in UTF-8."""
    head = "\r\n".join([start, *(f"{name}: {value}" for name, value in headers)])
    return hashlib.sha256(f"{head}\r\n\r\n{body}".encode("utf-8", "surrogateescape")).hexdigest()


def folded(body: str) -> str | list[str | dict[str, Any]]:
    """A long body as its parts, with {"repeat", "times"} for what stands there eight times or more."""
    if len(body) <= FOLD_OVER:
        return body
    parts: list[str | dict[str, Any]] = []
    end = 0
    for found in _REPEATED.finditer(body):
        unit = found[1]
        parts += [body[end : found.start()], {"repeat": unit, "times": len(found[0]) // len(unit)}]
        end = found.end()
    return [part for part in [*parts, body[end:]] if part]


def unfolded(body: str | list[str | dict[str, Any]]) -> str:
    if isinstance(body, str):
        return body
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in body)
