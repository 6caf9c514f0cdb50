"""What every part of the soak stands on: a scripted server in a process of its own, watched from others.

Knows how to start and to measure; what is asked is the parts'.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil

from tests.live import Live
from tests.soak import texts
from tests.soak.tally import Footprint, share
from tests.soak.wire import Place

SAMPLE_S = 0.2


class Stand:
    """`with Stand(folder) as stand`: a server that is ready, and its oracle; extra settings by name."""

    def __init__(self, cwd: Path, **settings: str) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        models = {"MODEL_NAME": texts.folder(cwd / "m"), "CROSS_ENCODER_MODEL": texts.folder(cwd / "r", "rerank")}
        self.oracle = texts.Oracle(cwd / "m")
        quiet = {"LOG_LEVEL": "CRITICAL", "BACKEND": "fake", **{name: str(path) for name, path in models.items()}}
        self.server = Live(cwd, module="tests.soak.server", **quiet | settings)
        self.place = Place("127.0.0.1", self.server.port)
        self._process = psutil.Process(self.server.process.pid)

    def __enter__(self) -> Stand:
        try:
            self.server.ready()
        except BaseException:
            self.server.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.server.__exit__(*raised)

    def resident(self) -> int:
        """Bytes; 0 once it is gone."""
        try:
            return self._process.memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def died(self) -> str | None:
        """Why the soak can't go on."""
        if (status := self.server.process.poll()) is None:
            return None
        return f"the server ended with status {status}; it said:\n{self.server.log()[-4000:]}"

    def metric(self, name: str) -> float:
        """A gauge or counter without labels."""
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


class Watch:
    """`with Watch(stand) as watch`: the server's memory sampled, and /health/live asked by another process.

    `settled()`: the highest memory so far is what counts as before. Afterwards `footprint` and `live` say what there was.
    """

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._held = [stand.resident()]
        self._before = self._held[0]
        self.live_s: list[float] = []
        self.overslept_s: list[float] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        self._probe = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.probe", str(self._stand.server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()
        told, _ = self._probe.communicate(b"\n")
        self.live_s, self.overslept_s = json.loads(told)

    def settled(self) -> None:
        self._before = max(self._held)

    @property
    def footprint(self) -> Footprint:
        return Footprint(self._before, self._stand.resident(), max(self._held))

    @property
    def course(self) -> str:
        """The memory at each tenth of the time."""
        tenths = (self._held[(len(self._held) - 1) * at // 10] for at in range(11))
        return "MiB at each tenth: " + " ".join(f"{held / 2**20:.0f}" for held in tenths)

    @property
    def live(self) -> str:
        """What became of /health/live."""
        worst, machine = max(self.live_s, default=0.0), max(self.overslept_s, default=0.0)
        return (
            f"/health/live p99 {share(self.live_s, 0.99) * 1e3:.0f} ms, worst {worst * 1e3:.0f} of {len(self.live_s)} "
            f"(the prober itself overslept {machine * 1e3:.0f})"
        )

    def late(self, most_s: float) -> str | None:
        return f"{self.live}; {most_s * 1e3:.0f} ms are allowed" if max(self.live_s, default=0.0) > most_s else None

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._held.append(self._stand.resident())
