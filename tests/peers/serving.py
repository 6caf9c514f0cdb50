"""Servers in processes of their own for the benches: started, waited for, weighed, stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from tests.live import free_port
from vecgate.bench.result import Report

START_LIMIT_S = 600.0
TEXT = "what is the capital of France?"


@dataclass(slots=True)
class Served:
    """first_answer_s: from the process's start to its first embedding. memory_bytes: PSS of the whole tree."""

    url: str
    process: subprocess.Popen[bytes]
    first_answer_s: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def weigh(self, when: str) -> None:
        """What it holds now; PSS where the system tells it, else RSS."""
        own = psutil.Process(self.process.pid)
        found = 0
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                told = process.memory_full_info()
                found += getattr(told, "pss", told.rss)
        self.memory_bytes[when] = found


@contextmanager
def serving(command: Sequence[str], log: Path, *, environ: Mapping[str, str] | None = None) -> Iterator[Served]:
    """`command` with PORT in it replaced by a free one, until the end of the block; raises with its log's end."""
    port = free_port()
    told = [part.replace("PORT", str(port)) for part in command]
    begun = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(told, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})})
        served = Served(f"http://127.0.0.1:{port}", process)
        try:
            while not _embeds(served.url):
                if process.poll() is not None or time.monotonic() - begun > START_LIMIT_S:
                    raise RuntimeError(f"{told[0]} does not serve:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.02)
            served.first_answer_s = time.monotonic() - begun
            served.weigh("first answer")
            yield served
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _embeds(url: str) -> bool:
    """Whether the first model it lists embeds a text now."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
            name = json.load(answer)["data"][0]["id"]
        body = json.dumps({"model": name, "input": TEXT}).encode()
        request = urllib.request.Request(f"{url}/v1/embeddings", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bool(json.load(answer)["data"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def vecgate(*arguments: str) -> list[str]:
    """vecgate's own command by this interpreter."""
    return [sys.executable, "-m", "vecgate", *arguments]


def bench(urls: Sequence[str], arguments: Sequence[str], out: Path) -> Report:
    """What one `vecgate bench` found, errors too; its table goes to standard output. Raises where it found nothing."""
    command = vecgate("bench", *urls, *arguments, "--json", str(out))
    out.unlink(missing_ok=True)
    status = subprocess.run(command, check=False).returncode
    if not out.exists():
        raise RuntimeError(f"{' '.join(command)} exited with {status} and no report")
    return msgspec.json.decode(out.read_bytes(), type=Report)
