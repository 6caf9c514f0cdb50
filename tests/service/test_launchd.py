"""The agent: what plistlib and Debian's plistutil read in it."""

from __future__ import annotations

import plistlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vecgate.service.job import Job, User
from vecgate.service.launchd import Launchd

HOME = Path("/Users/ann & bob")
LAUNCHD = Launchd(User("Darwin", 501, HOME, {"XDG_CONFIG_HOME": "/elsewhere"}))
ODD = ("--model=/a b/c", '--prompt=query=<it\'s> "100%" $HOME & é')


def written() -> str:
    folder = LAUNCHD.user.folder
    return LAUNCHD.written(Job("/opt/own/bin/python", ODD, folder, folder / "env", 90))


def test_the_agent_is_not_throttled_and_restarts_what_fails() -> None:
    told: dict[str, Any] = plistlib.loads(written().encode())
    log, folder = f"{HOME}/Library/Logs/vecgate/vecgate.log", f"{HOME}/.config/vecgate"
    run = ["/opt/own/bin/python", "-m", "vecgate", "service", "run", f"{folder}/env", log]
    assert told == {
        "Label": "local.vecgate",
        "ProgramArguments": [*run, *ODD],
        "WorkingDirectory": folder,
        "ProcessType": "Interactive",
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": 90,
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }
    assert LAUNCHD.flags(written()) == ODD
    assert LAUNCHD.path == HOME / "Library" / "LaunchAgents" / "local.vecgate.plist"


@pytest.mark.skipif(shutil.which("plistutil") is None, reason="plistutil is not installed (libplist-utils)")
def test_plistutil_reads_it(tmp_path: Path) -> None:
    binary = tmp_path / "it.bin"
    (tmp_path / "it.plist").write_text(written())
    command = ["plistutil", "-i", str(tmp_path / "it.plist"), "-f", "bin", "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True)
    assert plistlib.loads(binary.read_bytes()) == plistlib.loads(written().encode())
