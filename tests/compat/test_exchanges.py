"""What is kept of an exchange: what differs between two recordings is masked and named, all else is there to the byte."""

from __future__ import annotations

from tests.compat.exchanges import BODY_MASKS, Exchange, Message, digest, folded, kept, kept_message, unfolded

REQUEST = Message(
    "POST /v1/embed",
    (
        ("Host", "127.0.0.1:4711"),
        ("user-agent", "ollama-python/0.6.3 (x86_64 linux) Python/3.11.7"),
        ("x-stainless-os", "Linux"),
        ("Content-Length", "2"),
    ),
    b"{}",
)
RESPONSE = Message(
    "200",
    (
        ("date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("x-request-id", "abc"),
        ("server-timing", "queue;dur=0.20, encode;dur=10"),
        ("x-total-time", "3"),
        ("content-length", "99"),
    ),
    b'{"id":"4d2b86b0-2daf-4283-87de-f6bd3a5d5b5e","total_duration":1337,"score":0.5,"at":"127.0.0.1:4711"}',
)


def test_what_differs_from_call_to_call_is_masked_and_named() -> None:
    request, response = (kept(Exchange(REQUEST, RESPONSE))[side] for side in ("request", "response"))
    assert request["headers"] == {
        "Host": "<host>",
        "user-agent": "ollama-python/0.6.3 (<machine>) Python/<version>",
        "x-stainless-os": "<machine>",
        "Content-Length": "2",
    }
    assert request["masked"] == ["Host", "user-agent", "x-stainless-os"]
    assert response["headers"] == {
        "date": "<time>",
        "x-request-id": "<id>",
        "server-timing": "queue;dur=<time>, encode;dur=<time>",
        "x-total-time": "<time>",
        "content-length": "<length>",
    }
    assert response["body"] == '{"id":"<id>","total_duration":<time>,"score":0.5,"at":"<host>"}'
    assert response["masked"][-3:] == ["body: id", "body: durations", "body: host"]


def test_the_hash_is_that_of_the_masked_message() -> None:
    other = Message("200", (("x-request-id", "def"), *RESPONSE.headers[2:]), RESPONSE.body)
    same = Message("200", RESPONSE.headers[1:], RESPONSE.body)
    changed = Message("200", RESPONSE.headers[1:], RESPONSE.body.replace(b"0.5", b"0.6"))
    hashes = [kept_message(one, BODY_MASKS)["sha256"] for one in (same, other, changed)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert digest("200", [("a", "b")], "c") == "6499afc1307ce6fe62a5f141603a29f5f27ad82c81d0e9d21320992cfcc3cd0b"


def test_a_request_keeps_its_body_to_the_byte() -> None:
    body = b'{"id":"4d2b86b0-2daf-4283-87de-f6bd3a5d5b5e"}'
    assert kept(Exchange(Message("POST /", (), body), RESPONSE))["request"]["body"] == body.decode()


def test_a_long_body_is_kept_as_what_repeats_in_it() -> None:
    body = '{"input":"' + "The cat sits on the mat. " * 800 + '"}'
    parts = folded(body)
    assert {"repeat": "The cat sits on the mat. ", "times": 800} in parts
    assert len(str(parts)) < 200
    assert unfolded(parts) == body
    assert folded("short") == unfolded("short") == "short"


def test_what_the_proxy_answered_says_so() -> None:
    assert kept(Exchange(REQUEST, RESPONSE, by_proxy=True))["by"] == "proxy"
    assert "by" not in kept(Exchange(REQUEST, RESPONSE))
