"""The hub's cache as `vecgate models` sees it: what is listed, and that a removal takes what it names and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.live import command, environment

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40


def put(home: Path, repo: str, revision: str, made: Path) -> Path:
    """A snapshot as the hub's library lays it out: links into blobs, which revisions share."""
    root = home / "hub" / ("models--" + repo.replace("/", "--"))
    snapshot = root / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    for path in (path for path in made.rglob("*") if path.is_file()):
        blob = root / "blobs" / sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(made)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home, made = tmp_path / "hf", small.folder(tmp_path / "small")
    put(home, "org/small", OLD, made)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "changed": True}))
    put(home, "org/small", NEW, made)
    put(home, "org/judge", OTHER, small.folder(tmp_path / "judge", "rerank"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
    put(home, "org/broken", OTHER, tmp_path / "broken")
    (home / "hub" / "datasets--org--data" / "snapshots").mkdir(parents=True)
    return home


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "VECGATE_CACHE_DIR": str(home / "vecgate")}
    return subprocess.run(
        command(*arguments),
        env=environment(**settings, BACKEND="fake"),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def listed(home: Path) -> dict[tuple[str, str | None], dict[str, Any]]:
    done = run(home, "models", "--json")
    assert done.returncode == 0, done.stderr
    found = [one for one in json.loads(done.stdout) if one["place"] == "hub cache"]
    return {(one["names"][0], one["revision"]): one for one in found}


def test_every_revision_is_listed_with_what_it_is(home: Path) -> None:
    found = listed(home)
    assert list(found) == [("org/broken", OTHER), ("org/judge", OTHER), ("org/small", OLD), ("org/small", NEW)]
    told = {key: (one["task"], one["family"], one["backend"]) for key, one in found.items()}
    assert told["org/small", OLD] == ("embed", "bert", "fake")
    assert told["org/judge", OTHER] == ("rerank", "bert", "fake")
    assert told["org/broken", OTHER] == (None, None, None)
    assert "auto_map" in found["org/broken", OTHER]["note"]
    assert str(home) not in found["org/broken", OTHER]["note"]
    assert all(one["size_bytes"] > 10 for one in found.values())


def test_a_revision_goes_and_what_others_share_stays(home: Path) -> None:
    refused = run(home, "models", "remove", f"org/small@{OLD[:7]}")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--yes" in refused.stderr
    assert ("org/small", OLD) in listed(home)
    done = run(home, "models", "remove", f"org/small@{OLD[:7]}", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("freed.\n")
    assert list(listed(home)) == [("org/broken", OTHER), ("org/judge", OTHER), ("org/small", NEW)]
    kept = home / "hub" / "models--org--small" / "snapshots" / NEW
    assert all(path.resolve(strict=True).read_bytes() for path in kept.rglob("*") if path.is_symlink())


def test_a_model_goes_whole(home: Path) -> None:
    done = run(home, "models", "remove", "Org/Small", "--yes")
    assert done.returncode == 0, done.stderr
    assert not (home / "hub" / "models--org--small").exists()
    assert (home / "hub" / "models--org--judge").exists()


def test_no_cache_is_an_empty_one(tmp_path: Path) -> None:
    assert listed(tmp_path) == {}
    script = "from vecgate.engine import cached; print(cached.cached())"
    env = environment(HF_HOME=str(tmp_path / "none"))
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True).stdout == "()\n"
