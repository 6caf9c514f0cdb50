"""How many machines a load needs, and the p99 to expect of them, from what `vecgate bench --json` measured of one.

    vecgate bench http://127.0.0.1:9000 --mix queries --concurrency 64 --rate 20,40,60,80 --json bench.json
    python -m docs.machines bench.json --rate 500 --goal-ms 200

The model is one sentence: of c machines each gets requests as the measured one did at rate / c. Requests that come at random
(Poisson) and are dealt out at random come at random to each machine, which is exactly the bench's `--rate`; least connections
deal better than that, so the p99 told is not below the true one for lack of luck. Between two measured rates it is
interpolated, below the least it is the least's; above the highest that was kept up with nothing is known and nothing told. No
formula of service times is assumed: batches, padding and the gateway's own work are in the measured points. Not in it: the
proxy (milliseconds: docs/scaling.md), arrivals in bursts, texts of other lengths than the bench's, machines of another kind.

A machine is loaded to `--load` of what it was seen to do at most, or less where the goal needs it; `--spare` machines are added.
With `--regions` N, any one of them may be lost: each of them carries 1 / (N - 1) of the rate, and has its spares.
Needs Python alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil, inf, sqrt
from pathlib import Path
from statistics import median
from typing import Any

DAY_S = 86_400
LOAD, SPARE, PEAK = 0.7, 1, 3.0
KEPT_UP = 0.95
"""A machine that answered less than this share of what was due in its windows was falling behind; random arrivals are
allowed two standard deviations besides."""
ROUNDING = 1e-9
"""So that 700 / 70 is not 11 machines where the binary fraction is a hair over 10."""


class Unknown(Exception):
    """The measurements do not say; `str` tells what is missing."""


@dataclass(frozen=True, slots=True)
class Point:
    """A rate that the machine kept up with: requests a second, p99 as the median and the worst of its rounds."""

    rate: float
    p99_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine with one mix. most: requests a second, the most it was seen to answer. tokens: of a request."""

    mix: str
    points: tuple[Point, ...]
    most: float
    tokens_per_s: float
    tokens: float

    def p99_ms(self, rate: float, *, worst: bool = False) -> float:
        """At so many requests a second; raises Unknown above what was measured."""
        rising, highest = [], 0.0
        for one in self.points:  # a longer queue is never quicker: what looks so is noise
            highest = max(highest, one.worst_ms if worst else one.p99_ms)
            rising.append((one.rate, highest))
        if rate > rising[-1][0] * (1 + ROUNDING):
            raise Unknown(f"{rate:.4g} requests/s are more than the {rising[-1][0]:g} that one machine kept up with.")
        if rate <= rising[0][0]:
            return rising[0][1]
        (low, least), (high, most) = next(pair for pair in pairwise(rising) if rate <= pair[1][0] * (1 + ROUNDING))
        return least + (rate - low) / (high - low) * (most - least)

    def rate_within(self, goal_ms: float) -> float:
        """The highest rate at which the p99 is within the goal; raises Unknown where none of those measured is."""
        if self.points[0].p99_ms > goal_ms:
            least = self.points[0]
            raise Unknown(
                f"At {least.rate:g} requests/s, the least measured, the p99 of one machine is {least.p99_ms:.1f} ms: "
                f"no number of them keeps {goal_ms:g} ms. Measure a lower rate, or a faster machine."
            )
        low, high = self.points[0].rate, self.points[-1].rate
        if self.p99_ms(high) <= goal_ms:
            return high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.p99_ms(middle) <= goal_ms else (low, middle)
        return low


@dataclass(frozen=True, slots=True)
class Plan:
    """per_machine: requests a second that each may get. machines: of one region, spares included. p99_ms: with all of
    them; without_ms: with the spares gone."""

    per_machine: float
    machines: int
    regions: int
    region_rate: float
    p99_ms: float
    without_ms: float


def machine(report: Mapping[str, Any], mix: str | None = None, server: int = 0) -> Machine:
    """Out of a bench's JSON; raises Unknown where it has errors or no open loop (--rate) that was kept up with."""
    if report["errors"]:
        raise Unknown(f"The bench had errors: {report['errors'][0]}")
    rows = [row for row in report["rows"] if row["server"] == server]
    mix = mix or next((row["mix"] for row in rows if row["rate"]), None)
    rows = [row for row in rows if row["mix"] == mix]
    points = _kept([row for row in rows if row["rate"]])
    if not points:
        raise Unknown("The bench has no rate that was kept up with: give `vecgate bench` --rate with lower ones.")
    closed = [median(one["requests"] / one["seconds"] for one in row["rounds"]) for row in rows if not row["rate"]]
    rounds = [one for row in rows for one in row["rounds"]]
    fastest = max(rows, key=lambda row: median(one["tokens_per_s"] for one in row["rounds"]))
    return Machine(
        mix=str(mix),
        points=points,
        most=max([*closed, points[-1].rate]),
        tokens_per_s=median(one["tokens_per_s"] for one in fastest["rounds"]),
        tokens=sum(one["tokens_per_s"] * one["seconds"] for one in rounds) / sum(one["requests"] for one in rounds),
    )


