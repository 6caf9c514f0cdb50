"""What the tests of Ray share: the app over replicas of this machine, its processes, and clients that keep it busy.

Needs Ray (`make test-ray`): starting it takes 10 to 60 s, so each file starts it once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import whole
from tests.whole import Whole
from vecgate import config, ray_serve

WAIT_S = 400.0
"""For what a busy machine takes its time for; nothing is judged by it."""
EMBED = "/v1/embeddings"


class Replicated(Whole):
    """`Whole` over an engine that `make` makes."""

    def __init__(self, cwd: Path, make: Any, /, **names: str) -> None:
        super().__init__(cwd, **names)
        self.make = make


@contextmanager
def replicated(cwd: Path, **names: str) -> Iterator[Replicated]:
    """The app in this process over two replicas, each in its own; ended at the end."""
    given = {"VECGATE_CACHE_DIR": str(cwd / "cache"), "VECGATE_ENGINE": "ray", **names}
    whole.LIMIT_S = WAIT_S
    with ray_serve.running(config.load({}, given, cwd)) as make, Replicated(cwd, make, **names) as app:
        yield app


def processes(part: str, root: int | None = None) -> list[psutil.Process]:
    """Those below `root` (this one) whose name in Ray's eyes holds that part, such as vecgate:Engine."""
    found = []
    for process in psutil.Process(root or os.getpid()).children(recursive=True):
        try:
            if part in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_one(part: str, root: int | None = None) -> int:
    """The process id of the one that was ended, as a crash would end it."""
    process = processes(part, root)[0]
    process.send_signal(signal.SIGKILL)
    return int(process.pid)


def until(so: Callable[[], bool]) -> None:
    """Until it is so; fails where it never is."""
    end_s = time.monotonic() + WAIT_S
    while not so():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.1)


async def keep_busy(
    client: httpx.AsyncClient, inputs: Sequence[Any], clients: int, *, tries: int = 1, meanwhile: Callable[[], object]
) -> list[int]:
    """The status of each input's request, of so many clients at once; `meanwhile` is called when a fifth is through.

    tries: how often a client asks where it gets no answer or a 5xx.
    """
    waiting, found = list(enumerate(inputs)), [0] * len(inputs)
    told = asyncio.Event()

    async def one() -> None:
        while waiting:
            at, given = waiting.pop()
            for _ in range(tries):
                found[at] = await status(client, given)
                if 0 < found[at] < 500:
                    break
            if len(waiting) < len(inputs) * 4 // 5:
                told.set()

    async def other() -> None:
        await told.wait()
        await asyncio.to_thread(meanwhile)

    await asyncio.gather(other(), *(one() for _ in range(clients)))
    return found


async def status(client: httpx.AsyncClient, given: Any) -> int:
    try:
        return (await client.post(EMBED, json={"input": given})).status_code
    except httpx.TransportError:
        return 0
