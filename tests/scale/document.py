"""The tables of docs/scaling.md out of what tests.scale found: no figure there is typed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from docs import machines
from tests.peers.compare import between
from tests.scale import report
from tests.scale.report import Capacity, Found
from vecgate.bench import table
from vecgate.protocols import vectors

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "scaling.md"
DIMENSIONS = (384, 1024)
TOKENS = 200
A_DAY = (1e6, 1e9)
REGIONS = 3
OTHERS = {"an M4 Max, 0.6B (estimate)": 7e3, "an H200, 0.6B (estimate)": 330e3}
"""tokens/s that nobody measured here: half of 17 and two fifths of 990 TFLOP/s over 1.2 GFLOP a token."""


def write(found: Found) -> None:
    """Into the document, between its markers."""
    parts = {"scale": "\n\n".join(_rolled(found)), "machines": "\n\n".join(_machines(found)), "wire": _wire(found)}
    for name, written in parts.items():
        if written:
            between(DOCUMENT, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", written)


def head(found: Found) -> str:
    here = found.machine
    return (
        f"`{found.command}`, {found.begun[:10]}, on {here.processor}, {here.cores} cores (load average before: "
        f"{here.load_average}), {here.memory_bytes / 2**30:.0f} GiB, {here.system}; vecgate {found.vecgate} at "
        f"{found.commit}, HAProxy {found.proxy} with a buffer of {found.buffer_bytes} bytes."
    )


def _rolled(found: Found) -> Iterator[str]:
    if not found.scenes:
        return
    yield head(found)
    for scene in found.scenes:
        yield (
            f"**{scene.name}**: {scene.clients} clients, each with a pause of {scene.think_s:g} s on average between "
            f"two requests. The last four columns are the requests larger than the buffer."
        )
        yield table.markdown(report.HEAD, [report.cells(line) for line in scene.lines])
        yield "\n".join(f"- {one}" for one in report.took(scene))


def _machines(found: Found) -> Iterator[str]:
    capacity = found.capacity
    if capacity is None:
        return
    yield head(found)
    yield from _beside(capacity)
    one = machines.machine(report.plain(capacity.one))
    yield table.markdown(PREDICTED_HEAD, list(_predicted(capacity, one)))
    yield (
        f"Machines for {TOKENS} tokens a request, a peak of {machines.PEAK:g} times the mean, a load of "
        f"{machines.LOAD:.0%}, {machines.SPARE} spare; last column: {REGIONS} regions, any two of which carry everything."
    )
    yield table.markdown(DAY_HEAD, list(_days(capacity)))


PREDICTED_HEAD = (
    *("requests/s", "p99 ms of two, expected from one", "measured, through HAProxy (range)"),
    "measured / expected",
)
DAY_HEAD = ("a machine that does", "tokens/s", "requests a day", "machines", f"in {REGIONS} regions")


def _beside(capacity: Capacity) -> Iterator[str]:
    two, one = capacity.beside.rows[-2:]
    ratio = capacity.beside.ratios[-1]
    alone, direct = capacity.beside.rows[:2]
    tokens = [sum(at.tokens_per_s for at in row.rounds) / len(row.rounds) for row in (two, one)]
    yield (
        f"{capacity.token_s * 1e3:g} ms a token, 128 clients: two behind HAProxy {tokens[0]:.0f} tokens/s, one without "
        f"{tokens[1]:.0f}; two over one, round by round: {table.ranged(ratio.texts_per_s)}. One client: p50 "
        f"{table.middle(alone.p50_ms)} ms through HAProxy, {table.middle(direct.p50_ms)} without."
    )


def _predicted(capacity: Capacity, one: machines.Machine) -> Iterator[tuple[str, ...]]:
    for row in capacity.two.rows:
        if row.rate is None or row.p99_ms is None:
            continue
        try:
            expected = one.p99_ms(row.rate / 2)
        except machines.Unknown:
            yield f"{row.rate:g}", "more than one keeps up with", table.ranged(row.p99_ms), "-"
            continue
        share = row.p99_ms.median / expected
        yield f"{row.rate:g}", f"{expected:.0f}", table.ranged(row.p99_ms), f"{share:.2f}"


def _days(capacity: Capacity) -> Iterator[tuple[str, ...]]:
    (row,) = capacity.real.rows
    server = capacity.real.servers[row.server]
    name = f"this one, {server.model} in {server.dtype} on {server.backend}, mixed texts, 64 clients (measured)"
    known = {name: median(one.tokens_per_s for one in row.rounds), **OTHERS}
    for name, tokens_per_s in known.items():
        for a_day in A_DAY:
            counts = (
                machines.machines_by_tokens(a_day, TOKENS, tokens_per_s, regions=regions) for regions in (1, REGIONS)
            )
            yield name, f"{tokens_per_s:,.0f}", f"{a_day:.0e}".replace("e+0", "e"), *(f"{count:,}" for count in counts)


def wire_bytes() -> dict[str, int]:
    """Of one row in an answer's JSON, by the gateway's own encoder: rows of length 1 in random directions, the mean of 64."""
    rng = np.random.default_rng(0)
    found = {}
    for width in DIMENSIONS:
        rows = rng.standard_normal((64, width))
        unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for encoding in vectors.ENCODINGS:
            written = msgspec.json.encode(vectors.encode(unit, encoding))
            found[f"{width} {encoding}"] = round((len(written) - 2 - 63) / 64)
    return found


def _wire(found: Found) -> str:
    rows = [
        (
            encoding,
            *(f"{found.wire_bytes[f'{width} {encoding}']:,}" for width in DIMENSIONS),
            f"{found.wire_bytes[f'{DIMENSIONS[-1]} {encoding}'] / found.wire_bytes[f'{DIMENSIONS[-1]} base64']:.2f}",
        )
        for encoding in vectors.ENCODINGS
    ]
    names = ("encoding", *(f"bytes a row of {width}" for width in DIMENSIONS), "over base64")
    return table.markdown(names, rows)
