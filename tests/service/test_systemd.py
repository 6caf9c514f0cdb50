"""The unit: what systemd itself says of it, where it is installed, and words that come back as they were."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecgate.service.job import Job, User
from vecgate.service.systemd import Systemd

ODD = ("--model=/a b/c", "--alias=a = b, dimensions=8; c = d", '--prompt=query="it\'s 100% $HOME\\n"', "--uds-mode=660")


def systemd(**environ: str) -> Systemd:
    return Systemd(User("Linux", 1000, Path("/home/ann"), environ))


def job(folder: Path, flags: tuple[str, ...] = ODD) -> Job:
    return Job(sys.executable, flags, folder, folder / "env", 90)


def test_the_unit_restarts_what_fails_and_leaves_it_time() -> None:
    lines = systemd().written(job(Path("/home/ann/.config/vecgate"), ())).splitlines()
    assert {
        f"ExecStart={sys.executable} -m vecgate service run /home/ann/.config/vecgate/env",
        "WorkingDirectory=/home/ann/.config/vecgate",
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "KillSignal=SIGTERM",
        "TimeoutStopSec=90",
        "NoNewPrivileges=yes",
        "WantedBy=default.target",
    } <= set(lines)
    assert not [line for line in lines if line.startswith("Environment")], "one reader of the variables"


def test_flags_come_back_as_they_were() -> None:
    assert systemd().flags(systemd().written(job(Path("/x")))) == ODD


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1)))
def test_any_flags_come_back_as_they_were(words: list[str]) -> None:
    flags = tuple(f"--x={word}" for word in words)
    assert systemd().flags(systemd().written(job(Path("/x"), flags))) == flags


def test_the_place_follows_the_users_own() -> None:
    assert systemd().path == Path("/home/ann/.config/systemd/user/vecgate.service")
    assert systemd(XDG_CONFIG_HOME="/c").path == Path("/c/systemd/user/vecgate.service")
    assert systemd(XDG_CONFIG_HOME="relative").path == systemd().path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", ["plain", "a b", "100%", "a'b"])
def test_systemd_finds_nothing_wrong_with_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    unit = tmp_path / "vecgate.service"
    unit.write_text(systemd().written(job(folder)))
    assert verified(unit) == ""
    unit.write_text(unit.read_text().replace("on-failure", "on-failre"))
    assert "on-failre" in verified(unit)


def verified(unit: Path) -> str:
    """What it has to say; its exit status is 0 for most mistakes."""
    runtime = unit.parent / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env={"PATH": os.environ["PATH"], "HOME": str(unit.parent), "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr
