"""A checkpoint that is right passes; one that was damaged since its rows were recorded fails, and the check that saw it says so.

Each on torch in this process; tests/verify/test_witness.py asks sentence-transformers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import build
from vecgate.backends import open_backend
from vecgate.core import Check
from vecgate.engine import golden
from vecgate.engine.checkpoint import read
from vecgate.engine.model import Model
from vecgate.engine.verify import before_ready
from vecgate.errors import BackendFailed, CommandError, ConfigError
from vecgate.settings import Settings
from vecgate.verify import run
from vecgate.verify.run import Report, Wish

Change = Callable[[Path], None]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # on models this small the others only wait for one another


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with prompts, and a record of its rows beside it."""
    folder = build("qwen3", tmp_path_factory.mktemp("verify") / "qwen3")
    report = verified(folder, record=folder.parent / "rows.json")
    assert failed(report) == []
    return folder


def verified(
    folder: Path,
    *,
    record: Path | None = None,
    kept: Path | None = None,
    dtypes: bool = False,
    settings: Settings | None = None,
) -> Report:
    settings = settings or Settings(backend="torch", dtype="float32", cache_dir=folder.parent / "cache")
    wish = Wish(settings, (str(folder),), record, kept, reference=False, dtypes=dtypes)
    (report,) = run.run(wish)
    return report


@pytest.fixture(autouse=True)
def no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OTHERS", {})  # it reads the same files, so it sees nothing of what is tried here


def failed(report: Report) -> list[str]:
    return [one.name for one in report.checks if one.verdict == "failed"]


def check(report: Report, name: str) -> Check:
    return next(one for one in report.checks if one.name == name)


# damage


def weights(change: Callable[[dict[str, torch.Tensor]], None], folder: Path) -> None:
    path = folder / "model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path, {"format": "pt"})


def scaled(held: dict[str, torch.Tensor]) -> None:
    held["layers.1.mlp.up_proj.weight"] *= 1.5


def changed(name: str, change: Callable[[dict[str, object]], None], folder: Path) -> None:
    told = json.loads((folder / name).read_text())
    change(told)
    (folder / name).write_text(json.dumps(told))


def no_end(told: dict[str, object]) -> None:
    told["post_processor"] = None


def by_mean(told: dict[str, object]) -> None:
    told.update(pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)


def other_prompt(told: dict[str, object]) -> None:
    told["prompts"] = {"query": "search: ", "document": ""}


