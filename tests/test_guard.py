"""guard.py, driven by hand as a server would: every step refuses what it must, and costs its neighbours nothing.

Time is never waited for: limits are zero or far away, and what must happen is an event.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from vecgate import access, errors
from vecgate.core import Call, Record
from vecgate.flight import LEFT, Message, Receive, Scope, Send
from vecgate.guard import Guard
from vecgate.rates import Exhausted

STATUS = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.BodyTimeout: 408,
    errors.TooLarge: 413,
    errors.UnsupportedEncoding: 415,
    errors.Overloaded: 429,
    Exhausted: 429,
    errors.BackendFailed: 500,
    errors.NotReady: 503,
    errors.DeadlineExceeded: 504,
}
HOST = (b"host", b"localhost:9000")


def render(path: str, error: errors.VecgateError) -> tuple[int, dict[str, str], bytes]:
    wait_s = getattr(error, "retry_after_s", None)
    headers = {} if wait_s is None else {"retry-after": str(wait_s)}
    return STATUS[type(error)], headers, json.dumps({"dialect": path, "message": str(error)}).encode()


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The scene in a loop of its own; afterwards no task may be left."""

    async def whole() -> None:
        await scene()
        await turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())


async def turns() -> None:
    """Enough turns of the loop for whatever can move to have moved."""
    for _ in range(20):
        await asyncio.sleep(0)


class Inner:
    """The app inside: answers 200 with what it got, after `go` where it is told to hold."""

    def __init__(self, *, hold: bool = False) -> None:
        self.go = asyncio.Event()
        if not hold:
            self.go.set()
        self.seen: list[Scope] = []
        self.bodies: list[bytes] = []
        self.finished = 0
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope)
        self.bodies.append((await receive())["body"])
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"served"})
        self.finished += 1


