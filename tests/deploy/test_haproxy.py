"""haproxy.cfg in a real HAProxy before live servers: what it passes on, what it answers itself, and what it sends again.

Load, and servers that are rolled, are tests/scale's.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.proxies import changed, gateway, logged, running, tool, until
from tests.live import Live, free_port
from vecgate import deploy

ASKED = {"input": ["a cat", "dogs bark"]}
NAME = "vecgate.example.com"


@dataclass(frozen=True, slots=True)
class Balanced:
    client: httpx.Client
    servers: tuple[Live, Live]
    counts: str
    said: Path


@contextmanager
def balancer(folder: Path, one: int, two: int) -> Iterator[tuple[int, str]]:
    """HAProxy before two ports: its own, and the address of its counts."""
    haproxy, port, counts = tool("haproxy", "haproxy"), free_port(), free_port()
    changes = {
        "bind :9000": f"bind 127.0.0.1:{port}",
        "127.0.0.1:9001": f"127.0.0.1:{one}",
        "127.0.0.1:9002": f"127.0.0.1:{two}",
        "127.0.0.1:8404": f"127.0.0.1:{counts}",
    }
    (folder / "haproxy.cfg").write_text(changed(deploy.read("haproxy"), changes))
    with running([haproxy, "-db", "-f", "haproxy.cfg"], folder, port):
        yield port, f"http://127.0.0.1:{counts}"


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    tool("haproxy", "haproxy")
    folder = tmp_path_factory.mktemp("haproxy")
    names = {"ALLOWED_HOSTS": NAME, "VECGATE_TRUSTED_PROXIES": "127.0.0.1"}
    with gateway(folder, **names) as one, gateway(folder, **names) as two:
        one.ready(), two.ready()
        with balancer(folder, one.port, two.port) as (port, counts), httpx.Client(**asking(port)) as client:
            yield Balanced(client, (one, two), counts, folder / "haproxy.said")


def asking(port: int) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{port}", "headers": {"host": NAME}, "timeout": 60}


def test_the_file_is_valid_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text(deploy.read("haproxy"))
    checked = subprocess.run(
        [tool("haproxy", "haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True
    )
    assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr


def test_every_dialect_passes_and_both_servers_work(balanced: Balanced) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: balanced.client.post("/v1/embeddings", json=ASKED), range(40)))
    expected = json.loads(balanced.servers[0].post("/v1/embeddings", ASKED)[2])
    assert [answer.json() for answer in answers] == [expected] * 40
    assert all('"POST /v1/embeddings 200"' in server.log() for server in balanced.servers)
    assert balanced.client.post("/embed", json={"inputs": "a cat"}).status_code == 200


def test_a_body_of_many_packets_and_one_over_the_buffer_arrive_whole(balanced: Balanced) -> None:
    for texts in (["word " * 40_000] * 4, ["word " * 100_000] * 5):  # 0.8 and 2.5 MB
        answer = balanced.client.post("/v1/embeddings", json={"input": texts})
        assert len(answer.json()["data"]) == len(texts)


def test_the_live_page_s_readings_come_one_by_one(balanced: Balanced) -> None:
    with balanced.client.stream("GET", "/api/v1/live") as answer:
        first = next(answer.iter_lines())  # the stream goes on, so that this came before its end
    assert json.loads(first.removeprefix("data: "))["status"] == "ok"


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "mine-1"}])
def test_the_request_s_id_is_the_same_in_answer_and_both_logs(balanced: Balanced, sent: dict[str, str]) -> None:
    answer = balanced.client.post("/v1/embeddings", json=ASKED, headers=sent)
    id_ = answer.headers["x-request-id"]
    assert id_ == sent.get("x-request-id", id_)
    until(lambda: f"{{{id_}}}" in balanced.said.read_text())
    assert [line["client"] for line in logged(balanced.servers, id_)] == ["127.0.0.1"]


def test_what_a_client_says_of_its_address_is_not_the_last_word(balanced: Balanced) -> None:
    answer = balanced.client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"})
    assert [line["client"] for line in logged(balanced.servers, answer.headers["x-request-id"])] == ["127.0.0.1"]


def test_only_names_that_the_servers_know_are_served(balanced: Balanced) -> None:
    assert balanced.client.get("/v1/models", headers={"host": "other.example.com"}).status_code == 403


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/metrics/", "/%6detrics", "/metrics//"])
def test_the_metrics_stay_inside(balanced: Balanced, path: str) -> None:
    asked = balanced.client.base_url.copy_with(raw_path=path.encode())
    assert balanced.client.get(asked).status_code == 404


def test_its_own_counts_are_told_on_a_port_of_their_own(balanced: Balanced) -> None:
    assert [state(balanced.counts, name) for name in ("vecgate1", "vecgate2")] == ["UP", "UP"]
    assert "vecgate2" in httpx.get(f"{balanced.counts}/").text


class Losing(ThreadingHTTPServer):
    """Ready, and then no use: it reads a request and closes the connection, or answers `status`. `seen`: of what lengths."""

    daemon_threads = True

    def __init__(self, status: int | None) -> None:
        super().__init__(("127.0.0.1", free_port()), Request)
        self.status = status
        self.seen: list[int] = []


class Request(BaseHTTPRequestHandler):
    server: Losing
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200)

    def do_POST(self) -> None:
        self.server.seen.append(len(self.rfile.read(int(self.headers["content-length"]))))
        if self.server.status is None:
            self.close_connection = True
        else:
            self.answer(self.server.status)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def losing(status: int | None) -> Iterator[Losing]:
    with Losing(status) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [None, 503])
def test_what_fits_the_buffer_is_sent_again_and_what_does_not_is_lost(
    balanced: Balanced, tmp_path: Path, status: int | None
) -> None:
    small, large = {"input": ["a cat"] * 2}, {"input": ["word " * 250_000]}
    with (
        losing(status) as server,
        balancer(tmp_path, server.server_port, balanced.servers[1].port) as (port, _),
        httpx.Client(**asking(port)) as client,
    ):
        again = [client.post("/v1/embeddings", json=small) for _ in range(6)]
        nearly = [client.post("/v1/embeddings", json={"input": ["word " * 200_000]}) for _ in range(6)]
        assert {answer.status_code for answer in [*again, *nearly]} == {200}
        assert min(server.seen) < 100 < 1_000_000 < max(server.seen) < 1 << 20
        # each on a connection of its own: where one was used before, the client gets no answer instead of the 502
        lost = [httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=large, timeout=60) for _ in range(6)]
    assert {answer.status_code for answer in lost} == {200, status or 502}
    assert max(server.seen) > 1 << 20


def test_where_no_server_is_ready_it_says_so_in_the_clients_shape(balanced: Balanced, tmp_path: Path) -> None:
    with balancer(tmp_path, free_port(), free_port()) as (port, _):
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=ASKED)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "not_ready"


def test_a_server_that_is_gone_is_out_at_once(balanced: Balanced, tmp_path: Path) -> None:
    with losing(200) as server, balancer(tmp_path, server.server_port, balanced.servers[1].port) as (port, counts):
        assert state(counts, "vecgate1") == "UP"
        server.shutdown()
        server.server_close()
        with httpx.Client(**asking(port)) as client:
            assert {client.post("/v1/embeddings", json=ASKED).status_code for _ in range(4)} == {200}
        assert state(counts, "vecgate1") == "DOWN"


def state(counts: str, name: str) -> str:
    found = re.search(
        rf'haproxy_server_status{{proxy="vecgates",server="{name}",state="(\w+)"}} 1',
        httpx.get(f"{counts}/metrics").text,
    )
    assert found is not None
    return found[1]
