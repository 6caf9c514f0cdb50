"""The environments of the real clients: one lock and one driver each, installed under .compat/.

Knows pip and npm; what a driver does and prints is another's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import nodejs
from tests.test_compat_fixtures import tables

ROOT = Path(__file__).parent.parent.parent
CLIENTS = Path(__file__).parent / "clients"
INSTALLED = ROOT / ".compat"
LIMIT_S = 900.0
"""For a driver: some clients wait long before they give up."""


@dataclass(frozen=True, slots=True)
class Environment:
    """name: of the lock, the driver, and the folder under .compat/."""

    name: str
    lock: Path
    driver: Path

    @property
    def folder(self) -> Path:
        return INSTALLED / self.name

    @property
    def of_node(self) -> bool:
        return self.driver.suffix == ".mjs"

    @property
    def files(self) -> list[Path]:
        """What decides what is installed."""
        locked = CLIENTS / f"{self.name}.package-lock.json"
        return [self.lock, *([locked] if self.of_node and locked.exists() else [])]

    def command(self) -> list[str]:
        if self.of_node:
            return [str(nodejs.NODE), str(self.folder / self.driver.name)]
        return [str(self.folder / "bin" / "python"), str(self.driver)]


def environments() -> list[Environment]:
    """All there are, by name; raises SystemExit for a lock without a driver."""
    locks = [(path, path.name.removesuffix(".txt"), ".py") for path in CLIENTS.glob("*.txt")]
    locks += [(path, path.name.removesuffix(".package.json"), ".mjs") for path in CLIENTS.glob("*.package.json")]
    found = [Environment(name, lock, CLIENTS / f"{name}{suffix}") for lock, name, suffix in locks]
    lonely = [one.driver.name for one in found if not one.driver.is_file()]
    if lonely:
        raise SystemExit(f"no driver: {', '.join(lonely)}")
    return sorted(found, key=lambda one: one.name)


def chosen(names: Sequence[str]) -> list[Environment]:
    """Those named, or all."""
    known = {one.name: one for one in environments()}
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"no environment {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return [known[name] for name in names] if names else list(known.values())


def install(one: Environment) -> None:
    """Makes it anew where its lock has changed since."""
    stamp = one.folder / "installed"
    now = hashlib.sha256(b"".join(path.read_bytes() for path in one.files)).hexdigest()
    if not (stamp.exists() and stamp.read_text() == now):
        print(f"installing {one.name}", flush=True)
        shutil.rmtree(one.folder, ignore_errors=True)
        one.folder.mkdir(parents=True)
        (_install_node if one.of_node else _install_python)(one)
        stamp.write_text(now)
    if one.of_node:  # a module finds its packages from where it lies
        for script in CLIENTS.glob("*.mjs"):
            shutil.copy(script, one.folder)


def _install_python(one: Environment) -> None:
    _run(one, [sys.executable, "-m", "venv", str(one.folder)])
    pip = [str(one.folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    _run(one, [*pip, "--no-deps", "-r", str(one.lock)])


def _install_node(one: Environment) -> None:
    nodejs.install()
    for path in one.files:
        shutil.copy(path, one.folder / path.name.removeprefix(f"{one.name}."))
    locked = (one.folder / "package-lock.json").exists()
    _run(one, [*nodejs.NPM, "ci" if locked else "install", "--no-audit", "--no-fund", "--ignore-scripts"])


def _run(one: Environment, told: list[str]) -> None:
    """Its output goes to the environment's log; raises SystemExit with the end of it."""
    with (one.folder / "install.log").open("ab") as log:
        done = subprocess.run(told, cwd=one.folder, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        log_text = (one.folder / "install.log").read_text(errors="replace")
        raise SystemExit(f"{' '.join(told[:4])} failed for {one.name}:\n{log_text[-3000:]}")


def drive(one: Environment, base: str, control: str, key: str) -> Iterator[dict[str, Any]]:
    """The lines its driver prints, as they come; raises SystemExit where it fails or prints anything else."""
    home = one.folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    told = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TIKTOKEN_CACHE_DIR": str(tables())}
    with (one.folder / "driver.log").open("w+b") as log:
        command = [*one.command(), base, control, key]
        process = subprocess.Popen(command, env=told, cwd=home, stdout=subprocess.PIPE, stderr=log, text=True)
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield _line(one, line)
            process.wait()
        finally:
            limit.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    if process.returncode:
        raise SystemExit(
            f"{one.driver.name} failed:\n{(one.folder / 'driver.log').read_text(errors='replace')[-3000:]}"
        )


def _line(one: Environment, line: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:
        raise SystemExit(f"{one.driver.name} printed {line!r}, which is no JSON") from None
    kinds = {"vectors", "ranking", "error", "skipped"} & told.keys()
    if len(kinds) != 1 or not {"client", "case", "version"} <= told.keys():
        raise SystemExit(f"{one.driver.name} printed {line[:300]!r}, which says nothing, or two things at once")
    return told
