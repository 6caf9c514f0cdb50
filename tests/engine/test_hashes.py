"""Hashes of files: read once, remembered where that is possible, told by the hub's cache where it knows them."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vecgate.engine import hashes


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed."""
    files: list[Path] = []
    plain = hashes._read

    def spy(path: Path, go_on: Callable[[], bool]) -> str:
        files.append(path)
        return plain(path, go_on)

    monkeypatch.setattr(hashes, "_read", spy)
    return files


def made(path: Path, content: bytes = b"weights") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_again_only_when_it_may_have_changed(tmp_path: Path, read: list[Path]) -> None:
    file, cache = tmp_path / "file", tmp_path / "deep" / "cache"
    expected = made(file)
    assert [hashes.sha256(file, cache) for _ in range(2)] == [expected] * 2
    assert len(read) == 1
    os.utime(file, ns=(1, 1))
    assert hashes.sha256(file, cache) == expected
    assert len(read) == 2
    other = made(file, b"others")
    assert [hashes.sha256(file, cache) for _ in range(2)] == [other] * 2
    assert len(read) == 3
    hashes.forget(file, cache)
    assert hashes.sha256(file, cache) == other
    assert len(read) == 4


@pytest.mark.parametrize("content", ["broken", "[]", '{"FILE": 5}', '{"FILE": [1, 2, 3, "x"]}'])
def test_a_broken_memory_is_no_memory(tmp_path: Path, content: str) -> None:
    expected = made(tmp_path / "file")
    (tmp_path / hashes.MEMORY).write_text(content.replace("FILE", str(tmp_path / "file")))
    assert hashes.sha256(tmp_path / "file", tmp_path) == expected
    assert str(tmp_path / "file") in json.loads((tmp_path / hashes.MEMORY).read_text())


def test_where_nothing_can_be_remembered_it_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    expected = made(tmp_path / "file")
    for cache in (None, tmp_path / "file" / "cache"):
        assert [hashes.sha256(tmp_path / "file", cache) for _ in range(2)] == [expected] * 2
    assert len(read) == 4


def test_a_reader_that_is_told_to_stop_stops_and_remembers_nothing(tmp_path: Path) -> None:
    made(tmp_path / "file")
    with pytest.raises(hashes.Stopped):
        hashes.sha256(tmp_path / "file", tmp_path, lambda: False)
    assert not (tmp_path / hashes.MEMORY).exists()


def test_the_hubs_cache_names_large_files_by_their_hash(tmp_path: Path) -> None:
    large, small = "a" * 64, "b" * 40
    for blob in (large, small):
        made(tmp_path / "blobs" / blob)
        (tmp_path / f"link-{blob[0]}").symlink_to(tmp_path / "blobs" / blob)
    made(tmp_path / "elsewhere" / large)
    (tmp_path / "link-c").symlink_to(tmp_path / "elsewhere" / large)
    found = [hashes.named(tmp_path / name) for name in ("link-a", "link-b", "link-c", f"blobs/{large}")]
    assert found == [large, None, None, None]
