"""`vecgate deploy`: the list, a template on standard output or in a new file, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vecgate import __version__, cli, deploy

Said = pytest.CaptureFixture[str]
FOLDER = Path(deploy.__file__).parent


def test_alone_it_lists_every_template(capsys: Said) -> None:
    assert cli.main(["deploy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[name, one.file] for name, one in deploy.TEMPLATES.items()]


def test_each_file_is_a_template() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix != ".py" and path.is_file()}
    assert files == {one.file for one in deploy.TEMPLATES.values()}


@pytest.mark.parametrize("name", deploy.TEMPLATES)
def test_a_template_comes_as_it_is_with_this_version(name: str, capsys: Said) -> None:
    assert cli.main(["deploy", name]) == 0
    printed = capsys.readouterr().out
    kept = (FOLDER / deploy.TEMPLATES[name].file).read_text("utf-8")
    assert printed == kept.replace("@VERSION@", __version__)
    assert printed.endswith("\n")
    assert not re.search(rf"vecgate\W+v?{re.escape(__version__)}", kept), (
        "versions come from one place: write @VERSION@"
    )


def test_the_command_needs_no_terminal_and_no_other_package() -> None:
    script = "import sys; from vecgate import cli; cli.main(['deploy', 'container']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("# vecgate ")
    assert not {"numpy", "litestar", "granian"} & set(done.stdout.splitlines()[-1].split())


def test_it_is_written_under_the_name_given(tmp_path: Path, capsys: Said) -> None:
    assert cli.main(["deploy", "container", "-o", str(tmp_path / "Dockerfile")]) == 0
    assert (tmp_path / "Dockerfile").read_text() == deploy.read("container")
    assert capsys.readouterr().out == f"{tmp_path / 'Dockerfile'} written.\n"


def test_it_is_written_into_a_folder_under_its_usual_name(tmp_path: Path) -> None:
    assert cli.main(["deploy", "container", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "Containerfile").read_text() == deploy.read("container")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["helm"], 2, "container"),
        (["-o", "x"], 2, "there are container"),
        (["container", "-o", "mine"], 1, "is there already"),
        (["container", "-o", "nowhere/x"], 1, "does not exist"),
    ],
)
def test_what_is_refused(
    words: list[str], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("changed by its owner")
    assert cli.main(["deploy", *words]) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert Path("mine").read_text() == "changed by its owner"
