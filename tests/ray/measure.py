"""What Ray costs: the same model in one process, in a replica beside its gateway, and behind Serve's own proxy.

`python -m tests.ray.measure --write` on a quiet machine (15 minutes) writes the tables of docs/scaling.md; without --write they
are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.live import ROOT, Live
from tests.peers.compare import between
from tests.ray.cluster import Cluster
from vecgate.bench import plan, table
from vecgate.bench.result import Report, Row
from vecgate.bench.run import Bench, Options

DOCUMENT = ROOT / "docs" / "scaling.md"
SIZES = (8, 32, 128)
ALONE = ("queries", *(plan.calls_of(size).name for size in SIZES))
MANY = 32
HEAD = (
    "texts a request",
    "clients",
    "one process: p50 ms",
    "requests/s",
    "over Ray: p50 ms",
    "requests/s",
    "p50 more, ms",
    "p50 over",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    plan.MIXES.update({mix.name: mix for mix in map(plan.calls_of, SIZES)})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        here, there = Path(folder, "here"), Path(folder, "there")
        here.mkdir()
        there.mkdir()
        local = stack.enter_context(Live(here)).ready()
        options = Options(command="python -m tests.ray.measure --write", seconds=given.seconds, rounds=given.rounds)
        parts: list[str] = []
        with Live(there, VECGATE_ENGINE="ray", VECGATE_REPLICAS="1") as command:
            parts += _told("`vecgate serve --engine ray --replicas 1`", options, local.url, command.ready().url)
        with Cluster.started(there, replicas=1, threads=os.cpu_count() or 1) as cluster:
            parts += _told("Serve's proxy, two gateways, one engine", options, local.url, cluster.url)
    if given.write:
        between(DOCUMENT, "<!-- ray:begin -->", "<!-- ray:end -->", "\n\n".join(parts))


def _told(what: str, options: Options, *urls: str) -> list[str]:
    found = list(_measured(what, options, *urls))
    print("\n\n".join(found), flush=True)
    return found


def _measured(what: str, options: Options, *urls: str) -> Iterator[str]:
    """A heading and a table; windows of the two in turns."""
    alone = asyncio.run(Bench(replace(options, urls=urls, mixes=ALONE, concurrency=(1,))).run())
    many = asyncio.run(Bench(replace(options, urls=urls, mixes=("queries",), concurrency=(MANY,))).run())
    for error in (*alone.errors, *many.errors):
        raise SystemExit(error)
    yield f"**{what}** beside one process:"
    yield table.markdown(HEAD, [_cells(*pair) for report in (alone, many) for pair in _pairs(report)])
    head = alone.machine
    yield (
        f"{options.command}, {alone.begun[:10]}, {head.processor}, {head.cores} cores (load average before: "
        f"{head.load_average}), {head.system}; all-MiniLM-L6-v2 on torch, {head.cores} threads for either."
    )


def _pairs(report: Report) -> Iterator[tuple[Row, Row]]:
    return zip(report.rows[::2], report.rows[1::2])


def _cells(one: Row, ray: Row) -> tuple[str, ...]:
    assert one.p50_ms
    assert ray.p50_ms
    rates = [row.texts_per_s.median / row.texts_a_request if row.texts_per_s else 0.0 for row in (one, ray)]
    more, over = ray.p50_ms.median - one.p50_ms.median, ray.p50_ms.median / one.p50_ms.median
    first, second = (f"{row.p50_ms.median:.1f}" for row in (one, ray) if row.p50_ms)
    return (
        str(one.texts_a_request),
        str(one.concurrency),
        first,
        f"{rates[0]:.1f}",
        second,
        f"{rates[1]:.1f}",
        f"{more:.1f}",
        f"{over:.2f}",
    )


if __name__ == "__main__":
    main()
