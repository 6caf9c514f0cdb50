"""Readers of values: what they take, what they refuse, and that they refuse with ValueError only."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecgate import kinds
from vecgate.kinds import list_of, number, one_of, whole

HOSTS = list_of("hosts", kinds.host, "HOSTS", star=True)
READERS = (
    *(
        kinds.text,
        kinds.maybe,
        kinds.folder,
        kinds.switch,
        kinds.size,
        kinds.items,
        kinds.host,
        kinds.origin,
        kinds.key,
        kinds.device,
        kinds.network,
        kinds.root_path,
    ),
    *(whole(0, 9).read, number("any", lambda value: value < 9, "N").read, one_of("a", "b").read, HOSTS.read),
)


@pytest.mark.parametrize("reader", READERS)
@given(raw=st.text())
def test_any_text_is_read_or_refused_with_value_error(reader: Callable[[Any], object], raw: str) -> None:
    with suppress(ValueError):
        reader(raw)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("1", 1),
        ("33554432", 33554432),
        ("32MiB", 32 * 2**20),
        ("32 mib", 32 * 2**20),
        (" 1kb ", 1000),
        ("2.3MB", 2_300_000),
        ("0.5GiB", 2**29),
        ("1024GiB", 2**40),
        (65536, 65536),
    ],
)
def test_size(written: Any, size_bytes: int) -> None:
    assert kinds.size(written) == size_bytes


@pytest.mark.parametrize("written", ["", "0", "-1", "1.5", "32M", "32 Mi B", "MiB", "1e6", "1025GiB", "inf", "٣", True])
def test_size_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        kinds.size(written)


@given(size_bytes=st.integers(1, 2**40))
def test_every_size_reads_back(size_bytes: int) -> None:
    assert kinds.size(str(size_bytes)) == kinds.size(f"{size_bytes}B") == size_bytes


@pytest.mark.parametrize("written", ['["a", "b"]', "a,b", " a , b ,", "a,b,a", ["a", " b"], ("a", "b")])
def test_items(written: Any) -> None:
    assert kinds.items(written) == ("a", "b")


@pytest.mark.parametrize(
    "written", ["['a']", "[a]", '["a"', "[1]", "[[]]", "[" * 100_000, ",", " , ,", [1], {"a": 1}, 3]
)
def test_items_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        kinds.items(written)


@pytest.mark.parametrize("written", ["", " ", "[]", []])
def test_no_items(written: Any) -> None:
    assert kinds.items(written) == ()


@given(texts=st.lists(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), unique=True))
def test_json_commas_and_arrays_say_the_same(texts: list[str]) -> None:
    as_json = str(texts).replace("'", '"')
    assert kinds.items(as_json) == kinds.items(",".join(texts)) == kinds.items(texts) == tuple(texts)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Mac-Studio.local", "mac-studio.local"),
        ("example.com.", "example.com"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("my_service", "my_service"),
    ],
)
def test_host(written: Any, name: str) -> None:
    assert kinds.host(written) == name


@pytest.mark.parametrize(
    "written",
    [
        "",
        "http://a",
        "a:9000",
        "a b",
        "a/b",
        "[a]",
        "[::1",
        "1.2.3",
        "256.1.1.1",
        "-a",
        "*",
        "a\nb",
        "é.com",
        "a" * 300,
    ],
)
def test_host_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        kinds.host(written)


def test_hosts_below_one() -> None:
    assert kinds.hosts("*.Example.org") == "*.example.org"
    with pytest.raises(ValueError):
        kinds.hosts("*.*")


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://App.Example.com/", "https://app.example.com"),
        ("https://a:443", "https://a"),
        ("http://a:80", "http://a"),
        ("https://a:80", "https://a:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_origin(written: Any, sent: str) -> None:
    assert kinds.origin(written) == sent


@pytest.mark.parametrize(
    "written", ["", "null", "a.com", "https://", "https://a/b", "https://u@a", "https://a b", "//a"]
)
def test_origin_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        kinds.origin(written)


def test_star_counts_only_where_it_is_meant() -> None:
    assert HOSTS.read('["*"]') == ("*",)
    with pytest.raises(ValueError):
        list_of("hosts", kinds.host, "HOSTS").read("*")


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("10.0.0.1/32", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("Unix", "unix"),
    ],
)
def test_a_network_of_one_address_is_that_address(written: str, network: str) -> None:
    assert kinds.network(written) == network


@pytest.mark.parametrize("written", ["", " ", "two words", "ключ", "a\tb", "a\x7f"])
def test_key_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        kinds.key(written)


@pytest.mark.parametrize("written", ["1e400", "nan", "inf", "1_0", "0x1", "-1", "1,5", "."])
def test_number_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        number("below 10**9", lambda value: value < 1e9, "N").read(written)


@pytest.mark.parametrize("written", ["-1", "10", "1.0", "1_0", "0x1", "", "९", "9" * 5000, "1e0"])
def test_whole_refused(written: Any) -> None:
    with pytest.raises(ValueError):
        whole(0, 9).read(written)


@pytest.mark.parametrize(
    ("written", "value"), [("TRUE", True), ("1", True), ("on", True), ("No", False), (False, False)]
)
def test_switch(written: Any, value: bool) -> None:
    assert kinds.switch(written) is value


def test_folder_expands_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert kinds.folder("~/tables") == Path("/home/someone/tables")
    assert kinds.folder("~no-such-user/tables") == Path("~no-such-user/tables")
    assert kinds.maybe_folder("") is None
    assert kinds.maybe_folder("/a") == Path("/a")


def test_prompts_in_each_of_their_forms() -> None:
    assert kinds.prompts("query= a=b, c ") == (("query", " a=b, c "),)
    assert kinds.prompts(["a=", '{"b": "x\\ny"}']) == (("a", ""), ("b", "x\ny"))
    assert kinds.prompts({"a.b": "c"}) == (("a.b", "c"),)
    wrong: list[object] = ["query", "a b=c", "=c", '{"a": 1}', '{"a": "\\ud800"}', "{", ["a=1", "a=2"], [1], {"a": 1}]
    for raw in wrong:
        with pytest.raises(ValueError):
            kinds.prompts(raw)
