"""The server over its socket: what it says of it, and every way it ends: signals, stuck clients, a stuck or lost device.

A status of 0 or 1 that comes although the drain may take minutes shows that nothing was waited for in vain.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import BadStatusLine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme

from tests import small
from tests.live import Live, command, environment, free_port
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


def until_answered(url: str) -> bytes:
    """What stands there once somebody listens."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=KILL_S) as answer:
                return bytes(answer.read())
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise


def test_a_port_that_was_taken_meanwhile_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    life = server.Life(leaving=lambda: None, drain=nothing, on_death=lambda _: None)
    shared = socket.create_server(("127.0.0.1", 0), reuse_port=True)  # as granian would take it, and share it
    with shared as taken, pytest.raises(ConfigError, match="is in use"):
        server.run(alive, life, Place("127.0.0.1", taken.getsockname()[1]), 1.0)


def test_a_socket_that_was_taken_meanwhile_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)
    life = server.Life(leaving=lambda: None, drain=nothing, on_death=lambda _: None)
    with TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as taken:
        path = Path(folder) / "x.sock"
        taken.bind(str(path))
        taken.listen()
        with pytest.raises(ConfigError, match="is in use"):
            server.run(alive, life, Place(uds=path), 1.0)
        assert path.exists()


def test_every_request_passes_the_loop_that_begins_a_burst_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """granian hands each over with a watcher that has its scope: what Loop tells a probe from a burst by."""
    asked, die = list[str](), list[Callable[[], None]]()
    monkeypatch.setattr(sys, "setswitchinterval", lambda _: None)

    def noting(scope: dict[str, Any]) -> bool:
        asked.append(scope["path"])
        return str(scope["path"]).startswith("/health")

    port = free_port()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await alive(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    def client() -> None:
        for path in ("/v1/embeddings", "/health/live"):
            assert until_answered(f"http://127.0.0.1:{port}{path}") == path.encode()
        die[0]()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client)
        life = server.Life(leaving=lambda: None, drain=nothing, on_death=die.append, is_first=noting)
        assert server.run(app, life, Place("127.0.0.1", port), 1.0) == 1
        asking.result()
    assert set(asked) == {"/v1/embeddings", "/health/live"}


def test_port_0_is_told_in_the_log(tmp_path: Path) -> None:
    with scripted(tmp_path, "slow", "--port", "0", "--host", "localhost") as live:
        while not (found := re.search(r"http://localhost:(\d+),", live.log())):
            assert live.process.poll() is None
            time.sleep(0.02)
        live.port = int(found[1])
        live.url = f"http://127.0.0.1:{live.port}"
        live.ready()


# a Unix socket


@contextmanager
def on_a_socket(*flags: str, how: str = "slow", **names: str) -> Iterator[tuple[Live, Path]]:
    """A server on a socket, once it answers there, and the socket's path."""
    with TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "x.sock"
        with scripted(Path(folder), how, *flags, VECGATE_UDS=str(path), **names) as live:
            while "Ready at unix:" not in live.log():
                assert live.process.poll() is None, live.log()
                time.sleep(0.05)
            yield live, path


def health(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return answer_of(client)


def commanded(live: Live, *arguments: str, **names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**names), cwd=live.cwd, capture_output=True, text=True, timeout=KILL_S
    )


def test_a_socket_serves_the_commands_and_is_taken_once_and_gone_at_the_end() -> None:
    with on_a_socket() as (live, path):
        done = commanded(live, "embed", "a cat", "--url", f"unix:{path}")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(json.loads(done.stdout)["embedding"]) == 8
        names = {"BACKEND": "fake", "MODEL_NAME": str(live.cwd / "small"), "VECGATE_UDS": str(path)}
        second = commanded(live, "serve", **names)
        assert (second.returncode, second.stderr) == (
            2,
            f"vecgate: VECGATE_UDS '{path}' is in use: stop the server that listens there, or choose another.\n",
        )
        assert ended(live, signal.SIGTERM) == 0
        assert not path.exists()


def test_a_socket_is_gone_after_a_second_signal_and_a_killed_servers_is_replaced() -> None:
    with on_a_socket(how="stuck") as (live, path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        body = json.dumps(POISON).encode()
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        while b'"busy_s":null' in health(path):
            assert live.process.poll() is None
        live.process.send_signal(signal.SIGINT)
        while "Leaving" not in live.log():
            assert live.process.poll() is None
        assert ended(live, signal.SIGINT) == 130
        assert not path.exists()
    with on_a_socket() as (live, path):
        live.process.kill()
        live.process.wait(KILL_S)
        assert path.is_socket()
        names = {"BACKEND": "fake", "MODEL_NAME": str(live.cwd / "small"), "HOW": "slow"}
        with Live(live.cwd, module="tests.scripted", VECGATE_UDS=str(path), **names) as again:
            while "Ready at unix:" not in again.log():
                assert again.process.poll() is None, again.log()
                time.sleep(0.05)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"GET /health/ready HTTP/1.1\r\nHost: whatever\r\n\r\n")
                assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


