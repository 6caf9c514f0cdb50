"""The keys that open the server: what a request shows, and whose it is.

Keeps digests only. Knows headers' bytes; no request, no path, no file.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from vecgate.errors import ConfigError


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """SHA-256 of each key, and a name beside it for the log and the rates; none: the server is open.

    A key without a name goes by its place, #1. Two keys of one name are one user's, who is about to change them.
    """

    digests: tuple[bytes, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, entries: Sequence[str]) -> Keys:
        """From KEY or NAME KEY each; raises ConfigError."""
        pairs = [entry.rpartition(" ")[::2] for entry in map(str.strip, entries)]
        if not all(key for _, key in pairs):
            raise ConfigError("API_KEY holds an empty key: give each key at least one character, or set none.")
        return cls(
            tuple(sha256(key.encode()).digest() for _, key in pairs),
            tuple(name.strip() or f"#{at}" for at, (name, _) in enumerate(pairs, 1)),
        )

    def find(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Whose key the request carries, None for nobody's; compares with every key, in constant time each."""
        found = None
        for offered in offered_keys(headers):
            digest = sha256(offered).digest()
            for name, known in zip(self.names, self.digests):
                if hmac.compare_digest(digest, known):
                    found = name
        return found


def offered_keys(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """Whatever a request shows as a key: OpenAI's header, Azure's, the one of many proxies, and what a URL holds."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    shown = [headers[name] for name in (b"api-key", b"x-api-key") if name in headers]
    match scheme.lower():
        case b"bearer":
            return [credentials.strip(), *shown]
        case b"basic":
            return [*_of_basic(credentials.strip()), *shown]
    return shown


def _of_basic(credentials: bytes) -> list[bytes]:
    """The password: clients that take no key, but a URL, send that of http://any:KEY@host so."""
    try:
        _, _, password = b64decode(credentials, validate=True).partition(b":")
    except ValueError:
        return []
    return [password]
