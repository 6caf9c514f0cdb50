"""The verify command as a shell sees it: its output, its exit status, its bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import small
from vecgate import backends, cli
from vecgate.core import Check
from vecgate.verify import command
from vecgate.verify.run import Report

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small.folder(tmp_path / "small")
    small.folder(tmp_path / "judge", "rerank")
    return tmp_path


def run(*argv: str) -> int:
    return cli.main(["verify", "--backend", "fake", "--cache-dir", "cache", "--no-reference", *argv])


def test_each_model_has_its_table(capsys: Said) -> None:
    assert run("--model", "./small", "--model", "./judge") == 0
    out, err = capsys.readouterr()
    assert out.index("small  (bert embed; fake on cpu, float32)") < out.index("judge  (bert rerank; ")
    assert out.count("  batch        passed") == 2
    assert err == ""


def test_without_models_it_is_what_serve_would_serve(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "./small")
    assert run("--reranker", "./judge", "--json") == 0
    assert [one["model"] for one in json.loads(capsys.readouterr().out)["models"]] == ["small", "judge"]


def test_json_is_one_object(capsys: Said) -> None:
    assert run("--model", "./small", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    assert {one["name"] for one in told["models"][0]["checks"]} >= {
        "finite",
        "batch",
        "permutation",
        "concurrency",
        "unit",
    }


def test_a_model_that_fails_is_status_1(capsys: Said, folder: Path) -> None:
    (folder / "small" / "tokenizer.json").unlink()
    assert run("--model", "./small", "--model", "./judge") == 1
    out = capsys.readouterr().out
    assert "FAILED: load" in out
    assert "judge  (bert rerank" in out  # the others are verified all the same


def test_without_a_backend_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setitem(backends.NEEDS, "torch", (("no_such_package",), "pip install 'vecgate[torch]'"))
    assert cli.main(["verify", "--backend", "torch"]) == 2
    assert capsys.readouterr().err.endswith("which is not installed: pip install 'vecgate[torch]'.\n")


def test_strict_wants_a_witness_from_outside(capsys: Said) -> None:
    assert run("--model", "./small", "--strict") == 1
    assert "with doubts" in capsys.readouterr().out


def test_strict_is_content_with_one() -> None:
    seen = Report("m", (Check("reference", "passed"),))
    assert command.good((seen,), strict=True)
    assert not command.good((seen, Report("n", (Check("batch", "deviates"),))), strict=True)


def test_a_record_can_be_written_and_compared_with(capsys: Said) -> None:
    assert run("--model", "./small", "--record", "rows.json") == 0
    assert json.loads(Path("rows.json").read_text())["name"] == "small"
    assert run("--model", "./small", "--golden", "rows.json") == 0


def test_a_record_with_nowhere_to_go_is_refused_before_anything_is_loaded(capsys: Said) -> None:
    assert run("--model", "./small", "--record", "no/where.json") == 1
    assert "no/where.json" in capsys.readouterr().err


def test_the_bar_is_on_standard_error_and_only_where_it_is_wanted(capsys: Said) -> None:
    assert run("--model", "./small", "--progress", "--json") == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert "steps" in err
