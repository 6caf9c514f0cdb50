"""access.py: each decision alone, allowed and refused."""

from __future__ import annotations

import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vecgate import access
from vecgate.access import Headers, Hosts, Origins, Proxies, canonical
from vecgate.errors import ConfigError, Forbidden, InvalidRequest, UnsupportedEncoding


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/", "/"),
        ("", "/"),
        ("//", "/"),
        ("*", "*"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("/v1/embeddings/", "/v1/embeddings"),
        ("//v1///embeddings//", "/v1/embeddings"),
        ("/v1/v1/rerank", "/v1/rerank"),
        ("/v1/v2/rerank", "/v2/rerank"),
        ("/v2/v2/embed", "/v2/embed"),
        ("/v2/v1/embed", "/v1/embed"),
        ("/v1//v1/rerank/", "/v1/rerank"),
        ("/v1/v1/v2/rerank", "/v2/rerank"),
        ("/v1/v1", "/v1"),
        ("/v1/v10/x", "/v1/v10/x"),
        ("/v1/v1x", "/v1/v1x"),
        ("/api/v1/v1/embed", "/api/v1/embed"),
        ("/api/v1/api/v1/embed/", "/api/v1/embed"),
        ("/api/v1/api/v1/v1/embed", "/api/v1/embed"),
        ("/api/v1/v1x", "/api/v1/v1x"),
        ("/api/v1/api", "/api/v1/api"),
        ("/v1/models/org/name", "/v1/models/org/name"),
        ("/v1/models/v1/v1", "/v1/models/v1/v1"),
        ("/v1/v1/\n", "/v1/\n"),
        ("/\ud800/", "/\ud800"),
    ],
)
def test_a_path_is_what_the_client_meant(path: str, meant: str) -> None:
    assert canonical(path) == meant


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/a/b/v1/models", "/v1/models"),
        ("/a/b", "/"),
        ("/a/b/", "/"),
        ("//a//b//health", "/health"),
        ("/a/b/a/b/health", "/a/b/health"),
        ("/a/bc/health", "/a/bc/health"),
        ("/health", "/health"),
        ("//health", "//health"),
        ("/A/b/health", "/A/b/health"),
    ],
)
def test_the_root_path_is_taken_off_once_where_it_is_there(path: str, left: str) -> None:
    assert access.below("/a/b", path) == left


@pytest.mark.parametrize(
    ("peer", "told", "client"),
    [
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),  # no proxy of ours: whatever it says of others
        ("10.1.2.3", "203.0.113.9", "203.0.113.9"),
        ("10.1.2.3", "1.1.1.1, 203.0.113.9", "203.0.113.9"),  # 1.1.1.1 is the client's own word
        ("10.1.2.3", "203.0.113.9, 10.9.9.9", "203.0.113.9"),
        ("10.1.2.3", "203.0.113.9:443", "203.0.113.9"),
        ("10.1.2.3", "[2001:db8::1]:443", "2001:db8::1"),
        ("10.1.2.3", "2001:DB8::1", "2001:db8::1"),
        ("::ffff:10.1.2.3", "203.0.113.9", "203.0.113.9"),
        ("10.1.2.3", "::ffff:203.0.113.9", "203.0.113.9"),
        ("10.1.2.3", 'fe80::1%eth0 id="x"', "fe80::1"),  # a zone may hold anything
        ("10.1.2.3", "fe80::1%", "fe80::1"),
        ("10.1.2.3", "%", "10.1.2.3"),
        ("somebody", "203.0.113.9", "somebody"),  # as a server may call a peer without an address
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "unknown", "10.1.2.3"),
        ("10.1.2.3", '"}\n{"', "10.1.2.3"),
        ("10.1.2.3", "10.0.0.1, 10.0.0.2", "10.0.0.1"),
        ("::1", "203.0.113.9", "203.0.113.9"),
        (None, "203.0.113.9", "203.0.113.9"),
        (None, "", None),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_proxy_s(peer: str | None, told: str, client: str | None) -> None:
    proxies = Proxies.of(["10.0.0.0/8", "::1", "unix"])
    assert proxies.client(peer, {b"x-forwarded-for": told.encode()} if told else {}) == client


def test_over_a_unix_socket_nobody_is_believed_unasked() -> None:
    assert Proxies.of(["10.0.0.0/8"]).client(None, {b"x-forwarded-for": b"203.0.113.9"}) is None


def test_a_long_list_of_proxies_costs_no_more_than_a_short_one() -> None:
    told = b", ".join([b"203.0.113.9", *[b"10.0.0.1"] * 1_000])
    assert Proxies.of(["10.0.0.0/8"]).client("10.0.0.1", {b"x-forwarded-for": told}) == "10.0.0.1"