class Client:
    """One request. Whole with a body; with `chunked` or `length` the test sends the parts."""

    def __init__(
        self,
        guard: Guard,
        path: str = "/v1/embeddings",
        *headers: tuple[bytes, bytes],
        method: str = "POST",
        host: tuple[bytes, bytes] | None = HOST,
        body: bytes = b"{}",
        length: int | None = None,
        chunked: bool = False,
    ) -> None:
        self.partial = chunked or length is not None
        framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % (length or len(body)))
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "query_string": b"q=SECRET",
            "headers": [*([host] if host else []), *headers, *([framing] if body or self.partial else [])],
            "client": ("10.1.2.3", 5),
        }
        self.guard = guard
        self.body = body
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.reads = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        self.reads += 1
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def part(self, body: bytes, *, more: bool = True) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    def start(self) -> asyncio.Task[None]:
        if not self.partial:
            self.part(self.body, more=False)

        async def asgi() -> None:
            await self.guard(self.scope, self.receive, self.send)

        return asyncio.create_task(asgi())

    async def ask(self) -> Client:
        await self.start()
        return self

    @property
    def status(self) -> int:
        (start,) = (message for message in self.sent if message["type"] == "http.response.start")
        return int(start["status"])

    @property
    def headers(self) -> dict[str, str]:
        pairs = self.sent[0]["headers"]
        assert len({name for name, _ in pairs}) == len(pairs)
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def answer(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def message(self) -> str:
        return str(json.loads(self.answer)["message"])


class Ledger:
    """What guard told its hooks."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int, Record]] = []
        self.shed: list[str] = []

    def on_request(self, method: str, status: int, seconds: float, record: Record) -> None:
        assert seconds >= 0
        self.requests.append((method, status, record))

    @property
    def statuses(self) -> list[int]:
        return [status for _, status, _ in self.requests]


def guarded(inner: Any, ledger: Ledger | None = None, **settings: Any) -> Guard:
    ledger = ledger or Ledger()
    return Guard(inner, render=render, on_request=ledger.on_request, on_shed=ledger.shed.append, **settings)


# what passes


def test_a_request_reaches_the_app_whole_and_is_answered() -> None:
    async def scene() -> None:
        inner, ledger = Inner(), Ledger()
        client = Client(guarded(inner, ledger, routes=("/v1/embeddings",), request_timeout_s=50), chunked=True)
        task = client.start()
        client.part(b"one ")
        client.part(b"two", more=False)
        await task
        assert client.status == 200
        assert client.answer == b"served"
        assert inner.bodies == [b"one two"]
        record = inner.seen[0]["vecgate"]
        assert isinstance(record, Record)
        assert isinstance(record.call, Call)
        assert record.call.id == client.headers["x-request-id"]
        assert 49 < record.call.timeout_s <= 50
        assert ledger.requests == [("POST", 200, record)]
        assert record.route == "/v1/embeddings"

    run(scene)


def test_the_app_sees_the_canonical_path_and_the_servers_scope_is_left_alone() -> None:
    async def scene() -> None:
        inner = Inner()
        client = Client(guarded(inner), "//v1/v2/re rank/")
        await client.ask()
        assert (inner.seen[0]["path"], inner.seen[0]["raw_path"]) == ("/v2/re rank", b"/v2/re%20rank")
        assert client.scope["path"] == "//v1/v2/re rank/"
        plain = Client(guarded(inner), "/v1/models/a%2Fb")
        await plain.ask()
        assert inner.seen[1]["raw_path"] is plain.scope["raw_path"]

    run(scene)


def test_after_the_body_the_app_hears_of_the_clients_leaving_and_not_before() -> None:
    async def scene() -> None:
        heard = asyncio.Event()

        async def listening(scope: Scope, receive: Receive, send: Send) -> None:
            assert (await receive())["type"] == "http.request"
            listener = asyncio.ensure_future(receive())
            await turns()
            assert not listener.done()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            client.leave()
            try:
                assert (await listener)["type"] == "http.disconnect"
            finally:
                heard.set()

        client = Client(guarded(listening))
        await client.ask()
        assert heard.is_set()

    run(scene)


def test_lifespan_passes_through_and_websockets_are_refused() -> None:
    async def scene() -> None:
        seen = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope["type"])

        client = Client(guarded(app))
        await client.guard({"type": "lifespan"}, client.receive, client.send)
        client.incoming.put_nowait({"type": "websocket.connect"})
        await client.guard({"type": "websocket", "path": "/"}, client.receive, client.send)
        assert seen == ["lifespan"]
        assert client.sent == [{"type": "websocket.close", "code": 1008}]

    run(scene)


@pytest.mark.parametrize(("given", "kept"), [(b"my-id_1.2", True), (b"not ok", False), (b"x" * 65, False)])
def test_every_answer_carries_a_request_id(given: bytes, kept: bool) -> None:
    async def scene() -> None:
        guard = guarded(Inner())
        served = await Client(guard, "/", (b"x-request-id", given)).ask()
        refused = await Client(guard, "/", (b"x-request-id", given), host=None).ask()
        for client in (served, refused):
            assert (client.headers["x-request-id"] == given.decode()) is kept
        assert (served.status, refused.status) == (200, 400)

    run(scene)


# who may call


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (HOST, 200),
        ((b"host", b"evil.example"), 403),
        ((b"host", b""), 400),
        (None, 400),
        ((b"host", b"localhost, localhost"), 400),
    ],
)
def test_the_host_is_checked_before_the_body_is_read(host: tuple[bytes, bytes] | None, status: int) -> None:
    async def scene() -> None:
        inner = Inner()
        client = await Client(guarded(inner), "/v1//rerank", host=host).ask()
        assert client.status == status
        assert len(inner.seen) == (status == 200)

    run(scene)


def test_errors_come_in_the_dialect_of_the_canonical_path() -> None:
    async def scene() -> None:
        client = await Client(guarded(Inner()), "/v1/v2/rerank/", host=None).ask()
        assert json.loads(client.answer)["dialect"] == "/v2/rerank"
        assert client.headers["content-type"] == "application/json"
        assert client.headers["content-length"] == str(len(client.answer))

    run(scene)


def test_two_host_headers_are_refused() -> None:
    async def scene() -> None:
        assert (await Client(guarded(Inner()), "/", HOST).ask()).status == 400

    run(scene)


def test_a_foreign_origin_is_refused_whatever_it_sends() -> None:
    async def scene() -> None:
        inner = Inner()
        for origin in (b"https://evil.example", b"null"):
            client = await Client(guarded(inner), "/", (b"origin", origin), (b"content-type", b"text/plain")).ask()
            assert client.status == 403
            assert "access-control-allow-origin" not in client.headers
            asking = (b"access-control-request-method", b"POST")
            before = await Client(guarded(inner), "/", (b"origin", origin), asking, method="OPTIONS", body=b"").ask()
            assert before.status == 403
        assert inner.seen == []

    run(scene)


def test_an_allowed_origin_may_read_answers_and_refusals() -> None:
    async def scene() -> None:
        origin = (b"origin", b"http://localhost:3000")
        guard = guarded(Inner(), keys=("k",))
        refused = await Client(guard, "/v1/embeddings", origin).ask()
        served = await Client(guard, "/v1/embeddings", origin, (b"api-key", b"k")).ask()
        assert (refused.status, served.status) == (401, 200)
        for client in (refused, served):
            assert client.headers["access-control-allow-origin"] == "http://localhost:3000"
            assert "x-request-id" in client.headers["access-control-expose-headers"]
            assert "origin" in client.headers["vary"]
            assert "access-control-allow-credentials" not in client.headers

    run(scene)


def test_a_preflight_is_answered_without_key_and_without_the_app() -> None:
    async def scene() -> None:
        inner = Inner()
        client = Client(
            guarded(inner, keys=("k",)),
            "/v1/embeddings",
            (b"origin", b"app://obsidian.md"),
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-headers", b"authorization,content-type,x-stainless-lang"),
            (b"access-control-request-private-network", b"true"),
            method="OPTIONS",
            body=b"",
        )
        await client.ask()
        assert client.status == 204
        assert client.answer == b""
        assert client.headers["access-control-allow-origin"] == "app://obsidian.md"
        assert client.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-lang"
        assert "POST" in client.headers["access-control-allow-methods"]
        assert client.headers["access-control-allow-private-network"] == "true"
        assert client.headers["access-control-max-age"]
        assert "content-length" not in client.headers
        assert inner.seen == []

    run(scene)


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", "/v1/embeddings", None, 401),
        ("POST", "/v1/embeddings", b"wrong", 401),
        ("POST", "/v1/embeddings", b"two", 200),
        ("GET", "/v1/models", None, 401),
        ("GET", "/metrics", None, 401),
        ("GET", "/nothing/here", None, 401),
        ("OPTIONS", "/v1/embeddings", None, 401),
        ("GET", "/health/", None, 200),
        ("GET", "//docs//", None, 200),
        ("POST", "/health", None, 401),
    ],
)
def test_with_keys_all_is_closed_but_what_is_listed(method: str, path: str, key: bytes | None, status: int) -> None:
    async def scene() -> None:
        guard = guarded(Inner(), keys=("one", "two"))
        header = [(b"authorization", b"Bearer " + key)] if key else []
        client = await Client(guard, path, *header, method=method).ask()
        assert client.status == status
        assert not any(secret in client.answer for secret in (b"one", b"two", b"wrong"))

    run(scene)


def test_a_public_route_learns_whether_the_key_was_shown() -> None:
    async def scene() -> None:
        inner = Inner()
        await Client(guarded(inner, keys=("one",)), "/health", method="GET").ask()
        await Client(guarded(inner, keys=("one",)), "/health", (b"x-api-key", b"one"), method="GET").ask()
        await Client(guarded(inner), "/health", method="GET").ask()
        assert [one["vecgate"].trusted for one in inner.seen] == [False, True, True]

    run(scene)


def test_without_keys_any_key_is_welcome() -> None:
    async def scene() -> None:
        client = await Client(guarded(Inner()), "/v1/embeddings", (b"authorization", b"Bearer undefined")).ask()
        assert client.status == 200

    run(scene)


# how much one key may ask


def shown(key: bytes) -> tuple[bytes, bytes]:
    return b"x-api-key", key


def test_a_key_that_has_used_up_its_rate_is_told_when_to_come_back() -> None:
    async def scene() -> None:
        ledger, inner = Ledger(), Inner()
        guard = guarded(inner, ledger, keys=("alice one", "two"), rate_limit=2)
        first, second, third = [await Client(guard, "/v1/embeddings", shown(b"one")).ask() for _ in range(3)]
        other = await Client(guard, "/v1/embeddings", shown(b"two")).ask()
        assert [one.status for one in (first, second, third, other)] == [200, 200, 429, 200]
        assert [one.headers["x-ratelimit-remaining-requests"] for one in (first, second, third)] == ["1", "0", "0"]
        assert third.headers["retry-after"] == "30"
        assert "VECGATE_RATE_LIMIT" in third.message
        assert len(inner.bodies) == 3
        assert ledger.shed == ["rate_limit"]

    run(scene)


def test_probes_pages_and_strangers_use_up_no_rate() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), keys=("one",), rate_limit=1)
        free = [
            ("/health/ready", b"one"),
            ("/metrics", b"one"),
            ("/docs", b"one"),
            ("/ping", b"-"),
            ("/v1/models", b"-"),
        ]
        for path, key in free * 3:
            client = await Client(guard, path, shown(key), method="GET").ask()
            assert client.status == (401 if path == "/v1/models" else 200)
            assert "x-ratelimit-limit-requests" not in client.headers
        assert (await Client(guard, "/v1/embeddings", shown(b"one")).ask()).status == 200

    run(scene)


def test_without_keys_all_clients_share_the_rate() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), rate_limit=1)
        clients = [await Client(guard, "/v1/embeddings", shown(b"%d" % at)).ask() for at in range(2)]
        assert [client.status for client in clients] == [200, 429]

    run(scene)


def test_a_key_has_so_many_requests_at_once_and_gets_its_place_back() -> None:
    async def scene() -> None:
        ledger, inner = Ledger(), Inner(hold=True)
        guard = guarded(inner, ledger, keys=("one", "two"), key_concurrency=1, retry_after_s=lambda: 9)
        leaving = Client(guard, "/v1/embeddings", shown(b"one"))
        running = leaving.start()
        await turns()
        refused = await Client(guard, "/v1/embeddings", shown(b"one")).ask()
        assert (refused.status, refused.headers["retry-after"]) == (429, "9")
        others = Client(guard, "/v1/embeddings", shown(b"two"))
        other = others.start()
        leaving.leave()  # as good an end as any
        await running
        again = Client(guard, "/v1/embeddings", shown(b"one"))
        task = again.start()
        inner.go.set()
        await asyncio.gather(other, task)
        assert (others.status, again.status) == (200, 200)
        assert ledger.shed == ["key_concurrency"]

    run(scene)


# what may be sent


def test_a_compressed_body_is_refused_unread() -> None:
    async def scene() -> None:
        inner = Inner()
        client = await Client(guarded(inner), "/", (b"content-encoding", b"gzip")).ask()
        assert (client.status, inner.seen) == (415, [])

    run(scene)


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 5000])
def test_a_length_that_is_none_is_a_bad_request(length: bytes) -> None:
    async def scene() -> None:
        client = Client(guarded(Inner(), linger_s=0.0), "/", (b"content-length", length), body=b"")
        assert (await client.ask()).status == 400

    run(scene)


def test_a_body_announced_over_the_limit_is_refused_naming_both() -> None:
    async def scene() -> None:
        inner = Inner()
        guard = guarded(inner, body_limit_bytes=1000)
        client = Client(guard, length=1001)
        task = client.start()
        await turns()
        assert client.status == 413
        assert client.message == "The body has 1001 bytes; the limit is 1000."
        client.part(b"x" * 1001, more=False)
        await task
        assert (inner.seen, guard.body_bytes, guard.in_flight) == ([], 0, 0)
        exact = Client(guard, length=1000)
        exact.part(b"x" * 1000, more=False)
        assert (await exact.ask()).status == 200

    run(scene)


def test_a_chunked_body_is_refused_where_it_crosses_the_limit() -> None:
    async def scene() -> None:
        inner = Inner()
        guard = guarded(inner, body_limit_bytes=1000)
        client = Client(guard, chunked=True)
        task = client.start()
        client.part(b"x" * 1000)
        await turns()
        assert (client.sent, guard.body_bytes) == ([], 1000)
        client.part(b"x")
        await turns()
        assert client.status == 413
        assert "limit is 1000" in client.message
        client.part(b"", more=False)
        await task
        assert (inner.seen, guard.body_bytes) == ([], 0)

    run(scene)


def test_what_a_refused_client_still_sends_is_read_after_the_answer() -> None:
    """granian closes the connection otherwise, under a client that may not have seen its answer yet."""

    async def scene() -> None:
        client = Client(guarded(Inner()), host=None, length=300)
        task = client.start()
        for _ in range(3):
            await turns()
            assert client.status == 400
            assert not task.done()
            client.part(b"x" * 100)
        client.part(b"", more=False)
        await task
        assert client.reads == 4

    run(scene)


def test_a_refused_client_is_not_listened_to_for_ever() -> None:
    async def scene() -> None:
        silent = Client(guarded(Inner(), linger_s=0.0), host=None, length=300)
        gone = Client(guarded(Inner(), linger_s=1e9), host=None, length=300)
        bodiless = Client(guarded(Inner(), linger_s=1e9), host=None, body=b"")
        gone.leave()
        for client in (silent, gone, bodiless):
            assert (await client.ask()).status == 400
        assert bodiless.reads == 0

    run(scene)


def test_a_body_that_ends_early_is_answered() -> None:
    """granian sends a 500 of its own to a broken chunk else."""

    async def scene() -> None:
        inner, ledger = Inner(), Ledger()
        client = Client(guarded(inner, ledger), chunked=True)
        client.part(b"hello")
        client.leave()
        await client.ask()
        assert client.status == 400
        assert "after 5 bytes" in client.message
        assert (inner.seen, ledger.statuses) == ([], [400])

    run(scene)


def test_a_silent_body_times_out_and_closes() -> None:
    async def scene() -> None:
        inner, ledger = Inner(), Ledger()
        guard = guarded(inner, ledger, body_grace_s=0.0)
        client = await Client(guard, length=10_000_000).ask()
        assert client.status == 408
        assert client.headers["connection"] == "close"
        assert (inner.seen, guard.body_bytes, ledger.statuses) == ([], 0, [408])

    run(scene)


def test_a_body_that_outlasts_the_request_is_told_of_its_deadline() -> None:
    async def scene() -> None:
        client = await Client(guarded(Inner(), request_timeout_s=0.0), length=10_000_000).ask()
        assert client.status == 504
        assert client.headers["connection"] == "close"
        assert "REQUEST_TIMEOUT" in client.message

    run(scene)


def test_a_slow_body_has_as_long_as_its_bytes_earned() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), body_grace_s=0.05, body_bytes_per_s=1)
        client = Client(guard, chunked=True)
        task = client.start()
        client.part(b"x" * 1000)  # earns a thousand seconds
        await asyncio.sleep(0.1)
        assert not task.done()
        client.part(b"", more=False)
        await task
        assert client.status == 200

    run(scene)


def test_tiny_chunks_cost_their_bytes() -> None:
    async def scene() -> None:
        inner = Inner()
        guard = guarded(inner)
        client = Client(guard, chunked=True)
        for _ in range(5000):
            client.part(b"x")
        client.part(b"", more=False)
        assert (await client.ask()).status == 200
        assert inner.bodies == [b"x" * 5000]

    run(scene)


# room


def test_over_capacity_is_refused_before_the_body_is_read() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger, max_in_flight=2, retry_after_s=lambda: 7)
        held = [Client(guard), Client(guard)]
        tasks = [client.start() for client in held]
        await turns()
        assert guard.in_flight == 2
        refused = Client(guard, length=500)
        refusal = refused.start()
        await turns()
        assert refused.status == 429
        assert refused.headers["retry-after"] == "7"
        assert "2 requests" in refused.message
        inner.go.set()
        await asyncio.gather(*tasks)
        assert [client.status for client in held] == [200, 200]
        refused.leave()
        await refusal
        assert (await Client(guard).ask()).status == 200
        assert ledger.shed == ["in_flight"]
        assert guard.in_flight == 0

    run(scene)


@pytest.mark.parametrize(("method", "status"), [("POST", 429), ("GET", 200)])
def test_what_would_wait_past_its_deadline_is_refused_before_its_body(method: str, status: int) -> None:
    async def scene() -> None:
        asked: list[int] = []

        def waits_s(length: int) -> float:
            asked.append(length)
            return 7.5

        ledger = Ledger()
        guard = guarded(Inner(), ledger, request_timeout_s=7.0, waits_s=waits_s, retry_after_s=lambda: 8)
        client = await Client(guard, method=method, body=b"x" * 500).ask()
        assert client.status == status
        refused = {429: (["queue"], [500], "8", True), 200: ([], [], None, False)}[status]
        told = b"8 s of work wait; a request may take 7 s (REQUEST_TIMEOUT)" in client.answer
        assert (ledger.shed, asked, client.headers.get("retry-after"), told) == refused

    run(scene)


def test_what_waits_up_to_the_deadline_is_admitted() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), request_timeout_s=7.0, waits_s=lambda _: 7.0)
        assert (await Client(guard).ask()).status == 200

    run(scene)


@pytest.mark.parametrize("path", sorted(access.PROBES))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_answered_at_capacity_and_while_draining(path: str, method: str) -> None:
    async def scene() -> None:
        guard = guarded(Inner(), max_in_flight=0)
        assert (await Client(guard, path, method=method, body=b"").ask()).status == 200
        guard.draining = True
        assert (await Client(guard, path, method=method, body=b"").ask()).status == 200
        assert (await Client(guard, path, method="POST").ask()).status == 503

    run(scene)


@pytest.mark.parametrize(("asked", "told"), [(0, "1"), (1, "1"), (60, "60"), (4000, "60")])
def test_the_wait_is_one_to_sixty_seconds(asked: int, told: str) -> None:
    async def scene() -> None:
        client = await Client(guarded(Inner(), max_in_flight=0, retry_after_s=lambda: asked)).ask()
        assert client.headers["retry-after"] == told

    run(scene)


def test_bodies_are_bounded_in_bytes_and_one_is_always_admitted() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger, body_memory_bytes=1000)
        large = Client(guard, body=b"x" * 5000)  # over the bound, and the only one
        task = large.start()
        await turns()
        assert guard.body_bytes == 5000
        refused = Client(guard, body=b"y")
        await refused.ask()
        assert refused.status == 429
        assert "1000 bytes" in refused.message
        inner.go.set()
        await task
        assert large.status == 200
        assert guard.body_bytes == 0
        assert (await Client(guard, body=b"y" * 1000).ask()).status == 200
        assert ledger.shed == ["body_memory"]

    run(scene)


def test_bodies_without_a_length_are_bounded_as_they_grow() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), body_memory_bytes=1000)
        first, second = Client(guard, chunked=True), Client(guard, chunked=True)
        tasks = [first.start(), second.start()]
        first.part(b"x" * 600)
        second.part(b"y" * 400)
        await turns()
        assert guard.body_bytes == 1000
        second.part(b"y")
        await turns()
        assert second.status == 429
        assert guard.body_bytes == 600
        second.leave()
        first.part(b"x" * 600, more=False)
        await asyncio.gather(*tasks)
        assert first.status == 200

    run(scene)


def test_a_length_announced_and_not_sent_takes_no_room() -> None:
    """Sixteen silent sockets that claim 32 MiB each would else shut everyone out for ten seconds."""

    async def scene() -> None:
        guard = guarded(Inner(), body_memory_bytes=1000)
        silent = [Client(guard, length=1000) for _ in range(5)]
        tasks = [client.start() for client in silent]
        await turns()
        assert (await Client(guard, body=b"x" * 1000).ask()).status == 200
        for client in silent:
            client.leave()
        await asyncio.gather(*tasks)

    run(scene)


# time and leaving


def test_a_client_that_leaves_cancels_the_work() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger)
        leaving, staying = Client(guard), Client(guard)
        tasks = [leaving.start(), staying.start()]
        await turns()
        leaving.leave()
        await tasks[0]
        assert (inner.cancelled, leaving.sent) == (1, [])
        assert guard.in_flight == 1
        inner.go.set()
        await tasks[1]
        assert staying.status == 200
        assert ledger.statuses == [LEFT, 200]

    run(scene)


def test_a_client_that_leaves_after_its_answer_got_it() -> None:
    async def scene() -> None:
        ledger, go = Ledger(), asyncio.Event()

        async def tidying(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})
            await go.wait()

        client = Client(guarded(tidying, ledger))
        task = client.start()
        await turns()
        client.leave()
        await task
        assert ledger.statuses == [200]

    run(scene)


def test_a_client_that_leaves_in_the_middle_of_its_answer_left() -> None:
    async def scene() -> None:
        ledger = Ledger()

        async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            client.leave()
            await asyncio.Event().wait()

        client = Client(guarded(streaming, ledger))
        await client.ask()
        assert ledger.statuses == [LEFT]
        assert len(client.sent) == 2

    run(scene)


@pytest.mark.parametrize(
    ("kind", "last"),
    [(b"application/x-ndjson", {"dialect": "/v1/embeddings", "message": "went wrong"}), (b"text/plain", None)],
)
def test_a_stream_of_lines_ends_with_the_error_and_any_other_is_broken_off(kind: bytes, last: object) -> None:
    async def scene() -> None:
        ledger = Ledger()

        async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            await send({"type": "http.response.body", "body": b"null\n", "more_body": True})
            raise errors.BackendFailed("went wrong")

        client = await Client(guarded(streaming, ledger)).ask()
        lines = [json.loads(line) for line in client.answer.splitlines()]
        assert lines == [None, *([last] if last else [])]
        assert client.sent[-1].get("more_body", False) is (last is None)
        assert (client.status, ledger.statuses) == (200, [500])

    run(scene)


def test_a_stream_that_takes_too_long_says_so_in_its_last_line() -> None:
    async def scene() -> None:
        async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
            headers = [(b"content-type", b"application/x-ndjson")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await asyncio.Event().wait()

        ledger = Ledger()
        client = await Client(guarded(streaming, ledger, request_timeout_s=0.02)).ask()
        assert "0.02 s" in client.message
        assert ledger.statuses == [504]

    run(scene)


def test_an_app_that_will_not_be_cancelled_still_ends_in_order() -> None:
    async def scene() -> None:
        async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"x"})

        ledger = Ledger()
        client = Client(guarded(stubborn, ledger))
        task = client.start()
        await turns()
        client.leave()
        await task
        assert ledger.statuses == [200]

    run(scene)


def test_the_deadline_ends_the_whole_request() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger, request_timeout_s=0.02)
        client = await Client(guard).ask()
        assert client.status == 504
        assert "0.02 s" in client.message
        assert (inner.cancelled, guard.in_flight, ledger.statuses) == (1, 0, [504])

    run(scene)


def test_after_the_app_has_chosen_a_dialect_errors_come_in_it() -> None:
    async def scene() -> None:
        def chosen(error: errors.VecgateError) -> tuple[int, dict[str, str], bytes]:
            return 599, {}, json.dumps({"message": f"chosen: {error}"}).encode()

        async def choosing(scope: Scope, receive: Receive, send: Send) -> None:
            scope["vecgate"].render = chosen
            await asyncio.Event().wait()

        client = await Client(guarded(choosing, request_timeout_s=0.02)).ask()
        assert client.status == 599
        assert client.message.startswith("chosen: The request took longer")

    run(scene)


def test_a_timeout_of_the_apps_own_is_no_deadline() -> None:
    async def scene() -> None:
        async def impatient(scope: Scope, receive: Receive, send: Send) -> None:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

        assert (await Client(guarded(impatient)).ask()).status == 500

    run(scene)


def test_the_servers_own_cancellation_passes_through() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger)
        task = Client(guard).start()
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (inner.cancelled, guard.in_flight, ledger.statuses) == (1, 0, [LEFT])

    run(scene)


# what nobody foresaw


def failing(error: Exception, *, started: bool = False) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return app


def test_an_unforeseen_error_is_opaque_to_the_client_and_whole_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        client = await Client(guarded(failing(ValueError("SECRET /etc/path"))), "/", (b"x-request-id", b"id-7")).ask()
        assert client.status == 500
        assert client.message == "Internal error; the server's log has the details under request id id-7."

    with caplog.at_level(logging.INFO):
        run(scene)
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    fields = record.__dict__["fields"]
    assert (fields["id"], fields["error"]) == ("id-7", "ValueError")
    assert "test_guard.py" in fields["stack"]
    assert "SECRET" not in str(fields)


def test_an_error_with_a_type_of_ours_keeps_it() -> None:
    async def scene() -> None:
        assert (await Client(guarded(failing(errors.InvalidRequest("No.")))).ask()).status == 400

    run(scene)


def test_an_error_after_the_answer_began_sends_nothing_more() -> None:
    async def scene() -> None:
        ledger = Ledger()
        client = await Client(guarded(failing(ValueError("x"), started=True), ledger)).ask()
        assert [message["type"] for message in client.sent] == ["http.response.start"]
        assert ledger.statuses == [500]

    run(scene)


def test_an_app_that_says_nothing_is_an_error_too() -> None:
    async def scene() -> None:
        async def mute(scope: Scope, receive: Receive, send: Send) -> None:
            pass

        assert (await Client(guarded(mute)).ask()).status == 500

    run(scene)


def test_an_error_to_head_has_no_body() -> None:
    async def scene() -> None:
        client = await Client(guarded(Inner()), "/x", method="HEAD", host=None, body=b"").ask()
        assert (client.status, client.answer) == (400, b"")
        assert int(client.headers["content-length"]) > 0

    run(scene)


# the end


def test_a_drain_waits_for_what_is_in_flight_and_refuses_what_is_new() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger)
        client = Client(guard)
        task = client.start()
        await turns()
        drain = asyncio.create_task(guard.drain(60))
        await turns()
        assert guard.draining
        assert not drain.done()
        late = await Client(guard).ask()
        assert (late.status, late.headers["retry-after"]) == (503, "5")
        inner.go.set()
        await asyncio.gather(task, drain)
        assert client.status == 200
        assert ledger.shed == ["draining"]

    run(scene)


def test_a_drain_ends_bodies_still_being_read() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), drain_read_s=0.01)
        stuck = Client(guard, length=100)
        task = stuck.start()
        stuck.part(b"x")
        await turns()
        await guard.drain(60)
        assert stuck.status == 503
        assert stuck.headers["connection"] == "close"
        assert (guard.in_flight, guard.body_bytes) == (0, 0)
        await task

    run(scene)


def test_a_drain_answers_a_body_that_arrives_at_once() -> None:
    async def scene() -> None:
        guard = guarded(Inner(), drain_read_s=60)
        client = Client(guard, length=2)
        task = client.start()
        client.part(b"x")
        await turns()
        drain = asyncio.create_task(guard.drain(60))
        await turns()
        client.part(b"y", more=False)
        await asyncio.gather(task, drain)
        assert client.status == 200

    run(scene)


def test_a_drain_ends_what_does_not_finish_in_time() -> None:
    async def scene() -> None:
        inner, ledger = Inner(hold=True), Ledger()
        guard = guarded(inner, ledger)
        clients = [Client(guard), Client(guard)]
        tasks = [client.start() for client in clients]
        await turns()
        await guard.drain(0)
        await asyncio.gather(*tasks)
        assert [client.status for client in clients] == [503, 503]
        assert [client.headers["retry-after"] for client in clients] == ["5", "5"]
        assert (inner.cancelled, guard.in_flight, ledger.statuses) == (2, 0, [503, 503])

    run(scene)


def test_a_drain_of_nothing_is_over_at_once() -> None:
    async def scene() -> None:
        await guarded(Inner()).drain(60)

    run(scene)


# the log


def test_one_line_a_request_without_text_key_or_query(caplog: pytest.LogCaptureFixture) -> None:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["vecgate"]
        record.route, record.model, record.inputs, record.tokens, record.truncated = "/v1/x/{id}", "minilm", 2, 9, 1
        record.queue_s, record.tokenize_s, record.forward_s, record.encode_s = 0.001, 0.002, 0.003, 0.004
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def scene() -> None:
        guard = guarded(answering, keys=("KEY",))
        key = (b"authorization", b"Bearer KEY")
        await Client(guard, "/v1/x/SECRET", key, (b"x-request-id", b"id-1"), body=b"SECRET").ask()
        await Client(guard, "/SECRET", method="DELETE").ask()

    with caplog.at_level(logging.INFO, logger="vecgate.access"):
        run(scene)
    served, refused = caplog.records
    assert served.getMessage() == "POST /v1/x/{id} 200"
    assert refused.getMessage() == "DELETE - 401"
    assert served.__dict__["parts"] == {"method": "POST", "route": "/v1/x/{id}", "status": 200}
    fields = served.__dict__["fields"]
    assert fields.pop("ms") >= 0
    assert fields == {
        "id": "id-1",
        "client": "10.1.2.3",
        "key": "#1",
        "model": "minilm",
        "inputs": 2,
        "tokens": 9,
        "truncated": 1,
        "queue_ms": 1.0,
        "tokenize_ms": 2.0,
        "forward_ms": 3.0,
        "encode_ms": 4.0,
    }
    assert "model" not in refused.__dict__["fields"]
    whole = str([record.__dict__ for record in caplog.records])
    assert "SECRET" not in whole
    assert "KEY" not in whole
