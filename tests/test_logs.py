"""logs.py: what a line looks like, and that a reader that has stopped reading stops nobody."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from vecgate import logs
from vecgate.errors import ConfigError

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
        assert log.isEnabledFor(logging.DEBUG)
        assert not logging.getLogger("httpcore").isEnabledFor(logging.INFO)
    assert not log.isEnabledFor(logging.DEBUG)
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
    told = logs.stack(caught(2))
    assert "SECRET" not in told
    assert told.index("ValueError") < told.index("RuntimeError")
    assert "test_logs.py" in told
    assert "in deep" in told


def test_a_stack_is_short_however_deep_the_recursion() -> None:
    assert logs.stack(caught(500)).count("\n") < 3 * logs.STACK_FRAMES


# the file


def file(path: Path, **more: Any) -> logs.File:
    return logs.File(path / "vecgate.log", **more)


def messages(path: Path) -> list[str]:
    return [json.loads(line)["message"] for line in path.read_text().splitlines()]


def test_a_file_gets_what_standard_error_gets(tmp_path: Path) -> None:
    out = io.StringIO()
    with logs.logging_to(out, file=file(tmp_path)) as lines:
        log.info("one", extra={"block": "ONE\n"})
        log.info("two")
    assert messages(tmp_path / "vecgate.log") == ["one", "two"]
    shown, second = out.getvalue().splitlines()
    assert (shown, json.loads(second)["message"]) == ("ONE", "two")
    assert lines.lost == 0


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    with logs.logging_to(io.StringIO(), file=file(tmp_path)):
        log.info("one")
        while not (tmp_path / "vecgate.log").read_text():
            pass
        (tmp_path / "vecgate.log").rename(tmp_path / "old")
        log.info("two")
    assert messages(tmp_path / "old") == ["one"]
    assert messages(tmp_path / "vecgate.log") == ["two"]


def test_a_full_disk_costs_lines_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "vecgate.log").symlink_to("/dev/full")
    out = io.StringIO()
    with logs.logging_to(out, file=file(tmp_path)) as lines:
        for _ in range(3):
            log.info("lost")
    assert lines.lost == 3
    assert len(out.getvalue().splitlines()) == 3


def test_a_folder_that_went_away_costs_lines_too(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with logs.logging_to(io.StringIO(), file=file(folder)) as lines:
        (folder / "vecgate.log").unlink()
        folder.rmdir()
        log.info("lost")
    assert lines.lost == 1


@pytest.mark.parametrize("path", ["", "missing/vecgate.log"])
def test_a_file_that_can_not_be_written_stops_the_start(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LOG_FILE is .*: name a file in a folder that exists\.$"):
        logs.File(tmp_path / path).open()


def test_a_line_that_can_not_be_made_is_replaced() -> None:
    out = io.StringIO()
    with logs.logging_to(out) as lines:
        wrong = {"name": "vecgate.x", "levelname": "INFO", "msg": "%d", "args": ("SECRET",)}
        lines.enqueue(logging.makeLogRecord(wrong))  # pytest's own handler would raise
        log.info("next")
    first, second = (json.loads(line)["message"] for line in out.getvalue().splitlines())
    assert (first, second) == ("A line that can't be written (TypeError).", "next")


def test_what_asyncio_says_of_an_error_shows_neither_its_message_nor_its_arguments() -> None:
    def fails(_text: str) -> None:
        raise ValueError("SECRET")

    async def scene() -> None:
        asyncio.get_running_loop().call_soon(fails, "SECRET")
        await asyncio.sleep(0)

    out = io.StringIO()
    with logs.logging_to(out, "DEBUG"):
        asyncio.run(scene())
    assert "ValueError" in out.getvalue()
    assert "SECRET" not in out.getvalue()
