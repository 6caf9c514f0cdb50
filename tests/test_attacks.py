"""Bytes that no client would send, to a live server over the fake backend: each gets a clean answer or a clean end, and
the next client is served as if nothing had been.

What guard alone decides is tried in test_guard.py; here it is what really comes through the HTTP server.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pytest

from tests import small
from tests.live import Live

LIMIT_S = 30.0
"""No answer and no end of this file takes so long, unless it would never come."""
HOST = b"Host: localhost\r\n"
POST = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST
LEAKS = re.compile(rb"Traceback|File \"|site-packages|/src/|\.py\b|Error:|panick", re.IGNORECASE)
CLOSED: set[int] = set()
"""Only the end of the connection, without a word."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    cwd = tmp_path_factory.mktemp("attacked")
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(cwd / "small")), "VECGATE_BODY_LIMIT": "1MiB"}
    with Live(cwd, module="tests.impatient", **names) as started:
        yield started.ready()
        assert not re.search(r"Traceback|panicked", started.log())


@dataclass(frozen=True, slots=True)
class Said:
    """All that came back until the server closed, or until as many answers as asked for were whole."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", self.raw)]

    @property
    def body(self) -> Any:
        """The last answer's, where it is JSON."""
        head, _, body = self.raw[self.raw.rindex(b"HTTP/1.") :].partition(b"\r\n\r\n")
        return json.loads(body) if b"application/json" in head.lower() else None


def is_whole(raw: bytes) -> bool:
    head, ends, body = raw[raw.rindex(b"HTTP/1.") :].partition(b"\r\n\r\n")
    if not ends:
        return False
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return len(body) >= int(length[1]) if length else not re.search(rb" [2345]\d\d ", head) or b" 204 " in head


def sent(server: Live, *parts: bytes, answers: int = 1, shut: bool = False) -> Said:
    """What comes back to bytes that are sent part by part; a server that closes meanwhile is no failure here."""
    with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            if shut:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        raw = b""
        while raw.count(b"HTTP/1.") < answers or not is_whole(raw):
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                part = b""
            if not part:
                return Said(raw, closed=True)
            raw += part
    return Said(raw, closed=False)


def served(server: Live) -> None:
    """The next client is: a probe and a row."""
    assert sent(server, LIVE, b"\r\n").statuses == [200]
    body = b'{"input":"a"}'
    assert sent(server, POST, b"Content-Length: %d\r\n\r\n" % len(body), body).statuses == [200]