def _kept(rows: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Up to the first rate at which it fell behind."""
    found = []
    for row in sorted(rows, key=lambda row: float(row["rate"])):
        due = sum(row["rate"] * one["seconds"] for one in row["rounds"])
        if sum(one["requests"] for one in row["rounds"]) < KEPT_UP * due - 2 * sqrt(due):
            break
        if row["p99_ms"] is not None:
            found.append(Point(row["rate"], row["p99_ms"]["median"], row["p99_ms"]["high"]))
    return tuple(found)


def plan(
    one: Machine,
    rate: float,
    goal_ms: float | None = None,
    *,
    load: float = LOAD,
    spare: int = SPARE,
    regions: int = 1,
) -> Plan:
    """Raises Unknown where the measurements do not say."""
    reached = one.points[-1].rate if goal_ms is None else one.rate_within(goal_ms)
    per_machine = min(load * one.most, reached)
    region_rate = rate / max(1, regions - 1)
    working = max(1, ceil(region_rate / per_machine - ROUNDING))
    return Plan(
        per_machine=per_machine,
        machines=working + spare,
        regions=regions,
        region_rate=region_rate,
        p99_ms=one.p99_ms(region_rate / (working + spare)),
        without_ms=one.p99_ms(region_rate / working),
    )


def machines_by_tokens(
    requests_a_day: float,
    tokens: float,
    tokens_per_s: float,
    *,
    peak: float = PEAK,
    load: float = LOAD,
    spare: int = SPARE,
    regions: int = 1,
) -> int:
    """In all regions together, from nothing but tokens: requests of `tokens` each on machines that do `tokens_per_s`."""
    needed = requests_a_day / DAY_S * peak * tokens / max(1, regions - 1)
    return regions * (max(1, ceil(needed / (load * tokens_per_s) - ROUNDING)) + spare)


def told(one: Machine, plan: Plan, rate: float) -> str:
    """The answer in lines."""
    lines = [
        f"one machine, {one.mix}: {one.most:.4g} requests/s at most, {one.tokens_per_s:.4g} tokens/s, "
        f"{one.tokens:.3g} tokens a request",
        *(f"  {at.rate:g}/s: p99 {at.p99_ms:.1f} ms (worst round {at.worst_ms:.1f})" for at in one.points),
        f"wanted: {rate:,.1f} requests/s; each machine may get {plan.per_machine:.1f}",
    ]
    where = ""
    if plan.regions > 1:
        lines.append(f"{plan.regions} regions, each for {plan.region_rate:,.1f} requests/s, so that one may be lost")
        where = f" in each region, {plan.regions * plan.machines:,} in all"
    lines.append(f"machines: {plan.machines:,}{where}")
    lines.append(f"expected p99: {plan.p99_ms:.1f} ms, with the spares gone {plan.without_ms:.1f} ms")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.machines", description="Machines for a load, from a bench.")
    parser.add_argument("report", type=Path, help="what `vecgate bench --rate ... --json` wrote")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--rate", type=_positive, help="requests a second, at the peak")
    wanted.add_argument("--a-day", type=_positive, help="requests a day, of which --peak times the mean is the peak")
    parser.add_argument("--peak", type=_positive, default=PEAK, help="(%(default)s)")
    parser.add_argument("--goal-ms", type=_positive, help="the latency goal; without it only the load counts")
    parser.add_argument("--mix", help="where the bench has several; the first that has rates")
    parser.add_argument("--load", type=_share, default=LOAD, help="share of what a machine does at most (%(default)s)")
    parser.add_argument(
        "--spare", type=partial(_count, 0), default=SPARE, help="machines that may be gone (%(default)s)"
    )
    parser.add_argument("--regions", type=partial(_count, 1), default=1, help="of which one may be gone (%(default)s)")
    wish = parser.parse_args(argv)
    rate = wish.rate or wish.a_day / DAY_S * wish.peak
    try:
        one = machine(_read(wish.report), wish.mix)
        found = plan(one, rate, wish.goal_ms, load=wish.load, spare=wish.spare, regions=wish.regions)
    except Unknown as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(told(one, found, rate) + "\n")
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise Unknown(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= {"errors", "rows"}:
        raise Unknown(f"{path} is not what `vecgate bench --json` writes.")
    return found


def _count(least: int, text: str) -> int:
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return int(text)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return float(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
