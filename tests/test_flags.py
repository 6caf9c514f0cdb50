"""The commands and their flags: the help and its examples, and the scripts that complete them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from vecgate import cli, examples, flags
from vecgate.settings import SETTINGS

Said = pytest.CaptureFixture[str]


@pytest.mark.parametrize("shell", flags.SHELLS)
def test_completion_knows_commands_and_flags(shell: str, capsys: Said) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("serve", "embed", "rerank", "models", "fetch", "bench", "completion"):
        assert word in script
    for setting in SETTINGS:
        assert setting.option.removeprefix("--") in script
    assert "id-field" in script


def test_bash_reads_its_script(tmp_path: Path, capsys: Said) -> None:
    cli.main(["completion", "bash"])
    (tmp_path / "it").write_text(capsys.readouterr().out)
    script = "source ./it; COMP_WORDS=(vecgate em); COMP_CWORD=1; _shtab_vecgate; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "embed\n", done.stderr


@pytest.mark.parametrize("name", [*examples.EXAMPLES])
def test_the_help_is_worth_reading_and_its_examples_parse(name: str, capsys: Said) -> None:
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    told = capsys.readouterr().out
    assert examples.EXAMPLES[name].splitlines()[-1] in told
    lines = told.partition("\nexamples:\n")[2].splitlines()
    shown = [line for line in lines if line.startswith("  ")]
    assert shown
    for example in shown:
        typed = re.split(r" {3,}", example.strip())[0].rpartition("| ")[2].split(" > ")[0]
        parsed, unknown = flags.parser().parse_known_args(shlex.split(typed)[1:])
        assert flags.taken_in(parsed, unknown) == [], example
        assert parsed.command is not None
