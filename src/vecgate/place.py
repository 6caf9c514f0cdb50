"""Where the server listens: an address and a port, with TLS or without, or a Unix socket; tried before a model is loaded.

Whatever can't be is a ConfigError of one sentence with the next step. Knows no server and no setting but by name.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vecgate.errors import ConfigError

MOST_PORT = 65_535
MOST_UDS_BYTES = 103
"""What every system has room for in a socket's address (Linux: 107)."""
KNOCK_S = 2.0

EC_KEY = bytes.fromhex("06072a8648ce3d0201")
CURVES = (bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06052b81040022"))
"""Object identifiers as DER: an elliptic curve's public key, P-256, P-384. granian dies of another curve's key (seen)."""


@dataclass(frozen=True, slots=True)
class Place:
    """address, port: an IP address and a bound-able port, unless there is `uds`. tls: certificate and key, PEM files."""

    address: str = "127.0.0.1"
    port: int = 0
    tls: tuple[Path, Path] | None = None
    uds: Path | None = None
    uds_mode: int = 0o600

    def url(self, host: str) -> str:
        """What a client is given; `host` is the address as people write it."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.tls else "http"
        return f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"

    def vacate(self) -> None:
        """Remove the Unix socket, for an end that granian does not see."""
        if self.uds is not None:
            with suppress(OSError):
                self.uds.unlink()


def free_place(host: str, port: int, tls: tuple[Path, Path] | None = None) -> Place:
    """The IP address and the port to bind: a name resolved (granian takes none), any free port for 0.

    Raises ConfigError where it can't be bound.
    """
    if "%" in host:
        raise ConfigError(f"HOST {host!r} has a zone, which can't be bound: try :: or an address without one.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, place = min(found, key=lambda one: one[0])  # AF_INET is the least
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            address, bound = probe.getsockname()[:2]
            return Place(address, bound, tls)
    except OSError as error:
        raise ConfigError(_why_not(host, port, error)) from error


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < MOST_PORT else port - 1
        return (
            f"Port {port} on {host} is in use: stop the other process, or choose another port with PORT={other} "
            f"or --port {other}."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Port {port} on {host} needs more rights than this user has: choose one from 1024 up with PORT."
    return f"HOST {host!r} is not an address of this machine ({error.strerror or error}): try 127.0.0.1 or 0.0.0.0."


# a Unix socket


def free_socket(path: Path, mode: int) -> Place:
    """The path, free of what a dead server left there. Raises ConfigError where a live one listens or it can't be made."""
    path, shown = path.absolute(), ascii(str(path))
    if len(os.fsencode(path)) > MOST_UDS_BYTES:
        raise ConfigError(f"VECGATE_UDS {shown} is too long: a socket's path has {MOST_UDS_BYTES} bytes at most.")
    if not path.parent.is_dir():
        raise ConfigError(f"VECGATE_UDS {shown} lies in a folder that does not exist: make {str(path.parent)!a}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"VECGATE_UDS {shown} lies in a folder that this user may not write: choose another.")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"VECGATE_UDS {shown} is there already and no socket: choose another path.")
        check_unanswered(path)
        path.unlink()
    return Place(uds=path, uds_mode=mode)


def check_unanswered(path: Path) -> None:
    """Raises ConfigError where a server listens on the socket."""
    if _is_answered(path):
        shown = ascii(str(path))
        raise ConfigError(f"VECGATE_UDS {shown} is in use: stop the server that listens there, or choose another.")


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
        knock.settimeout(KNOCK_S)
        try:
            knock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # another user's, or too busy to say so: not ours to remove
            return True
        return True


# TLS


def tls_files(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The two files, tried as the server will use them; None where none is named. Raises ConfigError."""
    if cert is None:
        if key is not None:
            raise ConfigError("VECGATE_TLS_KEY is set and VECGATE_TLS_CERT is not: give both, or neither.")
        return None
    _check_certificate(cert)
    if key is None:
        key = cert
    name = "VECGATE_TLS_CERT, without VECGATE_TLS_KEY," if key == cert else "VECGATE_TLS_KEY"
    if b"PRIVATE KEY-----" not in _pem(name, key):
        raise ConfigError(f"{name} {str(key)!a} holds no private key: give a PEM file with BEGIN PRIVATE KEY.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, _no_passphrase)
    except _PassphraseError:
        raise ConfigError(
            f"{name} {str(key)!a} is locked by a passphrase: `openssl pkey -in KEY -out OPEN` writes it without."
        ) from None
    except ssl.SSLError as error:
        raise ConfigError(_unusable(cert, name, key, error)) from error
    return cert, key


def _check_certificate(cert: Path) -> None:
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    shown = f"VECGATE_TLS_CERT {str(cert)!a}"
    _, begins, rest = _pem("VECGATE_TLS_CERT", cert).partition(begin)
    body, ends, _ = rest.partition(end)
    if not (begins and ends):
        raise ConfigError(
            f"{shown} holds no certificate as PEM: `openssl x509 -inform DER -in CERT -out PEM` writes a binary one so."
        )
    try:
        der = ssl.PEM_cert_to_DER_cert((begin + body + end).decode("ascii"))
    except ValueError:
        raise ConfigError(f"{shown} is broken between its BEGIN and END lines: copy it anew.") from None
    _, is_ec, curve = der.partition(EC_KEY)
    if is_ec and not curve.startswith(CURVES):
        raise ConfigError(f"{shown} has a key on a curve that is not offered: use P-256, P-384, Ed25519 or RSA.")


class _PassphraseError(Exception):
    """A key wants a passphrase, which nobody is there to type."""


def _no_passphrase() -> str:
    raise _PassphraseError


def _pem(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{name} {str(path)!a} can't be read ({error.strerror}): give a PEM file that this user may read."
        ) from None


def _unusable(cert: Path, name: str, key: Path, error: ssl.SSLError) -> str:
    reason = (error.reason or "it can't be read").replace("_", " ").lower()
    if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return (
            f"{name} {str(key)!a} is not the key of VECGATE_TLS_CERT {str(cert)!a}: give the two that belong together."
        )
    return f"{name} {str(key)!a} or VECGATE_TLS_CERT {str(cert)!a} can't be used ({reason}): make or copy them anew."
