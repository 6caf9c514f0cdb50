"""place.py: what can be bound, what a dead server left, and which certificates are refused before a model is loaded."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme

from vecgate.errors import ConfigError
from vecgate.place import Place, free_place, free_socket, tls_files

# an address and a port


def test_any_free_port_for_0() -> None:
    found = free_place("127.0.0.1", 0)
    assert found.address == "127.0.0.1"
    assert 0 < found.port < 65_536
    assert free_place("127.0.0.1", found.port) == found


def test_a_name_becomes_an_address() -> None:
    assert free_place("localhost", 0).address in ("127.0.0.1", "::1")


def test_a_name_with_both_kinds_of_address_is_bound_as_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    both: Any = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert free_place("localhost", 0).address == "127.0.0.1"


def test_a_port_in_use_names_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} on 127\.0\.0\.1 is in use.*PORT={port + 1} or --port"):
            free_place("127.0.0.1", port)


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
        free_place("127.0.0.1", port)


def test_a_host_that_is_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"HOST '203\.0\.113\.7' is not an address.*127\.0\.0\.1 or 0\.0\.0\.0"):
        free_place("203.0.113.7", 0)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"HOST 'nowhere' is not an address.*not known"):
        free_place("nowhere", 0)


def test_an_address_with_a_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="zone"):
        free_place("fe80::1%eth0", 9000)


def test_a_url_is_what_a_client_takes() -> None:
    assert Place("127.0.0.1", 9000).url("localhost") == "http://localhost:9000"
    assert Place("::1", 9000, (Path("c"), Path("k"))).url("::1") == "https://[::1]:9000"
    assert Place(uds=Path("/run/x.sock")).url("localhost") == "unix:/run/x.sock"


# a Unix socket


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    """One of few letters: a socket's path has room for 103 bytes."""
    with TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


def test_a_new_path_is_taken_as_it_is(folder: Path) -> None:
    assert free_socket(folder / "a.sock", 0o660) == Place(uds=folder / "a.sock", uds_mode=0o660)
    assert not (folder / "a.sock").exists()


def test_a_relative_path_stays_where_it_was_meant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert free_socket(Path("a.sock"), 0o600).uds == folder / "a.sock"


def test_what_a_dead_server_left_is_removed(folder: Path) -> None:
    with listening(folder / "a.sock"):
        pass
    assert (folder / "a.sock").is_socket()
    free_socket(folder / "a.sock", 0o600)
    assert not (folder / "a.sock").exists()


def test_a_live_server_keeps_its_socket(folder: Path) -> None:
    with listening(folder / "a.sock"):
        with pytest.raises(ConfigError, match=r"VECGATE_UDS .*a\.sock' is in use: stop"):
            free_socket(folder / "a.sock", 0o600)
        assert (folder / "a.sock").is_socket()


def test_a_socket_that_may_not_be_asked_is_not_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise PermissionError(errno.EACCES, "no")

    with listening(folder / "a.sock"):
        pass
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ConfigError, match="is in use"):
        free_socket(folder / "a.sock", 0o600)
    assert (folder / "a.sock").is_socket()


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    (folder / "a").write_text("precious")
    (folder / "link").symlink_to(folder / "nowhere")
    for name in ("a", "link"):
        with pytest.raises(ConfigError, match=f"VECGATE_UDS .*{name}' is there already and no socket"):
            free_socket(folder / name, 0o600)
    assert (folder / "a").read_text() == "precious"


def test_paths_that_can_hold_no_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"VECGATE_UDS .*lies in a folder that does not exist: make"):
        free_socket(folder / "none" / "a.sock", 0o600)
    with pytest.raises(ConfigError, match="too long: a socket's path has 103 bytes at most"):
        free_socket(folder / ("a" * 100), 0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="may not write"):
        free_socket(folder / "a.sock", 0o600)