@given(
    st.lists(st.sampled_from(["v1", "v2", "v3", "api", "", "x", ".", "..", "\ud800", "%2F"]))
    .map("/".join)
    .map("/{}".format)
)
@example("/v1/v2/v1/")
def test_a_canonical_path_stays_as_it_is(path: str) -> None:
    once = canonical(path)
    assert canonical(once) == once
    assert "//" not in once
    assert once.startswith("/")


def test_a_rewritten_path_has_a_raw_form_of_plain_ascii() -> None:
    assert access.raw("/v1/models/a b\u00e9\n%") == b"/v1/models/a%20b%C3%A9%0A%25"
    assert access.raw("/\ud800").isascii()


def test_headers_that_come_twice_are_joined() -> None:
    assert access.headers_of([(b"a", b"1"), (b"b", b"2")]) == {b"a": b"1", b"b": b"2"}
    assert access.headers_of([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]) == {b"a": b"1, 3", b"b": b"2"}


@pytest.mark.parametrize("given_id", [b"abc-1.2_3", b"x" * 64])
def test_a_safe_request_id_is_kept(given_id: bytes) -> None:
    assert access.request_id({b"x-request-id": given_id}) == given_id.decode()


@pytest.mark.parametrize("given_id", [b"", b"x" * 65, b"a b", b"a\nb", b"\xe9", b"a, b", b'a"', b"a\n"])
def test_an_unsafe_request_id_is_replaced(given_id: bytes) -> None:
    made = access.request_id({b"x-request-id": given_id})
    assert len(made) == 32
    assert made != access.request_id({b"x-request-id": given_id})


ALLOWED_HOSTS = ["example.org", "*.wild.example", "Upper.Example:9000", "::1"]


@pytest.mark.parametrize(
    "value",
    [
        "localhost",
        "localhost:9000",
        "LocalHost.",
        "localhost.:9000",
        "a.b.localhost",
        "127.0.0.1:9000",
        "[::1]:9000",
        "[::1]",
        "192.168.1.7",
        "[fe80::1]:80",
        "host.docker.internal:1",
        "bound.example",
        "example.org:443",
        "EXAMPLE.org",
        "a.wild.example",
        "upper.example",
        socket.gethostname().partition(".")[0] + ".local",
        socket.gethostname(),
    ],
)
def test_hosts_that_may_be_named(value: str) -> None:
    hosts = Hosts.of(ALLOWED_HOSTS, "Bound.example")
    assert hosts.check({b"host": value.encode()})


@pytest.mark.parametrize(
    "value",
    [
        "evil.example",
        "evil.example:9000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "wild.example",
        "awild.example",
        "example.org.evil",
        "notexample.org",
        "2130706433",
        "0x7f.1",
        "[evil]",
        "localhost..",
    ],
)
def test_hosts_that_may_not_be_named(value: str) -> None:
    with pytest.raises((Forbidden, InvalidRequest)):
        Hosts.of(ALLOWED_HOSTS, "127.0.0.1").check({b"host": value.encode()})


@pytest.mark.parametrize("headers", [{}, {b"host": b""}, {b"host": b" "}, {b"host": b"localhost, localhost"}])
@pytest.mark.parametrize("entries", [(), ("*",)])
def test_one_host_is_needed_even_where_any_is_allowed(headers: Headers, entries: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="Exactly one Host"):
        Hosts.of(entries, "127.0.0.1").check(headers)


@pytest.mark.parametrize(
    "value", [b"evil.com:localhost", b"a@b", b"a/b", b"::1", b"[::1", b"a b", b"\xe9.example", b":80"]
)
def test_malformed_hosts_are_refused_where_any_is_allowed(value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Hosts.of(("*",), "127.0.0.1").check({b"host": value})


def test_a_wildcard_allows_any_host() -> None:
    hosts = Hosts.of(("*",), "127.0.0.1")
    assert hosts.check({b"host": b"evil.example:1"}) == "evil.example"
    assert not hosts.names_host("evil.example")


@pytest.mark.parametrize("entry", ["", "http://a", "a/b", "*.", "a*"])
def test_a_wrong_host_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(ConfigError, match="ALLOWED_HOSTS"):
        Hosts.of((entry,), "127.0.0.1")


def origin_of(origin: str | None, entries: tuple[str, ...] = (), host: str = "localhost:9000") -> bytes | None:
    hosts = Hosts.of((), "127.0.0.1")
    headers = {b"host": host.encode()} | ({} if origin is None else {b"origin": origin.encode()})
    return Origins.of(entries).check(headers, access.host_name(host) or "", hosts)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:3000",
        "http://app.localhost:5173",
        "http://127.0.0.1:8080",
        "https://127.9.9.9",
        "http://[::1]:8080",
        "app://obsidian.md",
        "capacitor://localhost",
        "https://ui.example",
        "HTTPS://UI.Example",
    ],
)
def test_origins_that_may_call(origin: str) -> None:
    assert origin_of(origin, ("https://ui.example/",)) == origin.encode()


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://localhost:80@evil.example",
        "http://evil-localhost",
        "http://localhost:999999",
        "http://localhost/",
        "ftp://localhost",
        "file://",
        "app://evil",
        "http://127.0.0.1.evil.example",
        "https://ui.example:8443",
        "http://ui.example",
        "http://localhost, http://localhost",
        "http://localhost\n",
        "http://192.168.1.7:9000",
    ],
)
def test_origins_that_may_not_call(origin: str) -> None:
    with pytest.raises(Forbidden, match="Origin"):
        origin_of(origin, ("https://ui.example",))


