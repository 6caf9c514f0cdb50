"""Who may call and under what path: guard's pure decisions, on their own so that each can be read and attacked alone.

Knows bytes of headers and strings of paths; no request, no time, no body, no protocol.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from secrets import token_hex
from urllib.parse import quote

from vecgate.errors import ConfigError, Forbidden, InvalidRequest, UnsupportedEncoding

Headers = dict[bytes, bytes]
"""Header name -> value. A name that came twice has both values joined by a comma, as HTTP means it; where only one value
makes sense (Host, Origin, Content-Length, a key) the joined one then fails its check, which is what two of them deserve.
"""

PROBES = frozenset(("/", "/api/v1/live", "/health", "/health/live", "/health/ready", "/metrics", "/ping"))
"""Read with GET, these are answered while all else is shed or drained: they are how that is seen from outside."""

PUBLIC = frozenset(("/", "/docs", "/health", "/health/live", "/health/ready", "/openapi.json", "/ping", "/web"))
PUBLIC_BELOW = ("/docs/", "/web/")
"""With a key set, GET of these needs none. All else does, paths that do not exist included."""

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
APP_ORIGINS = frozenset(("app://obsidian.md", "capacitor://localhost"))
"""Desktop and phone apps that embed a browser; a web page can't claim these origins."""
PREFLIGHT_AGE_S = 7200
"""The most that Chromium keeps a preflight's answer."""

EXPOSED = (
    b"x-request-id, server-timing, retry-after, x-should-retry, x-vecgate-model, x-vecgate-role, x-vecgate-space, "
    b"x-vecgate-dimensions, x-vecgate-truncated, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, *"
)
"""The answers' headers that a page may read. `*` alone would do for browsers, as no answer is credentialed; the names
are for older ones."""

