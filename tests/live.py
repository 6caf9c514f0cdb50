"""A real `vecgate serve` in a process of its own, for tests that need the socket, the signals or the real model."""

from __future__ import annotations

import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
START_LIMIT_S = 120.0


PORTS = itertools.count(20_000 + os.getpid() % 60 * 200)
"""Below those that the system hands out for connections, and others than another process of the same run takes: their ids
follow one another, and one that runs all of a suite's servers takes over a hundred."""


def free_port() -> int:
    """A port that nobody listens on, and nobody gets before the server that is started for it."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ports have no end")


def command(*arguments: str, module: str = "vecgate") -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of vecgate's own, plus the given ones and tests/ as a package."""
    threads = ("LD_PRELOAD", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", *threads)
    found = {name: os.environ[name] for name in kept if name in os.environ}
    paths = filter(None, [*found.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)])
    return found | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))} | settings


class Live:
    """`with Live(folder, NAME="value") as server`: started, not yet ready; stopped with SIGTERM at the end.

    module: what is run instead of vecgate.
    """

    def __init__(self, cwd: Path, *flags: str, module: str = "vecgate", **settings: str) -> None:
        self.cwd = cwd
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.trusting: ssl.SSLContext | None = None
        self._errors = (cwd / f"server-{self.port}.log").open("w+b")
        self.process = subprocess.Popen(
            command("serve", *flags, module=module),
            env=environment(PORT=str(self.port), **settings),
            cwd=cwd,
            stdout=self._errors,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        self._errors.close()

    def log(self) -> str:
        return Path(self._errors.name).read_text(errors="replace")

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(
            urllib.request.Request(
                self.url + path, data, {"Content-Type": "application/json", **headers}, method="POST"
            )
        )

    def ask(self, request: urllib.request.Request) -> tuple[int, dict[str, str], bytes]:
        try:
            with urllib.request.urlopen(request, timeout=120, context=self.trusting) as answer:
                return answer.status, dict(answer.headers.items()), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers.items()), error.read()

    def wait_for(self, path: str, status: int, text: str = "") -> None:
        """Until a GET answers `status` with `text` in its body; the server's log in the message when it does not come."""
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                answer = self.get(path)
                if answer[0] == status and text.encode() in answer[2]:
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}; the server said:\n{self.log()}")

    def ready(self) -> Live:
        self.wait_for("/health/ready", 200)
        return self
