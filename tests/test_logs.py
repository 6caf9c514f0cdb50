"""logs.py: what a line looks like, and that a reader that has stopped reading stops nobody."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from vecgate import logs

log = logging.getLogger("vecgate.test")


def test_a_json_line_holds_the_fields() -> None:
    out = io.StringIO()
    with logs.logging_to(out, "INFO", "json"):
        log.info(
            "%s done", "work", extra={"parts": {"what": "work"}, "fields": {"id": "abc", "ms": 1.5, "odd": object}}
        )
        log.debug("not shown")
    (line,) = out.getvalue().splitlines()
    event = json.loads(line)
    assert event["time"].endswith("Z")
    assert event | {"time": "", "odd": ""} == {
        "time": "",
        "level": "INFO",
        "logger": "vecgate.test",
        "message": "work done",
        "what": "work",
        "id": "abc",
        "ms": 1.5,
        "odd": "",
    }


def test_a_console_line_escapes_what_could_forge_another() -> None:
    out = io.StringIO()
    with logs.logging_to(out, "info", "console"):
        log.warning("said %s", "a\nb\x1b[31m", extra={"parts": {"what": "a"}, "fields": {"id": "x\u2028y"}})
    (line,) = out.getvalue().split("\n")[:-1]
    assert line.endswith(r"WARNING test: said a\nb\x1b[31m id=x\u2028y")


def test_an_exception_shows_its_stack_in_both_forms() -> None:
    forms: tuple[logs.Format, ...] = ("json", "console")
    for form in forms:
        out = io.StringIO()
        with logs.logging_to(out, "INFO", form):
            try:
                raise KeyError("lost")
            except KeyError:
                log.exception("failed")
        assert "in test_an_exception_shows" in out.getvalue()
        assert "KeyError" in out.getvalue()


def test_lines_keep_their_order_and_none_is_lost() -> None:
    out = io.StringIO()
    with logs.logging_to(out):
        for number in range(3000):
            log.info("%d", number)
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == [str(n) for n in range(3000)]


class Stuck(io.StringIO):
    """A pipe whose reader sleeps until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go.wait()
        return super().write(text)


def test_a_stuck_reader_costs_lines_not_memory_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAITING_LINES", 10)
    out = Stuck()
    with logs.logging_to(out) as handler:
        log.info("first")
        out.reached.wait()
        for _ in range(50):
            log.info("more")
        assert handler.queue.qsize() == 10
        assert handler.dropped == 40
        out.go.set()
        while handler.queue.qsize():
            pass
        log.info("last")
    told = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert told == ["first", *["more"] * 10, "40 log lines were dropped.", "last"]


def test_a_closed_stream_ends_nothing() -> None:
    out = io.StringIO()
    with logs.logging_to(out):
        out.close()
        log.info("nobody reads this")


def test_logging_is_as_before_after_the_block() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.logThreads, threading.active_count())
    with logs.logging_to(io.StringIO(), "DEBUG"):
        assert root.level == logging.DEBUG
    assert (root.level, list(root.handlers), logging.logThreads, threading.active_count()) == before


def deep(depth: int) -> None:
    if depth == 0:
        raise ValueError("SECRET TEXT")
    deep(depth - 1)


def wrapped(depth: int) -> None:
    try:
        deep(depth)
    except ValueError as error:
        raise RuntimeError("SECRET TEXT too") from error


def caught(depth: int) -> BaseException:
    with pytest.raises(RuntimeError) as found:
        wrapped(depth)
    return found.value


def test_a_stack_names_types_and_places_and_quotes_no_message() -> None:
    log.setLevel(logging.INFO)
    told = logs.stack(caught(2), log)
    assert "SECRET" not in told
    assert told.index("ValueError") < told.index("RuntimeError")
    assert "test_logs.py" in told
    assert "in deep" in told


def test_a_stack_quotes_the_message_at_debug() -> None:
    log.setLevel(logging.DEBUG)
    assert "ValueError: SECRET TEXT" in logs.stack(caught(2), log)
    log.setLevel(logging.NOTSET)


def test_a_stack_is_short_however_deep_the_recursion() -> None:
    assert logs.stack(caught(500), log).count("\n") < 3 * logs.STACK_FRAMES
