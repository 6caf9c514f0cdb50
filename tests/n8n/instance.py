"""A real n8n under .compat/n8n, driven by its own command line: import a credential, import a workflow, execute it.

`python -m tests.n8n.instance` installs it. Knows n8n's files and commands, and nothing of what it is asked to call.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests import nodejs
from tests.live import free_port

HERE = Path(__file__).parent
FOLDER = nodejs.FOLDER.parent / "n8n"
PROGRAM = FOLDER / "node_modules" / "n8n" / "bin" / "n8n"
BUILT = ("sqlite3",)
"""Packages that come as a source; what else has a script of its own does without it."""
QUIET = {
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_TEMPLATES_ENABLED": "false",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_HIRING_BANNER_ENABLED": "false",
}
"""It calls nobody but the server that its workflow names."""


def install() -> None:
    """Does nothing where what tests/n8n/package.json says is installed."""
    nodejs.install()
    wanted, stamp = (HERE / "package.json").read_text(), FOLDER / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing n8n and what it needs, 2.5 GB; it takes many minutes", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copy(HERE / "package.json", FOLDER)
    quiet = ("--no-audit", "--no-fund", "--loglevel=error")
    _npm("install", "--ignore-scripts", *quiet)
    _npm("rebuild", *BUILT, *quiet)
    stamp.write_text(wanted)


def _npm(*told: str) -> None:
    environment = os.environ | {"PATH": nodejs.path(), "npm_config_nodedir": str(nodejs.INSIDE)}
    environment.pop(
        "LD_PRELOAD", None
    )  # with OpenBLAS before it, Node warns of threads, which node-gyp takes for a failure
    subprocess.run([*nodejs.NPM, *told], cwd=FOLDER, env=environment, check=True)


class N8n:
    """One installation's data in a folder of its own: empty at first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = QUIET | {
            "PATH": nodejs.path(),
            "HOME": str(folder),
            "N8N_USER_FOLDER": str(folder),
            "N8N_ENCRYPTION_KEY": "of this test only",
            "N8N_RUNNERS_BROKER_PORT": str(free_port()),  # beside an n8n that this machine has running
        }

    def take(self, kind: str, content: Any) -> str:
        """Imports "credentials" or a "workflow"; what n8n said."""
        file = self._folder / f"{kind}.json"
        file.write_text(json.dumps(content))
        return self.run(f"import:{kind}", f"--input={file}")

    def execute(self, workflow: str) -> dict[str, Any]:
        """The execution, as n8n keeps it."""
        said = self.run("execute", f"--id={workflow}", "--rawOutput")
        told: dict[str, Any] = json.loads(said[said.index("\n{") if "\n{" in said else said.index("{") :])
        return told

    def run(self, *told: str) -> str:
        done = subprocess.run(
            [str(nodejs.NODE), str(PROGRAM), *told],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"n8n {' '.join(told)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


if __name__ == "__main__":
    install()
