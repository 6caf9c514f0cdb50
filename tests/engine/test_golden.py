"""Records of known rows: written, read, found by the hash of the weights, and what tells damaged weights from other ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import small
from vecgate.core import Checkpoint
from vecgate.engine import checkpoint, golden, hashes, verify
from vecgate.engine.golden import Record
from vecgate.errors import CommandError

ROWS = np.eye(2, 3, dtype=np.float32)


def weighed(folder: Path, **changed: float) -> Checkpoint:
    """With three tensors, those named taken times a number."""
    return kept(folder, {name: np.arange(6, dtype=np.float32) * changed.get(name, 1.0) for name in ("a", "b", "c")})


def kept(folder: Path, held: dict[str, np.ndarray]) -> Checkpoint:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(held, folder / "model.safetensors")
    return replace(small.checkpoint(folder), weights=(folder / "model.safetensors",))


def record(read: Checkpoint) -> Record:
    (path,) = read.weights
    asked = ((None, "A cat."), ("query", "A cat."))
    size = (path.stat().st_size,)
    found = golden.tensors(read)
    return Record("small", "embed", "somebody", "float32", (hashes.sha256(path, None),), size, asked, ROWS, found)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = record(weighed(tmp_path))
    (tmp_path / "rows.json").write_text(golden.written(made), "utf-8")
    back = golden.read(tmp_path / "rows.json")
    np.testing.assert_array_equal(back.rows, made.rows)
    assert replace(back, rows=ROWS) == replace(made, rows=ROWS)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"width": 2, "rows": "AAAA"}'])
def test_what_is_no_record_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(CommandError, match=r"rows\.json"):
        golden.read(tmp_path / "rows.json")


def test_a_record_is_found_by_the_hash_of_the_weights(tmp_path: Path) -> None:
    good, damaged = weighed(tmp_path / "good"), weighed(tmp_path / "damaged", b=2.0)
    made = record(good)
    assert golden.known(good, None, [made]) is made
    assert golden.known(damaged, None, [made]) is None
    assert golden.known(replace(good, task="rerank"), None, [made]) is None


def test_weights_that_were_saved_again_are_known_by_their_tensors(tmp_path: Path) -> None:
    held = {f"{at}": np.full(6, at, np.float32) for at in range(40)}
    made = record(kept(tmp_path / "good", held))
    again = {name: tensor for name, tensor in held.items() if name != "7"}
    assert golden.known(kept(tmp_path / "again", again), None, [made]) is made
    damaged = kept(tmp_path / "damaged", {**again, "9": -held["9"]})
    assert golden.known(damaged, None, [made]) is None
    assert golden.likeness(damaged, made) == (["9"], 39)
    half = kept(tmp_path / "half", {name: held[name] for name in [*held][:20]})
    assert golden.known(half, None, [made]) is None


def test_weights_of_another_size_and_other_tensors_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(record(weighed(tmp_path)), size_bytes=(7,), tensors={})
    monkeypatch.setattr(hashes, "sha256", None)
    assert golden.known(weighed(tmp_path), None, [made]) is None


def test_likeness_names_the_tensors_that_are_others(tmp_path: Path) -> None:
    made = record(weighed(tmp_path / "good"))
    assert golden.likeness(weighed(tmp_path / "damaged", b=2.0), made) == (["b"], 3)
    assert golden.likeness(weighed(tmp_path / "good"), made) == ([], 3)
    assert golden.likeness(replace(weighed(tmp_path / "good"), weights=()), made) == ([], 0)


def test_a_file_of_the_hubs_cache_must_be_what_its_name_says(tmp_path: Path) -> None:
    read = weighed(tmp_path)
    (path,) = read.weights
    (tmp_path / "blobs").mkdir()
    named = path.rename(tmp_path / "blobs" / hashes.sha256(path, None))
    path.symlink_to(named)
    assert golden.blobs(read) == []
    named.write_bytes(named.read_bytes()[:-1] + b"\x01")
    assert golden.blobs(read) == ["model.safetensors"]


def test_the_default_model_has_a_record_of_few_rows_from_the_reference() -> None:
    (found,) = (one for one in golden.stored() if one.name == "all-MiniLM-L6-v2")
    (built_in,) = (one for one in checkpoint.BUILT_IN if one.short == "minilm")
    assert found.sha256 == (built_in.sha256,)
    assert found.source.startswith("sentence-transformers ")
    assert set(found.asked) >= set(verify.asked_of("embed"))
    assert len(found.tensors) > 100
    np.testing.assert_allclose(np.linalg.norm(found.rows, axis=1), 1, atol=1e-6)