def test_a_socket_is_removed_once_and_quietly(folder: Path) -> None:
    with listening(folder / "a.sock"):
        place = Place(uds=folder / "a.sock")
        place.vacate()
    assert not (folder / "a.sock").exists()
    place.vacate()
    Place("127.0.0.1", 9000).vacate()


# TLS

LOCKED = b"""\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAh4ys4kDNyGfwICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEFPvLW702uoL/PodrsqqsSkEQPVq
o4MZulwwDK1pdE1VR9tPDLT3bc8EmZq+ikTYfhidetAq8Sg9vGfckVdYtYTLZxDW
mOp8VePWew8YNPqOKCA=
-----END ENCRYPTED PRIVATE KEY-----
"""
"""`openssl genpkey -algorithm ed25519 | openssl pkcs8 -topk8`, of a key that opens nothing."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key, as trustme writes them (P-256)."""
    folder = tmp_path_factory.mktemp("tls")
    made = trustme.CA().issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return folder / "cert.pem", folder / "key.pem"


def test_no_files_no_tls() -> None:
    assert tls_files(None, None) is None


def test_a_pair_and_the_two_in_one_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    assert tls_files(cert, key) == pair
    both = tmp_path / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    assert tls_files(both, None) == (both, both)


def refusal(cert: Path | None, key: Path | None) -> str:
    with pytest.raises(ConfigError) as caught:
        tls_files(cert, key)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def written(folder: Path, content: bytes) -> Path:
    (folder / "x.pem").write_bytes(content)
    return folder / "x.pem"


def test_files_that_are_not_there_or_not_what_they_should_be(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    none = tmp_path / "none.pem"
    der = written(tmp_path, ssl.PEM_cert_to_DER_cert(cert.read_text()))
    assert "VECGATE_TLS_KEY is set and VECGATE_TLS_CERT is not" in refusal(None, key)
    assert f"VECGATE_TLS_CERT '{none}' can't be read (No such file" in refusal(none, key)
    assert f"VECGATE_TLS_CERT '{tmp_path}' can't be read (Is a directory" in refusal(tmp_path, key)
    assert f"VECGATE_TLS_KEY '{none}' can't be read" in refusal(cert, none)
    assert f"VECGATE_TLS_CERT, without VECGATE_TLS_KEY, '{cert}' holds no private key" in refusal(cert, None)
    assert f"VECGATE_TLS_KEY '{der}' holds no private key" in refusal(cert, der)
    assert f"VECGATE_TLS_CERT '{key}' holds no certificate as PEM: `openssl x509" in refusal(key, key)
    assert "holds no certificate as PEM" in refusal(der, key)


def test_a_key_of_another_certificate(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = written(tmp_path, trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert f"VECGATE_TLS_KEY '{other}' is not the key of VECGATE_TLS_CERT '{pair[0]}'" in refusal(pair[0], other)
    rsa = trustme.CA().issue_cert("localhost", key_type=trustme.KeyType.RSA).private_key_pem.bytes()
    assert "is not the key of" in refusal(pair[0], written(tmp_path, rsa))


def test_files_that_were_cut_off(pair: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = pair
    half = key.read_bytes().replace(b"-----END", b"A-----END")
    assert "can't be used" in refusal(cert, written(tmp_path, half[:60] + half[80:]))
    assert "holds no certificate as PEM" in refusal(written(tmp_path, cert.read_bytes()[:200]), key)
    begin, body = cert.read_bytes().split(b"\n", 1)
    assert "is broken between" in refusal(written(tmp_path, begin + b"\n" + body[1:]), key)


def test_a_locked_key_is_refused_without_a_question(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "is locked by a passphrase: `openssl pkey" in refusal(pair[0], written(tmp_path, LOCKED))


def test_a_curve_that_would_end_the_process_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    p256, p521 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06052b81040023")
    der = ssl.PEM_cert_to_DER_cert(pair[0].read_text())
    other = written(tmp_path, ssl.DER_cert_to_PEM_cert(der.replace(p256, p521)).encode())
    assert "has a key on a curve that is not offered" in refusal(other, pair[1])
