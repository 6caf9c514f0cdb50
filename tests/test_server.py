"""The server over its socket: what can be bound, and every way it ends: signals, stuck clients, a stuck or lost device.

A status of 0 or 1 that comes although the drain may take minutes shows that nothing was waited for in vain.
"""

from __future__ import annotations

import errno
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


# what can be bound


def test_any_free_port_for_0() -> None:
    address, port = server.free_place("127.0.0.1", 0)
    assert address == "127.0.0.1"
    assert 0 < port < 65_536
    assert server.free_place("127.0.0.1", port) == (address, port)


def test_a_name_becomes_an_address() -> None:
    assert server.free_place("localhost", 0)[0] in ("127.0.0.1", "::1")


def test_a_name_with_both_kinds_of_address_is_bound_as_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    both: Any = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert server.free_place("localhost", 0)[0] == "127.0.0.1"


def test_a_port_in_use_names_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} on 127\.0\.0\.1 is in use.*PORT={port + 1} or --port"):
            server.free_place("127.0.0.1", port)


def failing(code: int) -> Any:
    def bind(_self: socket.socket, _address: object) -> None:
        raise OSError(code, "no")

    return bind


@pytest.mark.parametrize(
    ("code", "port", "told"),
    [
        (errno.EADDRINUSE, 65_535, "PORT=65534"),
        (errno.EACCES, 80, "Port 80 on 127.0.0.1 needs more rights.*from 1024 up"),
        (errno.EPERM, 80, "needs more rights"),
        (errno.EADDRNOTAVAIL, 80, "HOST '127.0.0.1' is not an address of this machine"),
    ],
)
def test_what_the_system_refuses(monkeypatch: pytest.MonkeyPatch, code: int, port: int, told: str) -> None:
    monkeypatch.setattr(socket.socket, "bind", failing(code))
    with pytest.raises(ConfigError, match=told):
        server.free_place("127.0.0.1", port)


def test_a_host_that_is_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"HOST '203\.0\.113\.7' is not an address.*127\.0\.0\.1 or 0\.0\.0\.0"):
        server.free_place("203.0.113.7", 0)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"HOST 'nowhere' is not an address.*not known"):
        server.free_place("nowhere", 0)


def test_an_address_with_a_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="zone"):
        server.free_place("fe80::1%eth0", 9000)


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
        server.run(alive, life, "127.0.0.1", taken.getsockname()[1], 1.0)


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
