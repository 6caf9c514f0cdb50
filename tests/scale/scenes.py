"""Two gateways behind the proxy under load: one is killed and started again, the other rolled, and so on.

Knows processes and signals, no bodies.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic

from tests.scale.gateway import Gateway
from tests.scale.load import Client, Shot
from tests.scale.proxy import Proxy

WAIT_S = 90.0
STEP_S = 0.02


@dataclass(frozen=True, slots=True)
class Phase:
    """counts: of the proxy, what was added since the phase before."""

    name: str
    begin_s: float
    end_s: float
    counts: dict[str, int]


@dataclass(slots=True)
class Course:
    """What was done and what came of it. took_s: named times, each as often as it was taken."""

    shots: list[Shot] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    took_s: dict[str, list[float]] = field(default_factory=dict)


class Play:
    """One run. quiet_s: how long each phase goes on once what it waits for has come.

    A kill and a roll that the proxy was told of come each as often as the run is told; `a` is killed, `b` rolled.
    """

    def __init__(self, proxy: Proxy, gateways: tuple[Gateway, Gateway], quiet_s: float) -> None:
        self._proxy, (self._a, self._b), self._quiet_s = proxy, gateways, quiet_s
        self._course = Course()

    async def run(self, clients: list[Client], *, times: int, frozen: bool) -> Course:
        ended = False
        shots: list[Shot] = self._course.shots
        load = [asyncio.create_task(client.run(shots, lambda: ended)) for client in clients]
        try:
            await asyncio.sleep(self._quiet_s)  # connections, caches, code that runs for the first time
            await self._phase("before", self._nothing)
            for _ in range(times):
                await self._phase("one killed (SIGKILL)", self._killed)
                await self._phase("started again", self._started)
                await self._phase("the other rolled (SIGTERM)", self._rolled)
                await self._phase("the same, drained first", self._drained)
            if frozen:
                await self._phase("one frozen (SIGSTOP)", self._frozen)
            await self._phase("after", self._nothing)
            ended = True
            await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        return self._course

    async def _phase(self, name: str, what: Callable[[], Awaitable[None]]) -> None:
        begin_s, before = monotonic(), self._proxy.counts()
        await what()
        await asyncio.sleep(self._quiet_s)
        counts = {key: value - before[key] for key, value in self._proxy.counts().items()}
        self._course.phases.append(Phase(name, begin_s, monotonic(), counts))

    async def _nothing(self) -> None:
        pass

    def _took(self, what: str, seconds: float) -> None:
        self._course.took_s.setdefault(what, []).append(seconds)

    async def _killed(self) -> None:
        begin_s = monotonic()
        self._a.signal(signal.SIGKILL)
        await self._gone(self._a)
        self._took("from SIGKILL until it was out", await self._turned(self._a, "DOWN") - begin_s)

    async def _started(self) -> None:
        seconds, ready_s = await self._start(self._a)
        self._took("from its start until it was ready", seconds)
        self._took("from ready until it was in", await self._turned(self._a, "UP") - ready_s)

    async def _rolled(self) -> None:
        begin_s = monotonic()
        self._b.signal(signal.SIGTERM)
        await self._gone(self._b)
        self._took("from SIGTERM until it had ended", monotonic() - begin_s)
        self._took("from SIGTERM until it was out", await self._turned(self._b, "DOWN") - begin_s)
        await self._start(self._b)
        await self._turned(self._b, "UP")

    async def _drained(self) -> None:
        """Rolled as well, once the proxy was told and has heard the last answer."""
        self._proxy.drain(self._b.name)
        await _until(lambda: not self._proxy.busy(self._b.name), "its last answer")
        self._b.signal(signal.SIGTERM)
        await self._gone(self._b)
        await self._start(self._b)
        self._proxy.undrain(self._b.name)
        await self._turned(self._b, "UP")

    async def _frozen(self) -> None:
        begin_s = monotonic()
        self._a.signal(signal.SIGSTOP)
        self._took("from SIGSTOP until it was out", await self._turned(self._a, "DOWN") - begin_s)
        await asyncio.sleep(self._quiet_s)
        self._a.signal(signal.SIGCONT)
        await self._turned(self._a, "UP")

    async def _gone(self, gateway: Gateway) -> None:
        await _until(lambda: gateway.process.poll() is not None, f"{gateway.name} to end")

    async def _start(self, gateway: Gateway) -> tuple[float, float]:
        """Seconds until it was ready, and when."""
        begin_s = monotonic()
        gateway.start()
        await asyncio.to_thread(gateway.ready)
        return monotonic() - begin_s, monotonic()

    async def _turned(self, gateway: Gateway, status: str) -> float:
        """When the proxy said so of it."""
        await _until(lambda: self._proxy.status(gateway.name) == status, f"{gateway.name} to be {status}")
        return next(one.at_s for one in reversed(self._proxy.changes) if one.server == gateway.name)


async def _until(happened: Callable[[], bool], what: str) -> None:
    until = monotonic() + WAIT_S
    while not happened():
        if monotonic() > until:
            raise AssertionError(f"waited {WAIT_S:g} s for {what}")
        await asyncio.sleep(STEP_S)
