"""Real programs of Debian's around live servers: found or skipped with one line, started on free ports, ended at the end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
