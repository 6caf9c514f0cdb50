"""keys.py: which headers show a key, whose it is, and that no key can be read back."""

from __future__ import annotations

import hmac
from base64 import b64encode

import pytest

from vecgate.errors import ConfigError
from vecgate.keys import Keys


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({b"authorization": b"Bearer one"}, "#1"),
        ({b"authorization": b"bearer  two"}, "#2"),
        ({b"api-key": b"two"}, "#2"),
        ({b"x-api-key": b"one"}, "#1"),
        ({b"authorization": b"Bearer undefined", b"api-key": b"one"}, "#1"),
        ({b"authorization": "Bearer schl\u00fcssel".encode()}, "#3"),
        ({b"authorization": b"Bearer undefined"}, None),
        ({b"authorization": b"Bearer on"}, None),
        ({b"authorization": b"Bearer ONE"}, None),
        ({b"authorization": b"Bearer "}, None),
        ({b"authorization": b"one"}, None),
        ({b"authorization": b"Basic " + b64encode(b"any:one")}, "#1"),
        ({b"authorization": b"basic " + b64encode("any:schl\u00fcssel".encode())}, "#3"),
        ({b"authorization": b"Basic " + b64encode(b"two:")}, None),
        ({b"authorization": b"Basic " + b64encode(b"two")}, None),
        ({b"authorization": b"Basic " + b64encode(b"one:x")}, None),
        ({b"authorization": b"Basic " + b64encode(b":")}, None),
        ({b"authorization": b"Basic " + b64encode(b"any:one") + b"!"}, None),
        ({b"authorization": b"Basic one"}, None),
        ({b"authorization": b"Basic"}, None),
        ({b"authorization": b"Bearer \xff\xfe"}, None),
        ({b"api-key": b""}, None),
        ({b"cookie": b"one"}, None),
        ({}, None),
    ],
)
def test_a_key_opens(headers: dict[bytes, bytes], found: str | None) -> None:
    assert Keys.of(("one", "two", "schl\u00fcssel")).find(headers) == found


def test_an_empty_key_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="API_KEY"):
        Keys.of(("good", " "))


def test_a_name_before_a_key_is_whose_it_is() -> None:
    keys = Keys.of(("sk-1", "alice sk-2", "alice  sk-3", " sk-4 "))
    found = [keys.find({b"api-key": b"sk-%d" % at}) for at in (1, 2, 3, 4)]
    assert found == ["#1", "alice", "alice", "#4"]
    assert keys.find({b"api-key": b"alice sk-2"}) is None


def test_a_key_is_nowhere_to_be_read() -> None:
    keys = Keys.of(("alice sesame",))
    shown = repr(keys) + str(keys) + repr([getattr(keys, name) for name in keys.__slots__])
    assert "sesame" not in shown
    assert keys.digests[0].hex() not in repr(keys)


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys.of(("one", "two", "three"))
    for shown in (b"one", b"three", b"x" * 10_000, b""):
        keys.find({b"x-api-key": shown})
    assert compared == [(32, 32)] * 12  # digests of one length, and all of them whichever fits
