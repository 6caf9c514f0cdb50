"""One request in guard's hands: its state from head to last byte, and the two ends of its pipe.

Decides nothing: guard does, over all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from vecgate.core import Record

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Pairs = list[tuple[bytes, bytes]]
End = Literal["left", "draining", "late"]

LEFT = 499
"""The status in log and metrics of a request whose client left (nginx's number); it is never sent."""


@dataclass(slots=True, eq=False)
class Flight:
    """One request from its head to its last byte.

    headers: go onto whatever answer it gets. unread: bytes of its body may be on their way. key: the name of the one
    it showed. metered: whose allowance it was taken from. held_bytes: read so far. ended: why its work was cut short.
    status: the answer's, once it has begun; sent: once it is complete. lines: the answer is NDJSON, which can still take
    a line that says why it ends.
    """

    id: str
    method: str
    path: str
    begun_s: float
    record: Record
    client: str | None
    server_send: Send
    headers: Pairs
    unread: bool
    due_s: float = 0.0
    key: str | None = None
    metered: str | None = None
    held_bytes: int = 0
    reading: bool = True
    work: asyncio.Timeout | None = None
    alarm: asyncio.TimerHandle | None = None
    ended: End | None = None
    status: int | None = None
    sent: bool = False
    lines: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.lines = (b"content-type", b"application/x-ndjson") in message.get("headers", ())
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        await self.server_send(message)
        self.sent = message["type"] == "http.response.body" and not message.get("more_body")

    def end(self, why: End) -> None:
        """Cancel the request's work, once, at the next turn of the loop; nothing happens if it is already over."""
        if self.work is not None and self.ended is None:
            self.ended = why
            self.work.reschedule(0.0)

    def watch_clock(self) -> None:
        """End the work once `due_s` has passed. The one alarm is set again where `due_s` has moved on meanwhile, which
        costs a request that is quick less than moving the alarm with it."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self.due_s:
            self.end("late")
        else:
            self.alarm = loop.call_at(self.due_s, self.watch_clock)

    def outcome(self) -> int:
        """The status for log and metrics."""
        unheard = self.ended == "left" and not self.sent
        return LEFT if unheard or self.status is None else self.status

    def watch_client(self, gone: asyncio.Future[Message]) -> None:
        """The callback of a `receive()` that can only bring the client's leaving."""
        if not gone.cancelled() and gone.exception() is None and gone.result()["type"] == "http.disconnect":
            self.end("left")


def replay(body: bytes | bytearray, gone: asyncio.Future[Message]) -> Receive:
    """A `receive` that gives the whole body once, and after it the client's leaving."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await asyncio.wait([gone])
        return {"type": "http.disconnect"}

    return receive


async def reply(flight: Flight, status: int, headers: Pairs, body: bytes) -> None:
    if status != 204:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    await flight.send({"type": "http.response.start", "status": status, "headers": headers})
    await flight.send({"type": "http.response.body", "body": b"" if flight.method == "HEAD" else body})


def work(record: Record) -> dict[str, Any]:
    """What the log says of the model's part in a request; nothing where it had none."""
    if record.model is None:
        return {}
    return {
        "model": record.model,
        "inputs": record.inputs,
        "tokens": record.tokens,
        "truncated": record.truncated,
        "queue_ms": round(record.queue_s * 1e3, 2),
        "tokenize_ms": round(record.tokenize_s * 1e3, 2),
        "forward_ms": round(record.forward_s * 1e3, 2),
        "encode_ms": round(record.encode_s * 1e3, 2),
    }