_SLASHES = re.compile(r"//+")
_MAY_DOUBLE = ("/v1/v", "/v2/v", "/api/v1/v", "/api/v1/api/v")
_DOUBLED = re.compile(r"\A(?:/v[12](?=/v[12](?:/|\Z)))+")
_DOUBLED_NATIVE = re.compile(r"\A/api/v1(?:(?:/api)?/v1(?=/|\Z))+")
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
_HOST = re.compile(r"(?:\[(?P<literal>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+?))\.?(?::[0-9]{0,5})?")
_MOST_FORWARDED = 32
"""Addresses of X-Forwarded-For that are looked at, from the nearest on."""
_LOOPBACK_ORIGIN = re.compile(r"https?://(?:(?:[a-z0-9-]+\.)*localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_SHOWN_CHARACTERS = 100


def canonical(path: str) -> str:
    """The path a client meant: `//` collapsed, no trailing slash, one version (`/v1/v2/x` is `/v2/x`,
    `/api/v1/v1/x` and `/api/v1/api/v1/x` are `/api/v1/x`).

    Clients append `/v1/...`, `/v2/...` or `/api/v1/...` to whatever base the user typed, and many do not follow redirects.
    """
    if "//" not in path and not path.endswith("/") and not path.startswith(_MAY_DOUBLE):
        return path or "/"
    once = _DOUBLED.sub("", _SLASHES.sub("/", path).rstrip("/"))
    return _DOUBLED_NATIVE.sub("/api/v1", once) or "/"


def below(root: str, path: str) -> str:
    """The path without `root` before it, where it is there: some proxies take it off, others leave it on."""
    whole = _SLASHES.sub("/", path)
    return whole[len(root) :] or "/" if whole == root or whole.startswith(root + "/") else path


def raw(path: str) -> bytes:
    """The path as it would have stood in the request line, so that a rewritten scope agrees with itself."""
    return quote(path, safe="/:@!$&'()*+,;=-._~", errors="replace").encode("ascii")


def headers_of(pairs: Sequence[tuple[bytes, bytes]]) -> Headers:
    found = dict(pairs)
    if len(found) != len(pairs):
        found = {}
        for name, value in pairs:
            found[name] = found[name] + b", " + value if name in found else value
    return found


def request_id(headers: Headers) -> str:
    """The caller's id where it is a safe one, else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return token_hex(16)


def is_probe(method: str, path: str) -> bool:
    return path in PROBES and method in ("GET", "HEAD")


def is_public(method: str, path: str, has_origin: bool) -> bool:
    """Whether no key is needed. `has_origin`: an Origin was sent and has already been allowed."""
    if method == "OPTIONS":
        return has_origin
    if method not in ("GET", "HEAD"):
        return False
    return path in PUBLIC or (path.startswith(PUBLIC_BELOW) and ".." not in path)


@lru_cache(maxsize=256)
def host_name(authority: str) -> str | None:
    """The bare host of a Host header's value: lower case, no port, brackets or trailing dot; None if malformed."""
    found = _HOST.fullmatch(authority.strip().lower())
    return found and (found["literal"] or found["name"])


def machine_names() -> frozenset[str]:
    """What this machine is called on its network, `NAME.local` (mDNS) included."""
    full = socket.gethostname().lower().rstrip(".")
    short = full.partition(".")[0]
    return frozenset((full, short, f"{short}.local")) if short else frozenset()


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts a request may name: a page of another name that resolves to this machine (DNS rebinding) gets nothing."""

    names: frozenset[str]
    suffixes: tuple[str, ...]
    any: bool

    @classmethod
    def of(cls, entries: Sequence[str], bind_host: str, *, local: bool = False) -> Hosts:
        """From ALLOWED_HOSTS: names, `*.example.org` for all below one, `*` for any; raises ConfigError.

        local: only this machine's processes can call, over a Unix socket, where a URL's host is whatever they write.
        """
        names = LOOPBACK_NAMES | machine_names() | {"host.docker.internal", bind_host.lower()}
        suffixes = [".localhost"]
        for entry in entries:
            if entry == "*" or _is_ip(entry):
                continue
            name = host_name(entry.removeprefix("*."))
            if name is None:
                raise ConfigError(f"ALLOWED_HOSTS holds {entry!r}: allowed are host names, '*.example.org' and '*'.")
            if entry.startswith("*."):
                suffixes.append(f".{name}")
            else:
                names |= {name}
        return cls(names, tuple(suffixes), local or "*" in entries)

    def names_host(self, host: str) -> bool:
        """Whether `host` is allowed on its own account, not by `*`. An IP literal is: no name server can rebind it."""
        return host in self.names or host.endswith(self.suffixes) or _is_ip(host)

    def check(self, headers: Headers) -> str:
        """The host named by exactly one Host header; raises InvalidRequest and Forbidden."""
        value = headers.get(b"host", b"")
        host = host_name(value.decode("latin-1"))
        if host is None:
            raise InvalidRequest(f"Exactly one Host header with a host's name is needed, not {_shown(value)}.")
        if not (self.any or self.names_host(host)):
            raise Forbidden(f"Host {_shown(host.encode())} is not one of this server's names; ALLOWED_HOSTS adds one.")
        return host


@dataclass(frozen=True, slots=True)
class Proxies:
    """Whose word on who the client is counts; anybody else could write any address."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    unix: bool

    @classmethod
    def of(cls, entries: Sequence[str]) -> Proxies:
        """From VECGATE_TRUSTED_PROXIES: addresses, networks, and `unix` for who comes over a Unix socket."""
        return cls(tuple(ip_network(entry) for entry in entries if entry != "unix"), "unix" in entries)

    def client(self, peer: str | None, headers: Headers) -> str | None:
        """The nearest address that is no trusted proxy's; the peer (None: over a Unix socket) where that is what it is."""
        told = headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",")[-_MOST_FORWARDED:]
        found = peer
        while told and self._trusts(found):
            address = _address(told.pop())
            if address is None:
                break
            found = address
        return found

    def _trusts(self, address: str | None) -> bool:
        if address is None:
            return self.unix
        one = _ip(address)
        return one is not None and any(one in network for network in self.networks)


def _address(told: str) -> str | None:
    """One address of X-Forwarded-For, which some proxies write with a port."""
    for one in (told.strip(), host_name(told) or ""):
        if (found := _ip(one)) is not None:
            return str(found)
    return None


