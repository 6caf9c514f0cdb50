"""Texts from files, pipes and arguments: what is read, how far it has been read, and what is refused with its line."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from vecgate import texts
from vecgate.errors import CommandError, ConfigError
from vecgate.texts import Fields, Form, Place, Row


def read(data: bytes, form: Form, fields: Fields | None = None, start: Place | None = None) -> list[Row]:
    stream = BytesIO(data)
    stream.seek(start.offset if start else 0)
    return list(texts.read(stream, "it", form, fields or Fields(), start or Place()))


def test_lines_of_text_keep_all_but_their_ends() -> None:
    found = read(b"\xef\xbb\xbfone\r\n\n  two \x00\nthr\xc3\xa9e", "txt")
    assert [row.text for row in found] == ["one", "", "  two \x00", "thrée"]
    assert [row.id for row in found] == [b"0", b"1", b"2", b"3"]


def test_json_lines_keep_their_ids_as_they_were_written() -> None:
    found = read(
        b'{"id": "a\\u00e9", "text": "one", "more": [1]}\n\n  \n'
        b'{"text": "two", "id": 123456789012345678901234567890}\r\n"bare"\n{"text": "null", "id": null}\n'
        b'{"id": {"a": [1, 2]}, "text": "\\ud83d\\ude00"}',
        "jsonl",
    )
    assert [row.text for row in found] == ["one", "two", "bare", "null", "😀"]
    ids = [b'"a\\u00e9"', b"123456789012345678901234567890", b"2", b"3", b'{"a": [1, 2]}']
    assert [row.id for row in found] == ids


def test_the_fields_have_names() -> None:
    found = read(b'{"body": "one", "key": 7, "id": 1, "text": "no"}', "jsonl", Fields("body", "key"))
    assert [(row.id, row.text) for row in found] == [(b"7", "one")]


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_reading_goes_on_behind_any_row(form: Form) -> None:
    data = b'{"text": "a"}\n\n{"text": "b", "id": "x"}\r\n{"text": "c"}\n"d"'
    whole = read(data, form)
    assert len(whole) > 3
    for at, row in enumerate(whole):
        assert read(data, form, start=row.after) == whole[at + 1 :]


def test_given_texts_are_numbered() -> None:
    assert [(row.id, row.text) for row in texts.of(["a", "", "é"])] == [(b"0", "a"), (b"1", ""), (b"2", "é")]
    with pytest.raises(CommandError, match="Text 2 is not UTF-8"):
        list(texts.of(["a", "\udcff"]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2 of it is no JSON object"),
        (b"[1]", "line 2 of it is no JSON object"),
        (b"[" * 100_000, "line 2 of it is no JSON object"),
        (b'{"a":' * 100_000, "line 2 of it is no JSON object"),
        (b'{"title": "x", "body": "y"}', "has no field 'text', but body, title; --text-field"),
        (b"{}", "but none at all"),
        (b'{"text": 1}', "line 2 of it: the field 'text' is a number"),
        (b'{"text": null}', "is null"),
        (b'{"text": ["a"]}', "is a list"),
        (b'{"text": "\\ud800"}', "line 2 of it is no JSON object"),
        (b'{"text": "\xff"}', "line 2 of it is not UTF-8 at byte 10"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, words: str) -> None:
    with pytest.raises(CommandError, match=words):
        read(b'{"text": "fine"}\n' + line + b"\n", "jsonl")


def test_text_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(CommandError, match="line 1 of it is not UTF-8 at byte 1"):
        read(b"a\xff\n", "txt")


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_line_without_end_is_refused_not_held(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_LINE_BYTES", 1 << 20)
    with pytest.raises(CommandError, match="line 2 of it is longer than 1 MiB"):
        read(b'"a"\n' + b"x" * (1 << 21), form)
    with pytest.raises(CommandError, match="line 1 of it is longer"):
        texts.measure(BytesIO(b"x" * (1 << 21)), "it", form)


@pytest.mark.parametrize(
    "data", [b"", b"a", b"a\n", b"a\n\nb\n\n", b"\n", b'\xef\xbb\xbf\n"a"\n', b"\xef\xbb\xbf", b'"a"\r\n \r\n"b"']
)
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_what_is_measured_is_what_is_read(data: bytes, form: Form) -> None:
    stream = BytesIO(data)
    measured = texts.measure(stream, "it", form)
    assert (measured.bytes, measured.sha256) == (len(data), sha256(data).hexdigest())
    assert stream.tell() == 0
    assert measured.rows == (len(read(data, form)) if form == "txt" else data.count(b"a") + data.count(b"b"))


def test_the_form_is_in_the_files_name() -> None:
    names = {"a.jsonl": "jsonl", "a.NDJSON": "jsonl", "a.txt": "txt", "a.csv": "txt", "a": "txt"}
    assert {name: texts.form_of(Path(name)) for name in names} == names
    with pytest.raises(ConfigError, match=r"one JSON object a line"):
        texts.form_of(Path("a.json"))
