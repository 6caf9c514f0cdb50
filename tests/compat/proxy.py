"""A proxy that notes every exchange between a client and the server; a control address says whose they are.

It changes nothing, but answers the first requests of the case "retries" itself. Knows no client and no fixture.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.compat.exchanges import Exchange, Headers, Message

HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers between two neighbours; RFC 9110, section 7.6.1."""
RETRIES = "retries"
REFUSALS = 2
BUSY = Message(
    "503",
    (("content-type", "application/json"), ("retry-after", "1")),
    json.dumps({"error": {"message": "Try again.", "type": "server_error"}, "message": "Try again."}).encode(),
)
UPSTREAM_LIMIT_S = 300.0

Owner = tuple[str, str]
"""(client, case)"""


class Notes:
    """What was seen, by owner, in the order the requests came in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[Owner, list[Exchange | None]] = {}
        self._owner: Owner = ("", "")

    def begin(self, client: str, case: str) -> None:
        with self._lock:
            self._owner = (client, case)
            self._seen[self._owner] = []

    def arrive(self) -> tuple[Owner, int]:
        """Whose the request is that came in, and its place."""
        with self._lock:
            seen = self._seen.setdefault(self._owner, [])
            seen.append(None)
            return self._owner, len(seen) - 1

    def end(self, owner: Owner, place: int, exchange: Exchange) -> None:
        with self._lock:
            self._seen[owner][place] = exchange

    def of(self, client: str, case: str) -> list[Exchange]:
        """Without those that were not answered."""
        with self._lock:
            return [one for one in self._seen.get((client, case), []) if one]

    def strays(self) -> list[Exchange]:
        """What came before anybody had said whose it is."""
        return self.of("", "")


@contextmanager
def recording(upstream: str, notes: Notes) -> Iterator[tuple[str, str]]:
    """(address of the proxy in front of `upstream`, control address), while the block runs."""
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxied", (Proxied,), {"upstream": upstream, "notes": notes}))
    control = ThreadingHTTPServer(("127.0.0.1", 0), type("Control", (Control,), {"notes": notes}))
    servers = (proxy, control)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for server, thread in zip(servers, threads):
        server.daemon_threads = True
        thread.start()
    try:
        yield _url(proxy), _url(control)
    finally:
        for server, thread in zip(servers, threads):
            server.shutdown()
            thread.join()
            server.server_close()


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


class Quiet(BaseHTTPRequestHandler):
    """HTTP/1.1 that keeps its connections, takes chunked bodies, and says nothing."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    notes: Notes

    def reply(self) -> None:
        """Answers a request of any method."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:  # http.server asks for do_GET, do_POST ...
        if name.startswith("do_"):
            return self.reply
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the standard library
        return

    def body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass

    def answer(self, message: Message) -> None:
        self.send_response_only(int(message.start))
        lengths = [value for name, value in message.headers if name.lower() == "content-length"]
        for name, value in message.headers:
            if name.lower() not in HOP | {"content-length"}:
                self.send_header(name, value)
        head = self.command == "HEAD" and lengths
        self.send_header("content-length", lengths[0] if head else str(len(message.body)))
        self.end_headers()
        self.wfile.write(message.body)
        self.wfile.flush()


class Control(Quiet):
    def reply(self) -> None:
        told = json.loads(self.body())
        self.notes.begin(told["client"], told["case"])
        self.answer(Message("200", (("content-type", "application/json"),), b"{}"))


class Proxied(Quiet):
    upstream: str

    def reply(self) -> None:
        owner, place = self.notes.arrive()
        request = Message(f"{self.command} {self.path}", tuple(self.headers.items()), self.body())
        refused = owner[1] == RETRIES and place < REFUSALS
        response = BUSY if refused else ask(self.upstream, request)
        self.notes.end(owner, place, Exchange(request, response, refused))
        self.answer(response)


def ask(upstream: str, request: Message) -> Message:
    """The server's answer, on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=UPSTREAM_LIMIT_S)
    try:
        method, _, path = request.start.partition(" ")
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in passed_on(request.headers, len(request.body)):
            connection.putheader(name, value)
        connection.endheaders(request.body)
        answer = connection.getresponse()
        return Message(str(answer.status), tuple(answer.getheaders()), answer.read())
    finally:
        connection.close()


def passed_on(headers: Headers, length: int) -> Headers:
    """Those for the server; a body that came in chunks goes on whole."""
    chunked = any(name.lower() == "transfer-encoding" for name, _ in headers)
    kept = tuple((name, value) for name, value in headers if name.lower() not in HOP)
    return (*kept, ("Content-Length", str(length))) if chunked else kept
