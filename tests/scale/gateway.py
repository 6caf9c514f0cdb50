"""One whole gateway behind the proxy: started, killed, rolled and started again on the same port."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.live import START_LIMIT_S, command, environment, free_port


class Gateway:
    """`with Gateway(...) as one`: its process runs; `ready()` waits until it serves."""

    def __init__(
        self, name: str, cwd: Path, flags: Sequence[str] = (), module: str = "vecgate", **settings: str
    ) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._cwd, self._flags, self._module = cwd, flags, module
        self._settings = settings | {"PORT": str(self.port)}
        self._log = cwd / f"{name}.log"

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.process.wait(30)

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command("serve", *self._flags, module=self._module),
                env=environment(**self._settings),
                cwd=self._cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ready(self) -> None:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=10).close()
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.name} never got ready:\n{self._log.read_text(errors='replace')[-3000:]}")
