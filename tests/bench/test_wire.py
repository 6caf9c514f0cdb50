import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from vecgate.bench.wire import Answer, Broken, Connection, Place
from vecgate.errors import CommandError

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def asked(*answers: list[bytes] | None, times: int = 1, timeout_s: float = 20.0) -> list[Any]:
    """What `times` requests on one connection get, and how often it was opened. Each of the answers is a request's,
    written piece by piece; None closes the connection instead, [] says nothing."""
    left, talks = list(answers), list[asyncio.Task[Any] | None]()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                await reader.readuntil(b"\r\n\r\n")
                parts = left.pop(0)
                if parts is None:
                    break
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if parts == []:
                    await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def run() -> list[Any]:
        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            place = Place.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            connection, found = Connection(place, timeout_s), list[Any]()
            for _ in range(times):
                try:
                    found.append(await connection.ask(place.request("GET", "/x")))
                except Broken as error:
                    found.append(str(error))
            connection.close()
            await asyncio.gather(*filter(None, talks))
        return [*found, len(talks)]

    return asyncio.run(run())


def answer(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"Content-Length: %d" % len(body), b"", body])


def test_a_connection_is_kept_over_answers_in_any_pieces() -> None:
    whole = answer(b'{"a": 1}', b"X-One: two")
    found = asked([whole], [whole[at : at + 1] for at in range(len(whole))], times=2)
    assert found == [*[Answer(200, {"x-one": "two", "content-length": "8"}, b'{"a": 1}')] * 2, 1]


def test_chunks_with_trailers_are_put_together() -> None:
    head = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second, _ = asked(
        [head + b"3\r\nabc\r\n", b"4;x=y\r\nd", b"efg\r\n0\r\n", b"T: 1\r\n\r\n"], [head + b"0\r\n\r\n"], times=2
    )
    assert (first.status, first.body, second.body) == (201, b"abcdefg", b"")


def test_a_body_without_length_ends_with_its_connection() -> None:
    found = asked([b"HTTP/1.0 200 OK\r\n\r\nab", b"cd"])
    assert found[0].body == b"abcd"


def test_interim_answers_are_passed_over() -> None:
    found = asked([b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"x")])
    assert found[0].body == b"x"


def test_connection_close_opens_another_one_without_a_failure() -> None:
    found = asked([answer(b"x", b"Connection: close")], [answer(b"y")], times=2)
    assert [one.body for one in found[:2]] == [b"x", b"y"]
    assert found[2] == 2


def test_a_kept_connection_that_was_closed_meanwhile_is_opened_again() -> None:
    found = asked([answer(b"x")], None, [answer(b"y")], times=2)
    assert [one.body for one in found[:2]] == [b"x", b"y"]


def test_failures_are_told_by_their_kind() -> None:
    assert asked(None)[0] == "closed"
    assert asked([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])[0] == "closed"
    assert asked([b"SSH-2.0-OpenSSH\r\n\r\n"])[0] == "malformed"
    assert asked([b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])[0] == "malformed"
    assert asked([], timeout_s=0.05)[0] == "timeout"


def test_nobody_at_the_port_is_refused() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        place = Place.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        server.close()
        await server.wait_closed()
        await Connection(place, 5.0).ask(place.request("GET", "/"))

    with pytest.raises(Broken, match="refused"):
        asyncio.run(run())


def test_requests_carry_the_path_the_key_and_their_length() -> None:
    place = Place.of("http://[::1]:9000/api/v1/", "secret")
    assert (place.host, place.path, place.url) == ("::1", "/api", "http://[::1]:9000/api")
    assert place.request("POST", "/v1/x", b"{}").split(b"\r\n") == [
        b"POST /api/v1/x HTTP/1.1",
        b"host: [::1]:9000",
        b"accept: application/json",
        b"authorization: Bearer secret",
        b"content-type: application/json",
        b"content-length: 2",
        b"",
        b"{}",
    ]


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://a:99999", "http://a b", "http://[x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(CommandError, match="is no address"):
        Place.of(url)