def with_body(body: bytes, *headers: bytes) -> bytes:
    return POST + b"".join(header + b"\r\n" for header in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


EMBED = b'{"input":"a"}'
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = bytes.fromhex("160301006b0100006703035e") + b"\x00" * 90
"""How a TLS client begins."""

ATTACKS: dict[str, tuple[bytes, set[int]]] = {
    # what does not come
    "nothing at all": (b"", CLOSED),
    "headers that never end": (LIVE + b"X-Slow: 1", CLOSED | {408}),
    "a body that never comes": (POST + b"Content-Length: 1000\r\n\r\n", {408}),
    "a body that stops": (POST + b'Content-Length: 1000\r\n\r\n{"input":', {408}),
    "a chunk that stops": (CHUNKED + b'400\r\n{"input":', {408}),
    # too much
    "5,000 headers": (LIVE + b"".join(b"X-%d: 1\r\n" % at for at in range(5_000)) + b"\r\n", {431}),
    "one header of 1 MB": (LIVE + b"X: " + b"a" * 2**20 + b"\r\n\r\n", {431}),
    "a path of 60 KB": (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {404, 414}),
    "a path of 1 MB": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414, 431}),
    "a method of 10 KB": (b"A" * 10_000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}),
    "a length over the limit": (POST + b"Content-Length: 1048577\r\n\r\n", {413}),
    "chunks over the limit": (CHUNKED + b"10000\r\n" + b"a" * 65_536 + b"\r\n" * 1 + (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * 20, {413}),
    "a chunk of 2^60": (CHUNKED + b"1000000000000000\r\n{}", {408, 413}),
    "a chunk's extension of 1 MB": (CHUNKED + b"5;" + b"a" * 2**20 + b"\r\n[1,2]\r\n0\r\n\r\n", {400}),
    "trailers of 1 MB": (CHUNKED + b"2\r\n{}\r\n0\r\n" + b"X: a\r\n" * 200_000 + b"\r\n", {400}),
    # broken framing
    "a chunk's size that is none": (CHUNKED + b"ZZ\r\n{}\r\n0\r\n\r\n", {400}),
    "a negative chunk": (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", {400}),
    "a chunk longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n", {400}),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n{}", {400}),
    "a length of 2^64": (POST + b"Content-Length: 18446744073709551616\r\n\r\n{}", {400, 413}),
    "a length of 2^63": (POST + b"Content-Length: 9223372036854775808\r\n\r\n{}", {400, 413}),
    "a length in hexadecimals": (POST + b"Content-Length: 0x2\r\n\r\n{}", {400}),
    "two lengths that differ": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", {400}),
    "an unknown transfer encoding": (POST + b"Transfer-Encoding: br\r\n\r\n{}", {400, 501}),
    "a line folded": (LIVE + b"X: a\r\n b\r\n\r\n", {400}),
    "a header without a colon": (LIVE + b"broken\r\n\r\n", {400}),
    "a header's name with a blank": (LIVE + b"Content-Length : 2\r\n\r\n", {400}),
    "a null in a header": (LIVE + b"X: a\0b\r\n\r\n", {400}),
    "a bare return in a header": (LIVE + b"X: a\rX-Y: b\r\n\r\n", {400}),
    # compressed
    "gzip": (with_body(b"\x1f\x8b\x08\x00", b"Content-Encoding: gzip"), {415}),
    "two codings": (with_body(b"x", b"Content-Encoding: deflate, br"), {415}),
    # who it is for
    "no Host": (b"GET /health/live HTTP/1.1\r\n\r\n", {400}),
    "two Hosts": (LIVE + b"Host: 127.0.0.1\r\n\r\n", {400}),
    "a foreign Host": (b"GET /health/live HTTP/1.1\r\nHost: evil.example\r\n\r\n", {403}),
    "an empty Host": (b"GET /health/live HTTP/1.1\r\nHost: \r\n\r\n", {400}),
    "HTTP/1.0 without a Host": (b"GET /health/live HTTP/1.0\r\n\r\n", {400}),
    "a foreign Origin": (with_body(EMBED, b"Origin: https://evil.example"), {403}),
    "a form from a sandbox": (with_body(EMBED, b"Origin: null"), {403}),
    # other protocols
    "HTTP/0.9": (b"GET /health/live\r\n", {400}),
    "HTTP/3.0": (b"GET /health/live HTTP/3.0\r\n" + HOST + b"\r\n", {400, 505}),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", {400, 505}),
    "TLS": (HELLO, {400}),
    "SSH": (b"SSH-2.0-OpenSSH_9.9\r\n", {400}),
    "noise": (bytes(range(256)) * 8, {400}),
    "nulls": (b"\0" * 4096, {400}),
    "a websocket": (
        LIVE + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n",
        {200, 400, 426},
    ),
    "h2c": (LIVE + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n", {200, 400}),
    # odd methods
    **{
        f"{method} of {path}": (b"%s %s HTTP/1.1\r\n%sContent-Length: 0\r\n\r\n" % (method.encode(), path.encode(), HOST), {405})
        for method in ("TRACE", "PUT", "DELETE", "PATCH", "BREW", "post", "QUERY")
        for path in ("/v1/embeddings", "/v1/models/small")
    },
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "OPTIONS of everything": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", {400, 404, 405}),
    "GET where there is only POST": (b"GET /v1/embeddings HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    # paths
    **{
        f"the path {path}": (b"GET %s HTTP/1.1\r\n%s\r\n" % (path.encode("latin-1"), HOST), {400, 404})
        for path in (
            "/../../../etc/passwd",
            "/docs/../settings",
            "/docs/%2e%2e%2fsettings",
            "/docs/..%5c..%5csettings",
            "/docs/%00",
            "/%ff%fe",
            "/v1/models/%ed%a0%80",
            "/v1/models/" + "a/" * 5_000,
            "/%",
            "/\xe9",
            "/docs/swagger-ui.css%00.js",
            "http://evil.example/nothing",
        )
    },
    # bodies
    "no body": (with_body(b""), {400}),
    "a body with GET": (b"GET /v1/embeddings HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}", {405}),
    "an expectation nobody meets": (with_body(EMBED, b"Expect: wonders"), {200, 417}),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_no_client_sends(server: Live, attack: str) -> None:
    raw, allowed = ATTACKS[attack]
    said = sent(server, raw)
    assert set(said.statuses) <= allowed, said.raw[:500]
    assert said.closed or said.statuses
    assert not LEAKS.search(said.raw), said.raw[:500]
    assert sent(server, LIVE, b"\r\n").statuses == [200]


def test_a_client_that_stops_sending_leaves(server: Live) -> None:
    for raw in (POST + b"Content-Length: 100\r\n\r\n{", CHUNKED + b"5\r\n{", b"GE", b""):
        said = sent(server, raw, shut=True)
        assert set(said.statuses) <= {400}
        assert said.closed or said.statuses
        assert not LEAKS.search(said.raw)
    served(server)


def test_requests_in_a_row_are_answered_in_order(server: Live) -> None:
    bodies = [b'{"input":%s}' % json.dumps(["a"] * n).encode() for n in range(1, 11)]
    said = sent(server, *[with_body(body) for body in bodies], answers=10)
    assert said.statuses == [200] * 10
    counts = [int(n) for n in re.findall(rb'"total_tokens":(\d+)', said.raw)]
    assert counts == sorted(counts)
    assert len(set(counts)) == 10


def test_both_framings_are_one_request_and_nothing_is_smuggled_in_behind_it(server: Live) -> None:
    inner = b"GET /smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
    both = POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % (5 + len(inner))
    said = sent(server, both + b"0\r\n\r\n" + inner, LIVE + b"\r\n", answers=2)
    assert b"smuggled" not in server.log().encode()
    assert 400 in said.statuses  # the empty body's, or the framing's
    served(server)


def test_a_body_that_waits_for_leave_gets_it_and_a_refused_one_does_not(server: Live) -> None:
    expect = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    said = sent(server, expect % len(EMBED), EMBED, answers=2)
    assert said.statuses == [100, 200]
    refused = sent(server, expect % 2**30)
    assert refused.statuses == [413]


def test_a_refusal_is_in_the_protocols_shape(server: Live) -> None:
    for attack, key in (
        ("gzip", "error"),
        ("two Hosts", "error"),
        ("a body that stops", "error"),
        ("no body", "error"),
    ):
        found = sent(server, ATTACKS[attack][0]).body
        assert found[key]["message"]
    cohere = ATTACKS["gzip"][0].replace(b"/v1/embeddings", b"/v2/embed")
    assert sent(server, cohere).body["message"]
    tei = ATTACKS["gzip"][0].replace(b"/v1/embeddings", b"/tokenize")
    assert sent(server, tei).body["error_type"]


def test_a_crowd_of_silent_sockets_keeps_nobody_out(server: Live) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), LIMIT_S) for _ in range(300)]
    try:
        for at, connection in enumerate(silent):
            connection.sendall((b"", LIVE, POST + b"Content-Length: 9\r\n\r\n{")[at % 3])
        served(server)
        with ThreadPoolExecutor(30) as pool:
            ends = list(pool.map(socket.socket.recv, silent, repeat(65_536)))
        assert all(not said or said.startswith(b"HTTP/1.1 408 ") for said in ends)
    finally:
        for connection in silent:
            connection.close()
