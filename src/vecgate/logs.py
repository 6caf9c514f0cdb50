"""The log: one line an event as JSON or for eyes, written by a thread of its own so that a slow terminal stops nobody.

What reaches a record is the caller's choice, and no caller hands over a text or a key; exceptions, which may quote what a
client sent, are shown by type and place alone, and libraries are heard from WARNING up. Knows no event.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import QueueHandler, RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TextIO

import msgspec

from vecgate.errors import ConfigError

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
        event = {"time": at, "level": record.levelname, "logger": record.name, "message": _message(record)}
        event |= _extra(record, "parts") | _extra(record, "fields")
        if record.exc_info and record.exc_info[1]:
            event["stack"] = stack(record.exc_info[1])
        return msgspec.json.encode(event, enc_hook=str).decode("utf-8", "backslashreplace")


class Console(logging.Formatter):
    """`12:00:00.000 INFO access: POST /v1/embeddings 200 id=... ms=...`; control characters come out escaped."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = _extra(record, "fields")
        raised = record.exc_info and record.exc_info[1]
        where = fields.pop("stack", None) or (stack(raised) if raised else None)
        said = " ".join([_message(record), *(f"{name}={value}" for name, value in fields.items())])
        name = record.name.removeprefix("vecgate.")
        line = f"{at}.{int(record.msecs):03d} {record.levelname} {name}: {_CONTROL.sub(_escaped, said)}"
        return f"{line}\n{where}" if where else line


class Bounded(QueueHandler):
    """Hands records over unformatted, and drops them, counted, rather than wait for whoever reads the log."""

    queue: SimpleQueue[logging.LogRecord | None]

    def __init__(self) -> None:
        super().__init__(SimpleQueue())
        self.dropped = 0
        self.overflowed = 0
        self.unwritten = 0

    @property
    def lost(self) -> int:
        """Lines since the start that nobody took: no room for them here, or none where they were to be written."""
        return self.overflowed + self.unwritten

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= WAITING_LINES:
            self.dropped += 1
            self.overflowed += 1
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


@dataclass(frozen=True, slots=True)
class File:
    """A file that keeps the log. most_bytes: it is then renamed to .1, .2 ... and begun anew, and `kept` old ones stay
    (None: it grows, and one that somebody moved away, such as logrotate, is begun anew without a signal)."""

    path: Path
    most_bytes: int | None = None
    kept: int = 5

    def open(self) -> Watched | Rotated:
        """Raises ConfigError."""
        try:
            if self.most_bytes is None:
                opened: Watched | Rotated = Watched(self.path, encoding="utf-8")
            else:
                opened = Rotated(self.path, maxBytes=self.most_bytes, backupCount=self.kept, encoding="utf-8")
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise ConfigError(
                f"LOG_FILE is {str(self.path)!a}, which can't be written ({why}): name a file in a folder that exists."
            ) from None
        opened.setFormatter(_Written())
        return opened


class _Written(logging.Formatter):
    """The line that was made for standard error."""

    def format(self, record: logging.LogRecord) -> str:
        return str(record.__dict__["line"])


class _Counting(logging.FileHandler):
    """Never fails: a line that the disk does not take is counted. Each line is tried, so that a disk that has room
    again is written to again."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        self.lost += 1

    def take(self, record: logging.LogRecord) -> None:
        try:
            self.emit(record)
        except OSError:  # the folder is gone: from looking for the file, before emit's own care
            self.handleError(record)


class Watched(_Counting, WatchedFileHandler):
    pass


class Rotated(_Counting, RotatingFileHandler):
    pass


@dataclass(slots=True)
class Writer:
    """Takes what waits in `handler` to the stream and the file, until None comes."""

    handler: Bounded
    formatter: logging.Formatter
    stream: TextIO
    file: Watched | Rotated | None = None
    _ended: bool = field(default=False, init=False)

    def run(self) -> None:
        while not self._ended:
            self._write([record for record in self._batch() if record is not None])
        if self.file is not None:
            with suppress(OSError):  # what is still in its buffer, on a full disk
                self.file.close()

    def _batch(self) -> list[logging.LogRecord | None]:
        """All that waits, up to BATCH_LINES: a write a line would ask for the interpreter as often."""
        waiting = self.handler.queue
        batch = [waiting.get()]
        while batch[-1] is not None and len(batch) < BATCH_LINES and not waiting.empty():
            batch.append(waiting.get())
        self._ended = batch[-1] is None
        return batch

    def _write(self, records: list[logging.LogRecord]) -> None:
        for record in records:
            record.__dict__["line"] = self._line(record)
        shown = [record.__dict__.get("block", record.__dict__["line"] + "\n") for record in records]
        try:
            self.stream.write("".join(shown))
            self.stream.flush()
        except (OSError, ValueError):  # the reader is gone, the stream closed
            self.handler.unwritten += len(records) if self.file is None else 0
        if self.file is not None:
            before = self.file.lost
            for record in records:
                self.file.take(record)
            self.handler.unwritten += self.file.lost - before

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.formatter.format(record)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            bare = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
            said = {"msg": "A line that can't be written (%s).", "args": (type(error).__name__,)}
            return self.formatter.format(logging.makeLogRecord(bare | said))


@contextmanager
def logging_to(
    stream: TextIO | None = None, level: str = "INFO", form: Format = "json", file: File | None = None
) -> Iterator[Bounded]:
    """Everything that vecgate logs at `level` or above, and others from WARNING up, goes to the stream (stderr) and the
    file until the end of the block, which writes what waits, for FLUSH_S at most. Raises ConfigError.

    A record's `block` (`extra={"block": text}`) is shown on the stream instead of its line.
    """
    opened = file.open() if file is not None else None
    handler, root, own = Bounded(), logging.getLogger(), logging.getLogger("vecgate")
    formatter = Json() if form == "json" else Console()
    writer = threading.Thread(
        target=Writer(handler, formatter, stream or sys.stderr, opened).run, name="vecgate-log", daemon=True
    )
    before = root.level, own.level
    _spare(True)
    root.addHandler(handler)
    own.setLevel(level.upper())
    root.setLevel(max(own.level, logging.WARNING))
    writer.start()
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        own.setLevel(before[1])
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


def _message(record: logging.LogRecord) -> str:
    """asyncio's own would show an exception's message and a callback's arguments."""
    if record.name != "asyncio":
        return record.getMessage()
    return "An error that nobody waited for" if record.exc_info else record.getMessage().partition("\n")[0]


def stack(error: BaseException) -> str:
    """Where an error came from: types and frames, outermost cause first, never its message.

    The message of an unforeseen error may quote what the client sent, and no line of the log does.
    """
    parts: list[str] = []
    for link in reversed(list(_chain(error))):
        frames = traceback.StackSummary.extract(
            traceback.walk_tb(link.__traceback__), limit=-STACK_FRAMES, lookup_lines=False
        )
        parts += [f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in frames]
        parts.append(f"{type(link).__module__}.{type(link).__qualname__}".removeprefix("builtins."))
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