def test_no_origin_is_no_browser() -> None:
    assert origin_of(None) is None


def test_a_wildcard_allows_any_origin() -> None:
    assert origin_of("https://evil.example", ("*",)) == b"https://evil.example"


def test_pages_of_this_server_may_call_it_under_a_name_of_its_own() -> None:
    assert origin_of("http://192.168.1.7:9000", host="192.168.1.7:9000")
    with pytest.raises(Forbidden):
        origin_of("http://192.168.1.7:9001", host="192.168.1.7:9000")
    with pytest.raises(Forbidden):  # a rebound name is no name of ours, even where ALLOWED_HOSTS lets it pass
        origin_of("http://evil.example:9000", host="evil.example:9000")


@pytest.mark.parametrize(
    ("method", "path", "has_origin", "public"),
    [
        ("GET", "/", False, True),
        ("HEAD", "/health", False, True),
        ("GET", "/health/live", False, True),
        ("GET", "/health/ready", False, True),
        ("GET", "/ping", False, True),
        ("GET", "/web/app.js", False, True),
        ("GET", "/docs", False, True),
        ("GET", "/docs/swagger-ui.css", False, True),
        ("GET", "/openapi.json", False, True),
        ("OPTIONS", "/v1/embeddings", True, True),
        ("OPTIONS", "/v1/embeddings", False, False),
        ("POST", "/", False, False),
        ("POST", "/health", False, False),
        ("GET", "/metrics", False, False),
        ("GET", "/info", False, False),
        ("GET", "/v1/models", True, False),
        ("GET", "/healthz", False, False),
        ("GET", "/health/", False, False),
        ("GET", "/Health", False, False),
        ("GET", "/website", False, False),
        ("GET", "/web/../v1/models", False, False),
        ("GET", "/docs/../metrics", False, False),
        ("get", "/health", False, False),
        ("DELETE", "/docs/x", False, False),
        ("GET", "/nothing", False, False),
    ],
)
def test_what_needs_no_key(method: str, path: str, has_origin: bool, public: bool) -> None:
    assert access.is_public(method, path, has_origin) is public


@pytest.mark.parametrize("value", [b"gzip", b"br", b"identity, gzip", b"GZIP", b"\xff"])
def test_compressed_bodies_are_refused(value: bytes) -> None:
    with pytest.raises(UnsupportedEncoding):
        access.check_encoding({b"content-encoding": value})
    with pytest.raises(UnsupportedEncoding):
        access.check_encoding({b"transfer-encoding": value + b", chunked"})


@pytest.mark.parametrize(
    "headers", [{}, {b"content-encoding": b""}, {b"content-encoding": b" Identity"}, {b"transfer-encoding": b"Chunked"}]
)
def test_plain_bodies_pass(headers: Headers) -> None:
    access.check_encoding(headers)


def test_content_length_is_a_number() -> None:
    assert access.content_length({b"content-length": b"12"}) == 12
    assert access.content_length({}) == 0


@pytest.mark.parametrize("value", [b"-1", b"+1", b"1.0", b"", b"1, 1", b"0x10", b"\xb2", b"9" * 5000])
def test_content_length_is_nothing_else(value: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Content-Length"):
        access.content_length({b"content-length": value})


def test_messages_quote_little_and_only_ascii() -> None:
    with pytest.raises(Forbidden) as caught:
        origin_of("http://" + "\u00e9" * 5000)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 600


def test_a_preflight_grants_every_token_asked_for() -> None:
    asked = b"authorization,x-stainless-os , api-key, bad name, \xe9, x-vecgate-role,"
    granted = dict(access.preflight({b"access-control-request-headers": asked}))
    assert granted[b"access-control-allow-headers"] == b"authorization, x-stainless-os, api-key, x-vecgate-role"
    assert b"POST" in granted[b"access-control-allow-methods"]
    assert b"access-control-allow-private-network" not in granted
    assert access.preflight({b"access-control-request-private-network": b"true"})[-1] == (
        b"access-control-allow-private-network",
        b"true",
    )
