"""`make test-scale`: two gateways behind a real HAProxy, killed and rolled under load; a table, JSON, and status 1 where a
request that fits the proxy's buffer was lost or any row was wrong."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import numpy as np

from tests.peers.serving import bench, serving, vecgate
from tests.scale import document, report
from tests.scale.gateway import Gateway
from tests.scale.load import Client, Rows
from tests.scale.proxy import TEMPLATE, Proxy, buffer_bytes, found, version
from tests.scale.report import Capacity, Found, Scene
from tests.scale.scenes import Play
from tests.soak import texts
from tests.soak.wire import Place
from vecgate import __version__
from vecgate.bench import table
from vecgate.bench.machine import machine
from vecgate.bench.plan import MIXES, asks
from vecgate.bench.result import Report

ROOT = Path(__file__).parent.parent.parent
FIXTURE = ROOT / "tests" / "machines.json"
"""What tests/test_machines.py reads."""
TOKEN_S = 0.001
BATCH_TOKENS = 256
CAPACITY = {"SCALE_TOKEN_S": str(TOKEN_S), "SCALE_BATCH_S": "0", "VECGATE_BATCH_TOKENS": str(BATCH_TOKENS)}
"""Of the benches: slow enough that neither this machine's cores nor the client limit two of them."""
RATES = (10, 20, 30, 35, 40, 45)
"""Requests a second of one server, whose queries have about 17 tokens."""
REAL_TEXTS = 400


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays: a model, the clients, and whether one gateway is frozen too."""

    part: str
    name: str
    module: str
    flags: tuple[str, ...]
    settings: dict[str, str]
    clients: int
    think_s: float
    times: int
    frozen: bool


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make test-scale", description=__doc__)
    parser.add_argument("--parts", default="fake,real,capacity", help="which (%(default)s)")
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds that each phase goes on (%(default)s)")
    parser.add_argument(
        "--times", type=int, default=3, help="that the fake's gateways are killed and rolled (%(default)s)"
    )
    parser.add_argument("--clients", type=int, default=32, help="of the fake model (%(default)s)")
    parser.add_argument("--real-clients", type=int, default=6, help="of the real model (%(default)s)")
    parser.add_argument("--think", type=float, default=0.15, help="seconds between requests of one (%(default)s)")
    parser.add_argument("--seconds", default="6", help="of a window of the benches (%(default)s)")
    parser.add_argument("--rounds", default="3", help="of the benches (%(default)s)")
    parser.add_argument("--template", type=Path, default=TEMPLATE, help="of HAProxy's configuration")
    parser.add_argument(
        "--json", type=Path, default=ROOT / ".bench" / "scale.json", help="what was found (%(default)s)"
    )
    parser.add_argument("--read", type=Path, help="measure nothing: what was found before")
    parser.add_argument(
        "--write", action="store_true", help="write the tables of docs/scaling.md, and tests/machines.json"
    )
    wish = parser.parse_args(argv)
    if wish.read is None and found() is None:
        print("haproxy is not installed, so nothing was tried; on Debian: apt-get install haproxy")
        return 0
    told = run(wish, argv) if wish.read is None else msgspec.json.decode(wish.read.read_bytes(), type=Found)
    wish.json.parent.mkdir(exist_ok=True)
    wish.json.write_bytes(report.as_json(told))
    if wish.write:
        document.write(told)
        if told.capacity:
            FIXTURE.write_bytes(report.pair(told.capacity))
    faults = report.faults(told.scenes)
    print("\n".join(["It did not hold:", *faults] if faults else ["It held."]))
    return bool(faults)


def run(wish: argparse.Namespace, argv: Sequence[str]) -> Found:
    template = wish.template.read_text("utf-8")
    given, here = " ".join(_shown(argv)), machine()
    capacity = None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = texts.folder(place / "m")
        wanted = [cast for cast in casts(wish, model) if cast.part in wish.parts.split(",")]
        scenes = [play(cast, place, template, model, wish.quiet) for cast in wanted]
        if "capacity" in wish.parts.split(","):
            capacity = measured(place, template, model, ["--seconds", wish.seconds, "--rounds", wish.rounds])
    return Found(
        command=f'make test-scale ARGS="{given}"' if given else "make test-scale",
        begun=datetime.now(UTC).isoformat(timespec="seconds"),
        vecgate=__version__,
        commit=_commit(),
        machine=here,
        proxy=version(),
        buffer_bytes=buffer_bytes(template),
        scenes=scenes,
        capacity=capacity,
        wire_bytes=document.wire_bytes(),
    )


def casts(wish: argparse.Namespace, model: Path) -> list[Cast]:
    fake = {"MODEL_NAME": str(model), "BACKEND": "fake", "SCALE_BATCH_S": "0.02"}
    real = {"BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    return [
        Cast(
            "fake",
            "fake, 20 ms a batch",
            "tests.scale.server",
            (),
            fake,
            wish.clients,
            wish.think,
            wish.times,
            frozen=True,
        ),
        Cast(
            "real",
            "real MiniLM on torch",
            "vecgate",
            ("--model", "minilm"),
            real,
            wish.real_clients,
            0.5,
            1,
            frozen=False,
        ),
    ]


def play(cast: Cast, place: Path, template: str, model: Path, quiet_s: float) -> Scene:
    """One cast through all phases; prints its table."""
    print(f"\n{cast.name}", flush=True)
    with ExitStack() as stack:
        pair = [stack.enter_context(_gateway(name, place, cast)) for name in ("a", "b")]
        for one in pair:
            one.ready()
        rows = known(pair[0]) if cast.module == "vecgate" else computed(model)
        proxy = stack.enter_context(Proxy(place, [(one.name, one.port) for one in pair], template))
        through, fits = Place("127.0.0.1", proxy.port), buffer_bytes(template)
        clients = [Client(through, rows, fits, cast.think_s, seed) for seed in range(cast.clients)]
        course = asyncio.run(
            Play(proxy, (pair[0], pair[1]), quiet_s).run(clients, times=cast.times, frozen=cast.frozen)
        )
    made = report.scene(cast.name, course, cast.clients, cast.think_s)
    print(table.grid(report.HEAD, [report.cells(line) for line in made.lines]))
    print(*report.took(made), *made.told, sep="\n", flush=True)
    return made


def _gateway(name: str, place: Path, cast: Cast) -> Gateway:
    return Gateway(name, place, cast.flags, cast.module, LOG_LEVEL="WARNING", **cast.settings)


def computed(model: Path) -> Rows:
    """The fake's rows, by its own functions."""
    oracle = texts.Oracle(model)
    return {text: oracle.row(text) for text in dict.fromkeys(oracle.short)}


