"""sentence-transformers as a witness: asked once, in its own process; what it is told, and what its answer decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import build
from vecgate.core import Checkpoint, PairTemplate
from vecgate.engine.checkpoint import read
from vecgate.engine.golden import Asked
from vecgate.errors import CommandError
from vecgate.settings import Settings
from vecgate.verify import run, witness
from vecgate.verify.run import Report, Wish
from vecgate.verify.witness import Told

ASKED: list[Asked] = [(None, "one"), ("query", "two")]


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bge", tmp_path_factory.mktemp("witness") / "bge")


@pytest.fixture(scope="module")
def answers() -> dict[str, Told]:
    """What the reference said of each case, asked once."""
    return {}


@pytest.fixture
def verified(bge: Path, answers: dict[str, Told], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    asked = witness.ask

    def once(case: dict[str, Any]) -> Told:
        if case["folder"] not in answers:
            answers[case["folder"]] = asked(case)
        return answers[case["folder"]]

    def report(**names: Any) -> Report:
        monkeypatch.setattr(witness, "ask", once)
        settings = Settings(backend="torch", cache_dir=bge.parent / "cache", **names)
        (found,) = run.run(Wish(settings, (str(bge),), dtypes=False))
        return found

    return report


def verdicts(report: Report, *names: str) -> list[str]:
    return [one.verdict for one in report.checks if one.name in names]


def test_rows_and_ids_are_the_references(verified: Callable[..., Report]) -> None:
    report = verified()
    assert verdicts(report, "token ids", "reference") == ["passed", "passed"]
    (note,) = (one.note for one in report.checks if one.name == "reference")
    assert "sentence-transformers " in note
    assert "other backend" not in {one.name for one in report.checks}


def test_a_pooling_that_is_not_the_checkpoints_fails(verified: Callable[..., Report]) -> None:
    assert verdicts(verified(pooling="mean"), "token ids", "reference") == ["passed", "failed"]


def test_a_prompt_that_is_not_the_checkpoints_fails(verified: Callable[..., Report]) -> None:
    report = verified(prompts=(("query", "Represent this: "),))
    assert verdicts(report, "token ids", "reference") == ["failed", "failed"]
    (note,) = (one.note for one in report.checks if one.name == "token ids")
    assert "as query: " in note


def test_on_a_cpu_float32_must_be_float32(verified: Callable[..., Report], answers: dict[str, Told], bge: Path) -> None:
    verified()
    right = answers[str(bge)]
    answers[str(bge)] = replace(right, rows=right.rows + 1e-3 * np.roll(right.rows, 1, axis=1))
    (found,) = (one for one in verified().checks if one.name == "reference")
    answers[str(bge)] = right
    assert (found.verdict, (found.cosine or 0) > 0.999) == ("failed", True)
    assert "float32 explains" in found.note


def test_a_reference_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "reference.py"
    script.write_text("raise SystemExit('no such architecture')")
    monkeypatch.setattr(witness, "SCRIPT", script)
    with pytest.raises(CommandError, match="no such architecture"):
        witness.ask({"folder": "x"})


def test_without_it_the_table_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "find_spec", lambda name: None)
    assert witness.missing() == "sentence-transformers is not installed: pip install 'vecgate[verify]'"


# recipes


def test_the_references_own_prompts_are_left_to_it(bge: Path) -> None:
    own = read(bge, prompts={"query": "another: ", "topic": "topic: "})
    case = witness.recipe(own, [*ASKED, ("topic", "three"), ("document", "four")])
    assert case["prompts"] == {"topic": "topic: ", "document": ""}
    assert case["how"] == "encode"


def changed(bge: Path, **changes: Any) -> Checkpoint:
    return replace(read(bge), **changes)


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"tail": (2,)}, "last"),
        ({"task": "rerank"}, "predict"),
        ({"task": "rerank", "template": PairTemplate("<", "{q}", " d ", ">"), "yes_id": 3, "no_id": 4}, "judge"),
        (
            {"task": "rerank", "template": PairTemplate("<", "q", "d", ">", whole=True), "yes_id": 3, "no_id": 4},
            "predict",
        ),
        ({"task": "rerank", "template": PairTemplate("<", "q", "d", ">"), "yes_id": 3}, "predict"),
    ],
)
def test_each_kind_has_its_recipe(bge: Path, changes: dict[str, Any], how: str) -> None:
    assert witness.recipe(changed(bge, **changes), ASKED)["how"] == how


def test_braces_in_a_template_are_its_own(bge: Path) -> None:
    template = PairTemplate("<", "{q}", " d ", ">")
    case = witness.recipe(changed(bge, task="rerank", template=template, yes_id=3, no_id=4), ASKED)
    assert case["template"][1].format(query="Q", document="D") == "{q}Q d D"


@pytest.mark.parametrize("changes", [{"quantization": {"bits": 4}}, {"folder": Path("/nowhere")}])
def test_what_it_would_read_otherwise_is_not_asked(bge: Path, changes: dict[str, Any]) -> None:
    """Packed weights; a pooling that no file tells (cls here)."""
    with pytest.raises(CommandError):
        witness.recipe(changed(bge, **changes), ASKED)


def test_the_whole_model_lies_above_a_transformer_of_its_own_folder(bge: Path, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    assert witness.recipe(changed(bge, folder=inner), ASKED)["folder"] == str(tmp_path)
