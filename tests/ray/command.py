"""`vecgate serve --engine ray` as a person runs it: one command, and nothing of it left at the end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests import small
from tests.live import Live
from tests.ray import stand


def served(cwd: Path) -> Live:
    model = small.folder(cwd / "small")
    return Live(cwd, BACKEND="fake", MODEL_NAME=str(model), VECGATE_ENGINE="ray", VECGATE_CACHE_DIR=str(cwd / "cache"))


def below(server: Live) -> list[psutil.Process]:
    return [*psutil.Process(server.process.pid).children(recursive=True), psutil.Process(server.process.pid)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_end_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path) as server:
        stand.until(lambda: server.process.poll() is not None or "Ready at" in server.log())
        assert server.post(stand.EMBED, {"input": "a cat"})[0] == 200
        started = below(server)
        assert len(stand.processes("vecgate:Engine", server.process.pid)) == 2
        server.process.send_signal(number)
        assert server.process.wait(stand.WAIT_S) == 0
    assert psutil.wait_procs(started, timeout=stand.WAIT_S)[1] == []
    lines = [json.loads(line) for line in server.log().splitlines()]
    assert lines[-1]["message"] == "Left with status 0."


def test_an_end_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        stand.until(lambda: bool(stand.processes("raylet", server.process.pid)))
        time.sleep(1.0)
        started = below(server)
        server.process.terminate()
        assert server.process.wait(stand.WAIT_S) in (signal.SIGTERM, 128 + signal.SIGTERM)  # Ray's own word, ours
    assert psutil.wait_procs(started, timeout=stand.WAIT_S)[1] == []


def test_what_is_wrong_is_said_in_a_line_before_ray_is_started(tmp_path: Path) -> None:
    with Live(tmp_path, "--model", "./nothing", VECGATE_ENGINE="ray", BACKEND="fake") as server:
        assert server.process.wait(stand.WAIT_S) == 2
    assert "./nothing" in server.log().splitlines()[-1]
    assert "Starting Ray" not in server.log()