def known(gateway: Gateway) -> Rows:
    """What one gateway says of each text while nothing else is asked."""
    pool = [ask.texts[0] for ask in asks(MIXES["queries"], 0)][:REAL_TEXTS]
    rows: dict[str, np.ndarray] = {}
    for at in range(0, len(pool), 20):
        some = pool[at : at + 20]
        told = httpx.post(f"{gateway.url}/v1/embeddings", json={"input": some}, timeout=120).raise_for_status().json()
        rows |= {text: np.array(row["embedding"], np.float32) for text, row in zip(some, told["data"])}
    return rows


def measured(place: Path, template: str, model: Path, arguments: Sequence[str]) -> Capacity:
    """One server against two behind the proxy, with a fixed time a token; prints each bench's table."""
    settings = {"MODEL_NAME": str(model), "BACKEND": "fake", "LOG_LEVEL": "WARNING", **CAPACITY}
    with ExitStack() as stack:
        pair = [
            stack.enter_context(Gateway(name, place, module="tests.scale.server", **settings)) for name in ("a", "b")
        ]
        for one in pair:
            one.ready()
        proxy = stack.enter_context(Proxy(place, [(one.name, one.port) for one in pair], template))
        through, out = f"http://127.0.0.1:{proxy.port}", place / "bench.json"
        common = ["--mix", "queries", *arguments]

        def open_loop(url: str, servers: int) -> Report:
            rates = ",".join(str(servers * rate) for rate in RATES)
            return bench([url], [*common, "--concurrency", str(64 * servers), "--rate", rates], out)

        beside = bench([through, pair[0].url], [*common, "--concurrency", "1,128"], out)
        alone, both = open_loop(pair[0].url, 1), open_loop(through, 2)
    with serving(
        vecgate("serve", "--model", "minilm", "--backend", "torch", "--port", "PORT"), place / "r.log"
    ) as served:
        real = bench([served.url], ["--mix", "mixed", "--concurrency", "64", *arguments], out)
    return Capacity(TOKEN_S, beside, alone, both, real)


def _shown(argv: Sequence[str]) -> list[str]:
    """Without the file that is written, which is nobody else's."""
    return [one for one, before in zip(argv, ["", *argv]) if "--json" not in (one, before)]


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "no commit"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
