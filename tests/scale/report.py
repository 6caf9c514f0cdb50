"""What a run of tests.scale found, as its JSON has it, and the lines of its table. Knows no process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tests.scale.load import Outcome, Shot
from tests.scale.proxy import COUNTED
from tests.scale.scenes import Course, Phase
from tests.soak.tally import share
from vecgate.bench import table
from vecgate.bench.figures import spread
from vecgate.bench.result import Machine, Report

OUTCOMES: tuple[Outcome, ...] = ("right", "refused", "failed", "lost", "wrong")
MOST_TOLD = 20


class Line(msgspec.Struct, frozen=True):
    """One phase, or all of that name. within, over: requests up to the proxy's buffer and larger ones, by outcome. p50_ms, p99_ms, most_ms: of those
    within that were right. counts: what the proxy counted meanwhile."""

    phase: str
    seconds: float
    within: dict[str, int]
    over: dict[str, int]
    p50_ms: float
    p99_ms: float
    most_ms: float
    counts: dict[str, int]


class Scene(msgspec.Struct, frozen=True):
    """told: the first reasons of what was not right."""

    name: str
    clients: int
    think_s: float
    lines: list[Line]
    took_s: dict[str, list[float]]
    told: list[str]


class Capacity(msgspec.Struct, frozen=True):
    """Benches of servers that take a fixed time a token. beside: two of them behind the proxy against one without, in turns.
    one, two: open loops, the second at twice the first's rates, through the proxy. real: one server with a real model."""

    token_s: float
    beside: Report
    one: Report
    two: Report
    real: Report


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """wire_bytes: of one answer with one row, by "dimensions encoding"."""

    command: str
    begun: str
    vecgate: str
    commit: str
    machine: Machine
    proxy: str
    buffer_bytes: int
    scenes: list[Scene] = []
    capacity: Capacity | None = None
    wire_bytes: dict[str, int] = {}


def scene(name: str, course: Course, clients: int, think_s: float) -> Scene:
    bad = [shot for shot in course.shots if shot.outcome != "right"]
    told = [
        f"{shot.begin_s - course.phases[0].begin_s:.2f} s to {shot.end_s - course.phases[0].begin_s:.2f} s, "
        f"{shot.size}: {shot.outcome}: {shot.why}"
        for shot in [*(one for one in bad if not one.over), *(one for one in bad if one.over)]
    ]
    return Scene(
        name=name,
        clients=clients,
        think_s=think_s,
        lines=[
            _line(name, [phase for phase in course.phases if phase.name == name], course.shots)
            for name in dict.fromkeys(phase.name for phase in course.phases)
        ],
        took_s=course.took_s,
        told=told[:MOST_TOLD],
    )


def _line(name: str, phases: Sequence[Phase], shots: Sequence[Shot]) -> Line:
    """Of the requests that ended in one of the phases: what broke them happened in it."""
    own = [shot for shot in shots if any(phase.begin_s <= shot.end_s < phase.end_s for phase in phases)]
    within = [shot for shot in own if not shot.over]
    right = [shot.end_s - shot.begin_s for shot in within if shot.outcome == "right"]
    counts = sum((Counter(phase.counts) for phase in phases), Counter[str]())
    return Line(
        phase=name,
        seconds=sum(phase.end_s - phase.begin_s for phase in phases),
        within=_counted(within),
        over=_counted([shot for shot in own if shot.over]),
        p50_ms=1e3 * share(right, 0.5),
        p99_ms=1e3 * share(right, 0.99),
        most_ms=1e3 * max(right, default=0.0),
        counts={key: counts[key] for key in COUNTED},
    )


def _counted(shots: Iterable[Shot]) -> dict[str, int]:
    outcomes = [shot.outcome for shot in shots]
    return {name: outcomes.count(name) for name in OUTCOMES}


def took(one: Scene) -> list[str]:
    """The named times: the median, and the range where there are several."""
    return [
        f"{what} {table.ranged(spread(seconds)) if len(seconds) > 1 else table.number(seconds[0])} s"
        for what, seconds in one.took_s.items()
    ]


def faults(found: Iterable[Scene]) -> list[str]:
    """Why the run did not hold: a request within the buffer that was not answered rightly, or any wrong rows."""
    bad = []
    for one in found:
        for line in one.lines:
            missed = {name: count for name, count in line.within.items() if name != "right" and count}
            if missed or line.over["wrong"]:
                bad.append(f"{one.name}, {line.phase}: within the buffer {missed}, over it {line.over['wrong']} wrong")
        bad += [] if sum(line.within["right"] for line in one.lines) else [f"{one.name}: nothing was answered"]
    return bad


HEAD = (
    *("phase", "s", "requests", "right", "refused", "failed", "lost", "wrong"),
    *("p50 ms", "p99", "most", "sent again", "to the other", "larger: right", "refused", "failed", "lost"),
)


def cells(line: Line) -> tuple[str, ...]:
    """One of HEAD's."""
    within, over = line.within, line.over
    return (
        line.phase,
        f"{line.seconds:.1f}",
        str(sum(within.values())),
        *(str(within[name]) for name in OUTCOMES),
        f"{line.p50_ms:.0f}",
        f"{line.p99_ms:.0f}",
        f"{line.most_ms:.0f}",
        str(line.counts["wretr"]),
        str(line.counts["wredis"]),
        *(str(over[name]) for name in ("right", "refused", "failed", "lost")),
    )


def as_json(found: Found) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found)) + b"\n"


def pair(capacity: Capacity) -> bytes:
    """The two open loops, for a test of docs.machines; without the commands, which name this machine's folders."""
    both = {"one": capacity.one, "two": capacity.two}
    told = {name: msgspec.structs.replace(one, command="make test-scale") for name, one in both.items()}
    return msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n"


def plain(report: Report) -> dict[str, Any]:
    """As `vecgate bench --json` writes it, for docs.machines."""
    told: dict[str, Any] = msgspec.to_builtins(report)
    return told
