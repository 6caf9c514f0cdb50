"""The recording proxy changes nothing of what goes through, and notes it under whom the control address named."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest

from tests.compat.clients import driving
from tests.compat.exchanges import Message
from tests.compat.proxy import Notes, Quiet, recording

BODY = b'{"input": "a"}'


class Echo(Quiet):
    """Answers with what it got."""

    def reply(self) -> None:
        if self.command == "HEAD":
            self.answer(Message("200", (("content-length", "7"),), b""))
            return
        got = {"headers": [*self.headers.items()], "path": self.path, "body": self.body().decode()}
        self.answer(Message("418", (("X-Kept", "As It Is"), ("vary", "origin")), json.dumps(got).encode()))


@contextmanager
def echo() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def stage() -> Iterator[tuple[str, str, Notes]]:
    """(proxy, control, notes)"""
    notes = Notes()
    with echo() as upstream, recording(upstream, notes) as (base, control):
        yield base, control, notes


def send(base: str, method: str = "POST", body: bytes | list[bytes] = BODY) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(base).netloc)
    try:
        connection.request(method, "/v1/x?a=%20b", body, {"X-Mine": "Yes"}, encode_chunked=isinstance(body, list))
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_request_and_its_answer_go_through_as_they_are(stage: tuple[str, str, Notes]) -> None:
    base, control, notes = stage
    driving.begin(control, "a-client", "batch")
    status, headers, answer = send(base)
    got = json.loads(answer)
    assert (status, headers["X-Kept"], headers["vary"]) == (418, "As It Is", "origin")
    assert (got["path"], got["body"].encode()) == ("/v1/x?a=%20b", BODY)
    assert ["Host", urlsplit(base).netloc] in got["headers"]
    (seen,) = notes.of("a-client", "batch")
    assert (seen.request.start, seen.request.body) == ("POST /v1/x?a=%20b", BODY)
    assert ("X-Mine", "Yes") in seen.request.headers
    assert (seen.response.start, seen.response.body, seen.by_proxy) == ("418", answer, False)


def test_a_body_in_chunks_arrives_whole(stage: tuple[str, str, Notes]) -> None:
    base, _, notes = stage
    got = json.loads(send(base, body=[b'{"input"', b': "a"}'])[2])
    assert got["body"].encode() == BODY
    assert ["Content-Length", str(len(BODY))] in got["headers"]
    assert [one.request.body for one in notes.strays()] == [BODY]


def test_an_answer_without_a_body_keeps_its_length(stage: tuple[str, str, Notes]) -> None:
    status, headers, body = send(stage[0], "HEAD")
    assert (status, headers["content-length"], body) == (200, "7", b"")


def test_exchanges_belong_to_the_case_that_was_begun_last(stage: tuple[str, str, Notes]) -> None:
    base, control, notes = stage
    for case in ("batch", "roles"):
        driving.begin(control, "a-client", case)
        send(base)
    send(base)
    assert [len(notes.of("a-client", case)) for case in ("batch", "roles", "rerank")] == [1, 2, 0]
    assert notes.strays() == []


def test_retries_are_refused_twice(stage: tuple[str, str, Notes]) -> None:
    base, control, notes = stage
    driving.begin(control, "a-client", "retries")
    answers = [send(base) for _ in range(3)]
    assert [status for status, _, _ in answers] == [503, 503, 418]
    assert answers[0][1]["retry-after"] == "1"
    assert [one.by_proxy for one in notes.of("a-client", "retries")] == [True, True, False]