# https


def test_the_commands_speak_https_to_a_server_whose_root_they_know(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "root.pem")
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    with scripted(tmp_path, "slow", VECGATE_TLS_CERT="both.pem") as live:
        url = f"https://localhost:{live.port}"
        while f"Ready at https://127.0.0.1:{live.port}" not in live.log():
            assert live.process.poll() is None, live.log()
            time.sleep(0.05)
        done = commanded(live, "embed", "a cat", "--url", url, SSL_CERT_FILE="root.pem")
        assert (done.returncode, done.stderr) == (0, "")
        unknown = commanded(live, "embed", "a cat", "--url", url)
        assert unknown.returncode == 1
        assert "not trusted here" in unknown.stderr
        assert "SSL_CERT_FILE" in unknown.stderr
        with pytest.raises((ConnectionError, BadStatusLine)):  # an alert in TLS's own bytes
            live.get("/health")
        assert ended(live, signal.SIGTERM) == 0


# how it ends


@pytest.mark.parametrize(("before", "drains"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminal_that_closes_is_a_signal_unless_nohup_said_otherwise(before: Any, drains: bool) -> None:
    async def heard() -> list[bool]:
        server._on_signals(asyncio.Event(), Place())
        loop = asyncio.get_running_loop()
        return [loop.remove_signal_handler(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    kept = signal.signal(signal.SIGHUP, before)
    try:
        assert asyncio.run(heard()) == [True, True, drains]
    finally:
        signal.signal(signal.SIGHUP, kept)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_no_model_to_load(tmp_path: Path, number: signal.Signals) -> None:
    with scripted(tmp_path, "loading") as live:
        live.wait_for("/health", 200, '"status":"loading"')
        assert ended(live, number) == 0


def test_a_second_signal_leaves_at_once_while_the_model_loads(tmp_path: Path) -> None:
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    with scripted(tmp_path, "loading") as live:
        live.wait_for("/health", 200, '"status":"loading"')
        with connected(live, request):
            assert ended(live, signal.SIGINT, signal.SIGINT) in (0, 130)  # where the first one was already enough


def test_ctrl_c_in_make_ends_the_server_in_order(tmp_path: Path) -> None:
    """A terminal sends it to make and to the server; make must not end it a second time."""
    (tmp_path / "Makefile").write_text(f"serve:\n\t@exec {sys.executable} -m tests.scripted serve\n")
    names = {"BACKEND": "fake", "MODEL_NAME": str(small.folder(tmp_path / "small")), "HOW": "slow"}
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        make = subprocess.Popen(
            ["make", "serve"],
            cwd=tmp_path,
            env=environment(PORT=str(port), VECGATE_DRAIN_TIMEOUT="600", **names),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while b"Ready at" not in (tmp_path / "log").read_bytes():
                assert make.poll() is None
                time.sleep(0.05)
            os.killpg(make.pid, signal.SIGINT)
            make.wait(KILL_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGKILL)
    assert b"Left with status 0." in (tmp_path / "log").read_bytes()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_slow_reader_gets_its_whole_answer_after_sigterm(tmp_path: Path) -> None:
    body = json.dumps({"input": ["a cat"] * 500}).encode()
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    wide = str(small.folder(tmp_path / "wide", dimensions=4096))  # 20 MB of numbers, more than any system's buffers
    with scripted(tmp_path, "slow", MODEL_NAME=wide) as live, connected(live.ready(), request) as reader:
        while "POST /v1/embeddings 200" not in live.log():
            assert live.process.poll() is None
        live.process.send_signal(signal.SIGTERM)
        while "Leaving" not in live.log():
            assert live.process.poll() is None
        answer = reader.makefile("rb")
        head = b"".join(iter(answer.readline, b"\r\n"))
        length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
        assert length > 10_000_000
        assert len(answer.read(length)) == length
        answer.close()
        reader.close()
        assert live.process.wait(KILL_S) == 0


def test_a_deadline_ends_the_request_and_its_work(tmp_path: Path) -> None:
    with scripted(tmp_path, "stuck", REQUEST_TIMEOUT="1") as live, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(live.ready().post, "/v1/embeddings", POISON) for _ in range(3)]
        answers = [one.result() for one in asked]  # one computing, two waiting
        assert [status for status, _, _ in answers] == [504] * 3
        assert all(headers["x-should-retry"] == "false" for _, headers, _ in answers)
        assert all(b"(REQUEST_TIMEOUT)" in body for _, _, body in answers)
        assert json.loads(live.get("/health")[2])["queue"]["items"] == 0


def test_sigterm_gives_up_a_device_that_hangs_once_the_drain_is_over(tmp_path: Path) -> None:
    with scripted(tmp_path, "stuck", VECGATE_DRAIN_TIMEOUT="0.2") as live, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.ready().post, "/v1/embeddings", POISON)
        busy(live)
        assert ended(live, signal.SIGTERM) == 0
        status, headers, body = answer.result()
    assert (status, headers["retry-after"]) == (503, "5")
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
