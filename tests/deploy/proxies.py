"""Real programs of Debian's around live servers: found or skipped with one line, started on free ports, ended at the end."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.live import Live

START_LIMIT_S = 30.0


def tool(name: str, package: str) -> str:
    """Its path; skips the test where it is not installed. Debian keeps daemons out of a user's PATH."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command, from when something listens at the port; what it says is in FOLDER/NAME.said."""
    said = folder / f"{Path(command[0]).name}.said"
    with said.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START_LIMIT_S
            while not listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"Nothing listens:\n{said.read_text('utf-8', 'replace')}")
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def gateway(folder: Path, **settings: str) -> Live:
    """A vecgate over the fake backend; not yet ready."""
    return Live(folder, BACKEND="fake", MODEL_NAME=str(small.folder(folder / "small")), **settings)


def changed(text: str, changes: dict[str, str]) -> str:
    """The template with what its head says is to be changed; each must be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the template"
        text = text.replace(old, new)
    return text


def until(holds: Callable[[], bool]) -> None:
    """Logs are written when an answer is on its way already."""
    end = time.monotonic() + START_LIMIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def logged(servers: Iterable[Live], id_: str) -> list[dict[str, Any]]:
    """The servers' own lines of that request, of which there is one at least."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for server in servers for line in server.log().splitlines() if line.endswith("}")]
        return [line for line in found if line.get("id") == id_]

    until(lambda: lines() != [])
    return lines()
