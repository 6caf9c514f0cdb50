"""A real HAProxy from the template that `vecgate deploy` prints, and what it says of itself while it runs.

Knows the template's lines by their first words, so that what is tried is what is shipped.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from tests.live import free_port

TEMPLATE = Path(__file__).parent.parent.parent / "src" / "vecgate" / "deploy" / "haproxy.cfg"
BACKEND = "vecgates"
"""As the template calls it."""
POLL_S = 0.02
START_S = 20.0
COUNTED = ("wretr", "wredis", "econ", "eresp", "chkdown")
"""Of `show stat`: retries, those of them that went to another server, failed connections and answers, times taken out."""


def found() -> str | None:
    """Debian's haproxy."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin:/usr/bin")


def version() -> str:
    told = subprocess.run([found() or "", "-v"], capture_output=True, text=True, check=True).stdout
    return told.split()[2]


def filled(template: str, ports: Sequence[int], servers: Sequence[tuple[str, int]], control: Path) -> str:
    """The template for these servers (name, port) on 127.0.0.1, each with the options of the template's own first one.

    ports: for its `bind` lines, in their order.
    """
    lines: list[str] = []
    free, named = list(ports), False
    for line in template.splitlines():
        word = line.split(maxsplit=1)[0] if line.strip() else ""
        if word == "server":
            options = line.split(maxsplit=3)[3] if len(line.split()) > 3 else ""
            lines += [] if named else [f"    server {name} 127.0.0.1:{at} {options}" for name, at in servers]
            named = True
        elif word == "bind":
            lines.append(f"    bind 127.0.0.1:{free.pop(0)}")
        else:
            lines.append(line)
        if word == "global":
            lines.append(f"    stats socket {control} mode 600 level admin")
    return "\n".join(lines) + "\n"


def buffer_bytes(config: str) -> int:
    """tune.bufsize; HAProxy's own where it is not set."""
    told = re.search(r"^\s*tune\.bufsize\s+(\d+)", config, re.MULTILINE)
    return int(told[1]) if told else 16_384


@dataclass(frozen=True, slots=True)
class Change:
    """server: what HAProxy says of it from now on, "UP" or "DOWN" or on its way between them."""

    at_s: float
    server: str
    status: str


class Proxy:
    """`with Proxy(folder, servers) as proxy`: running; `changes` grows as it takes servers out and in."""

    def __init__(self, cwd: Path, servers: Sequence[tuple[str, int]], template: str) -> None:
        program = found()
        assert program is not None, "haproxy is not installed"
        self.port = free_port()
        self._control = cwd / f"{self.port}.sock"
        self.config = filled(template, (self.port, free_port()), servers, self._control)
        self._file = cwd / "haproxy.cfg"
        self._file.write_text(self.config)
        self._log = (cwd / "haproxy.log").open("w+b")
        self._program = program
        self.changes: list[Change] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Proxy:
        command = [self._program, "-f", str(self._file), "-db"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        until = monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or monotonic() > until:
                self.__exit__()
                raise AssertionError(f"haproxy did not start:\n{self.log()}\n{self.config}")
            sleep(POLL_S)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()

    def _answers(self) -> bool:
        with suppress(OSError):
            return bool(self.ask("show stat"))
        return False

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(10)
            one.connect(str(self._control))
            one.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: one.recv(65_536), b"")).decode()

    def servers(self) -> dict[str, dict[str, str]]:
        """`show stat` of the servers, by name."""
        told = csv.DictReader(io.StringIO(self.ask("show stat").removeprefix("# ")))
        return {row["svname"]: row for row in told if row["svname"] not in ("FRONTEND", "BACKEND")}

    def counts(self) -> dict[str, int]:
        """COUNTED, over all servers."""
        rows = self.servers().values()
        return {name: sum(int(row[name] or 0) for row in rows) for name in COUNTED}

    def drain(self, server: str) -> None:
        """No new requests for it from now on; what it has goes on."""
        self.ask(f"set server {BACKEND}/{server} state drain")

    def undrain(self, server: str) -> None:
        self.ask(f"set server {BACKEND}/{server} state ready")

    def busy(self, server: str) -> bool:
        """Whether a request waits for its answer."""
        return self.servers()[server]["scur"] != "0"

    def status(self, server: str) -> str:
        return next((one.status for one in reversed(self.changes) if one.server == server), "")

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            for name, row in self.servers().items():
                if row["status"] != self.status(name):
                    self.changes.append(Change(monotonic(), name, row["status"]))
