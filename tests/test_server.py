"""The server over its socket: what it says of it, and every way it ends: signals, stuck clients, a stuck or lost device.

A status of 0 or 1 that comes although the drain may take minutes shows that nothing was waited for in vain.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.live import Live
from vecgate import server
from vecgate.errors import ConfigError
from vecgate.place import Place

POISON = {"input": "poison"}
KILL_S = 60.0
"""No server of this file takes this long to end, unless it would not end at all."""


@contextmanager
def scripted(cwd: Path, how: str, *flags: str, **names: str) -> Iterator[Live]:
    """A server over a fake that misbehaves on POISON as tests/scripted.py says; its drain may take minutes."""
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(cwd / "small")), "VECGATE_DRAIN_TIMEOUT": "600", **names}
    with Live(cwd, *flags, module="tests.scripted", HOW=how, **names) as started:
        try:
            yield started
        finally:
            started.process.kill()


@contextmanager
def connected(live: Live, sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), KILL_S) as connection:
        connection.sendall(sent)
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


def busy(live: Live) -> None:
    """Until the device computes."""
    while json.loads(live.get("/health")[2])["queue"]["busy_s"] is None:
        assert live.process.poll() is None


def ended(live: Live, *signals: signal.Signals) -> int:
    for number in signals:
        live.process.send_signal(number)
    return live.process.wait(KILL_S)


# where it listens


async def alive(scope: Any, receive: Any, send: Any) -> None:
    """An app of a lifespan alone."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def nothing(_seconds: float) -> None:
    pass


def test_a_port_that_was_taken_meanwhile_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    life = server.Life(leaving=lambda: None, drain=nothing, on_death=lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="is in use"):
        server.run(alive, life, Place("127.0.0.1", taken.getsockname()[1]), 1.0)


def test_port_0_is_told_in_the_log(tmp_path: Path) -> None:
    with scripted(tmp_path, "slow", "--port", "0", "--host", "localhost") as live:
        while not (found := re.search(r"http://localhost:(\d+),", live.log())):
            assert live.process.poll() is None
            time.sleep(0.02)
        live.port = int(found[1])
        live.url = f"http://127.0.0.1:{live.port}"
        live.ready()


# how it ends


def test_sigterm_waits_for_no_silent_client(tmp_path: Path) -> None:
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        scripted(tmp_path, "slow") as live,
        connected(live.ready(), b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as idle,
        connected(live, request + b'Content-Length: 1000\r\n\r\n{"input": ') as stuck,
    ):
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200 ")
        while b"vecgate_requests_in_flight 2" not in live.get("/metrics")[2]:  # the stuck one and this probe
            assert live.process.poll() is None
        live.process.send_signal(signal.SIGTERM)
        told = answer_of(stuck)
        assert live.process.wait(KILL_S) == 0
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"shutting down" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_answer_under_way(tmp_path: Path, number: signal.Signals) -> None:
    with scripted(tmp_path, "slow") as live, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.ready().post, "/v1/embeddings", POISON)
        busy(live)
        assert ended(live, number) == 0
        assert answer.result()[0] == 200


def test_sigterm_while_the_model_loads(tmp_path: Path) -> None:
    with scripted(tmp_path, "loading", VECGATE_DRAIN_TIMEOUT="0") as live:
        live.wait_for("/health", 200, '"status":"loading"')
        assert ended(live, signal.SIGTERM) == 0


def test_sigterm_gives_up_a_device_that_hangs_once_the_drain_is_over(tmp_path: Path) -> None:
    with scripted(tmp_path, "stuck", VECGATE_DRAIN_TIMEOUT="0.2") as live, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.ready().post, "/v1/embeddings", POISON)
        busy(live)
        assert ended(live, signal.SIGTERM) == 0
        status, _, body = answer.result()
    assert status == 503
    assert b"shutting down" in body


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with scripted(tmp_path, "stuck") as live, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.ready().post, "/v1/embeddings", POISON)
        busy(live)
        live.process.send_signal(number)
        live.wait_for("/health/ready", 503, "draining")
        assert ended(live, number) == status
        with pytest.raises(ConnectionError):
            answer.result()


def test_a_lost_device_ends_the_process_with_status_1(tmp_path: Path) -> None:
    with scripted(tmp_path, "lost") as live:
        status, _, body = live.ready().post("/v1/embeddings", POISON)
        assert live.process.wait(KILL_S) == 1
        log = live.log()
    assert status == 503
    assert b"bus" not in body
    assert "The device fell off the bus." in log