@lru_cache(maxsize=256)
def _ip(text: str) -> IPv4Address | IPv6Address | None:
    """The address, None where it is none; an IPv4 one also where a socket of both kinds has written it. Without its zone,
    which may hold anything and means something to the proxy only."""
    bare = text.partition("%")[0]
    if not _is_ip(bare):
        return None
    one = ip_address(bare)
    return one.ipv4_mapped or one if isinstance(one, IPv6Address) else one


@dataclass(frozen=True, slots=True)
class Origins:
    """The web pages whose scripts may call. Foreign ones are refused whatever they send, as no preflight guards a
    request that looks like a form's."""

    entries: frozenset[str]
    any: bool

    @classmethod
    def of(cls, entries: Sequence[str]) -> Origins:
        return cls(frozenset(entry.strip().rstrip("/").lower() for entry in entries), "*" in entries)

    def check(self, headers: Headers, host: str, hosts: Hosts) -> bytes | None:
        """The Origin that CORS headers must name, None without one; raises Forbidden."""
        value = headers.get(b"origin")
        if value is None:
            return None
        origin = value.decode("latin-1").lower()
        if (
            self.any
            or origin in self.entries
            or origin in APP_ORIGINS
            or _LOOPBACK_ORIGIN.fullmatch(origin)
            or (_is_own(origin, headers) and hosts.names_host(host))
        ):
            return value
        raise Forbidden(f"Origin {_shown(value)} may not call this server; ALLOWED_ORIGINS adds one.")


def _is_own(origin: str, headers: Headers) -> bool:
    """A page this server itself sent. The caller asks that the host is allowed by name, else rebinding would pass."""
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and authority == headers[b"host"].decode("latin-1").strip().lower()


def check_encoding(headers: Headers) -> None:
    """Raises UnsupportedEncoding for a compressed body, in either layer of HTTP: it could unfold to any size."""
    value = headers.get(b"content-encoding")
    if value is not None and value.strip().lower() not in (b"", b"identity"):
        raise UnsupportedEncoding(f"Content-Encoding {_shown(value)} is not offered; send the body uncompressed.")
    value = headers.get(b"transfer-encoding")
    if value is not None and value.strip().lower() != b"chunked":  # the server undoes no other, so the body is no JSON
        raise UnsupportedEncoding(f"Transfer-Encoding {_shown(value)} is not offered; chunked alone is.")


def content_length(headers: Headers) -> int:
    """The length the body is announced with, 0 where none is; raises InvalidRequest."""
    value = headers.get(b"content-length", b"0")
    if not value.isdigit() or len(value) > 19:
        raise InvalidRequest(f"Content-Length {_shown(value)} is not a number of bytes.")
    return int(value)


def announces_body(headers: Headers) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def is_preflight(method: str, headers: Headers) -> bool:
    """For a request with an Origin."""
    return method == "OPTIONS" and b"access-control-request-method" in headers


def cors(origin: bytes) -> list[tuple[bytes, bytes]]:
    """What lets an allowed page read the answer. No credentials: keys travel in headers, never in cookies."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", EXPOSED),
    ]


def preflight(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The answer to a preflight, beside `cors`: every header asked for is granted, since none but a key carries weight."""
    asked = headers.get(b"access-control-request-headers", b"").split(b",")
    names = [name.strip() for name in asked if _TOKEN.fullmatch(name.strip())]
    granted = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
        (b"access-control-allow-headers", b", ".join(names) or b"authorization, content-type"),
        (b"access-control-max-age", b"%d" % PREFLIGHT_AGE_S),
    ]
    if headers.get(b"access-control-request-private-network") == b"true":
        granted.append((b"access-control-allow-private-network", b"true"))
    return granted


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _shown(value: bytes) -> str:
    """A header's value as a message may show it: ASCII, quoted, short."""
    return ascii(value[:_SHOWN_CHARACTERS].decode("latin-1")) + ("..." if len(value) > _SHOWN_CHARACTERS else "")
