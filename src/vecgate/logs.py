"""The log: one line an event as JSON or for eyes, written by a thread of its own so that a slow terminal stops nobody.

What reaches a record is the caller's choice, and no caller hands over a text or a key. Knows no event.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any, Literal, TextIO

import msgspec

Format = Literal["json", "console"]

WAITING_LINES = 10_000
"""Lines held for a reader that has stopped reading (a full pipe); beyond, lines are dropped and counted."""
BATCH_LINES = 500
FLUSH_S = 2.0
STACK_FRAMES = 30
"""The innermost frames shown of each exception: a recursion's thousand say no more."""
CHAIN = 4
"""Exceptions shown of a chain of causes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Json(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's `parts` and `fields`, an exception's stack."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        event |= _extra(record, "parts") | _extra(record, "fields")
        if record.exc_info:
            event["stack"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event, enc_hook=str).decode("utf-8", "backslashreplace")


class Console(logging.Formatter):
    """`12:00:00.000 INFO access: POST /v1/embeddings 200 id=... ms=...`; control characters come out escaped."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = _extra(record, "fields")
        stack = fields.pop("stack", None) or (self.formatException(record.exc_info) if record.exc_info else None)
        said = " ".join([record.getMessage(), *(f"{name}={value}" for name, value in fields.items())])
        name = record.name.removeprefix("vecgate.")
        line = f"{at}.{int(record.msecs):03d} {record.levelname} {name}: {_CONTROL.sub(_escaped, said)}"
        return f"{line}\n{stack}" if stack else line


class Bounded(QueueHandler):
    """Hands records over unformatted, and drops them, counted, rather than wait for whoever reads the log."""

    queue: SimpleQueue[logging.LogRecord | None]

    def __init__(self) -> None:
        super().__init__(SimpleQueue())
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= WAITING_LINES:
            self.dropped += 1
            return
        if self.dropped:
            self.queue.put(logging.makeLogRecord({**_LOSS, "args": (self.dropped,)}))
            self.dropped = 0
        self.queue.put(record)


_LOSS = {
    "name": "vecgate.logs",
    "levelno": logging.WARNING,
    "levelname": "WARNING",
    "msg": "%d log lines were dropped.",
}


def write(waiting: SimpleQueue[logging.LogRecord | None], formatter: logging.Formatter, stream: TextIO) -> None:
    """Until None comes, all that waits in one write: a write a line would ask for the interpreter as often."""
    ended = False
    while not ended:
        batch = [waiting.get()]
        while batch[-1] is not None and len(batch) < BATCH_LINES and not waiting.empty():
            batch.append(waiting.get())
        ended = batch[-1] is None
        lines = [formatter.format(record) + "\n" for record in batch if record is not None]
        with suppress(OSError, ValueError):  # the reader is gone, the stream closed: there is nobody to tell
            stream.write("".join(lines))
            stream.flush()


@contextmanager
def logging_to(stream: TextIO | None = None, level: str = "INFO", form: Format = "json") -> Iterator[Bounded]:
    """Everything logged at `level` or above goes to the stream (stderr) until the end of the block, which writes what
    waits, for FLUSH_S at most."""
    handler, root = Bounded(), logging.getLogger()
    formatter = Json() if form == "json" else Console()
    writer = threading.Thread(
        target=write, args=(handler.queue, formatter, stream or sys.stderr), name="vecgate-log", daemon=True
    )
    before = root.level
    _spare(True)
    root.addHandler(handler)
    root.setLevel(level.upper())
    writer.start()
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        _spare(False)
        handler.queue.put(None)
        writer.join(FLUSH_S)


def _spare(spare: bool) -> None:
    """Leave out of records what no line shows: it is half of their cost."""
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, not spare)


def _extra(record: logging.LogRecord, name: str) -> dict[str, Any]:
    """What the caller passed as `extra={"parts": {...}, "fields": {...}}`; parts are those its message already shows."""
    return dict(getattr(record, name, None) or {})


def stack(error: BaseException, log: logging.Logger) -> str:
    """Where an error came from: types and frames, outermost cause first; its message only for a logger at DEBUG.

    The message of an unforeseen error may quote what the client sent, and no line of the log does.
    """
    wordy = log.isEnabledFor(logging.DEBUG)
    parts: list[str] = []
    for link in reversed(list(_chain(error))):
        frames = traceback.StackSummary.extract(
            traceback.walk_tb(link.__traceback__), limit=-STACK_FRAMES, lookup_lines=False
        )
        lines = [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in frames]
        name = f"{type(link).__module__}.{type(link).__qualname__}".removeprefix("builtins.")
        parts += [*lines, f"{name}: {link}" if wordy else name]
    return "\n".join(parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(CHAIN):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found.group()).strip("'")