DAMAGE: dict[str, tuple[Change, set[str]]] = {
    "one tensor scaled": (partial(weights, scaled), {"golden", "weights"}),
    "no EOS": (partial(changed, "tokenizer.json", no_end), {"golden", "specials"}),
    "wrong pooling": (partial(changed, "1_Pooling/config.json", by_mean), {"golden"}),
    "wrong prompt": (partial(changed, "config_sentence_transformers.json", other_prompt), {"golden"}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_was_damaged_fails(name: str, made: Path, tmp_path: Path) -> None:
    damage, seen = DAMAGE[name]
    folder = shutil.copytree(made, tmp_path / "qwen3")
    damage(folder)
    report = verified(folder, kept=made.parent / "rows.json")
    assert set(failed(report)) == seen
    assert report.failed


def test_a_whole_one_passes_and_says_by_whom(made: Path) -> None:
    report = verified(made, kept=made.parent / "rows.json")
    assert failed(report) == []
    assert check(report, "golden").note.endswith("rows of vecgate itself (torch on cpu, float32)")
    assert (check(report, "golden").difference or 0) < 1e-6
    assert check(report, "weights").note == "those of qwen3, by their hash"


def test_a_scaled_tensor_is_named(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "qwen3")
    weights(scaled, folder)
    note = check(verified(folder, kept=made.parent / "rows.json"), "weights").note
    assert note.endswith("not those of qwen3: layers.1.mlp.up_proj.weight")


def test_weights_that_were_saved_again_are_known_by_their_tensors(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "qwen3")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt", "by": "another"})
    report = verified(folder, kept=made.parent / "rows.json")
    assert check(report, "weights").note == "those of qwen3, tensor by tensor"
    assert check(report, "golden").verdict == "passed"


def test_a_missing_end_shows_without_any_record(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "qwen3")
    changed("tokenizer.json", no_end, folder)
    assert failed(verified(folder)) == ["specials"]


def test_what_nobody_could_vouch_for_is_told(made: Path) -> None:
    report = verified(made)
    skipped = {one.name: one.note for one in report.checks if one.verdict == "skipped"}
    assert set(skipped) == {"golden", "reference", "other backend", "weights"}
    assert "--record" in skipped["golden"]
    assert report.doubtful
    assert not report.failed


def test_every_number_type_is_measured_and_none_is_judged(made: Path) -> None:
    report = verified(made, dtypes=True)
    found = {one.name: one for one in report.offered}
    assert [*found] == ["float32", "bfloat16", "float16"]
    assert found["float32"].difference == 0
    assert 5e-6 < (found["bfloat16"].difference or 0) < 2e-2
    assert (found["float16"].verdict, "overflows" in found["float16"].note) == ("skipped", True)
    assert not report.failed


def test_a_reranker_is_held_to_the_same(tmp_path: Path) -> None:
    folder = build("bert-reranker", tmp_path / "judge")
    kept = tmp_path / "rows.json"
    assert failed(verified(folder, record=kept)) == []
    weights(lambda held: held.update({"classifier.weight": -held["classifier.weight"]}), folder)
    assert set(failed(verified(folder, kept=kept))) == {"golden", "weights"}


def test_a_model_that_does_not_load_fails_with_its_reason(tmp_path: Path) -> None:
    report = verified(tmp_path)
    assert failed(report) == ["load"]
    assert "config.json" in report.checks[0].note


def test_what_a_command_gets_wrong_is_no_models_failure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--record"):
        run.run(Wish(Settings(), ("a", "b"), record=tmp_path / "x"))
    with pytest.raises(CommandError, match="nowhere"):
        run.run(Wish(Settings(), ("a",), golden=tmp_path / "nowhere"))


# the default model, known by its weights


def copied(minilm: Path, folder: Path) -> Path:
    """With links instead of its weights."""
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "__pycache__"))
    (folder / "model.safetensors").symlink_to(minilm / "model.safetensors")
    return folder


def by_greatest(told: dict[str, object]) -> None:
    told.update(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)


def loaded(folder: Path) -> Model:
    made = read(folder)
    model = Model(made, partial(open_backend, "torch", made), "torch")
    model.load()
    return model


def test_the_default_model_is_known_wherever_it_lies(minilm: Path, tmp_path: Path) -> None:
    report = verified(copied(minilm, tmp_path / "somebodys-copy"))
    assert failed(report) == []
    assert check(report, "weights").note == "those of all-MiniLM-L6-v2, by their hash"
    assert check(report, "golden").verdict == "passed"
    assert check(report, "sense").verdict == "passed"


def test_another_pooling_of_it_is_not_served(minilm: Path, tmp_path: Path) -> None:
    folder = copied(minilm, tmp_path / "copy")
    changed("1_Pooling/config.json", by_greatest, folder)
    with pytest.raises(BackendFailed, match="'golden' failed"):
        before_ready(loaded(folder), "quick", tmp_path)


def test_a_tensor_of_it_that_was_scaled_is_named(minilm: Path, tmp_path: Path) -> None:
    folder = copied(minilm, tmp_path / "copy")
    held = load_file(minilm / "model.safetensors")
    (folder / "model.safetensors").unlink()
    held["encoder.layer.3.output.dense.weight"] *= 1.01
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    (record,) = (one for one in golden.stored() if one.name == "all-MiniLM-L6-v2")
    assert golden.likeness(read(folder), record) == (["encoder.layer.3.output.dense.weight"], len(held))


def test_a_copy_of_it_that_was_saved_again_is_held_to_the_same_rows(minilm: Path, tmp_path: Path) -> None:
    """As SentenceTransformer.save leaves it: the same tensors but for position_ids, in another file."""
    folder = copied(minilm, tmp_path / "copy")
    held = {name: tensor for name, tensor in load_file(minilm / "model.safetensors").items() if "_ids" not in name}
    (folder / "model.safetensors").unlink()
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    changed("1_Pooling/config.json", by_greatest, folder)
    with pytest.raises(BackendFailed, match="'golden' failed"):
        before_ready(loaded(folder), "quick", tmp_path)
