"""What became of each request, and the table at the end. Knows no HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["right", "scripted", "refused", "rejected", "left", "lost", "wrong"]
"""right: 200 and every row as it must be, or any other answer as it must be. scripted: a failure that was asked for.
refused: 429 or 503 with Retry-After. rejected: bad input, told so. left: the client went. lost: no whole answer. wrong:
all else."""
MOST_TOLD = 20


@dataclass(slots=True)
class Tally:
    """Counts by kind of request, the seconds of those answered rightly, and the first reasons for what must not be."""

    counts: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def add(self, kind: str, outcome: Outcome, seconds: float | None = None, why: str = "") -> None:
        self.counts[kind, outcome] += 1
        if outcome == "right" and seconds is not None:
            self.seconds.setdefault(kind, []).append(seconds)
        if outcome in ("lost", "wrong") and len(self.told) < MOST_TOLD:
            self.told.append(f"{outcome}: {kind}: {why}")

    def of(self, outcome: Outcome, kind: str | None = None) -> int:
        return sum(count for (one, what), count in self.counts.items() if what == outcome and kind in (None, one))

    @property
    def requests(self) -> int:
        return sum(self.counts.values())

    @property
    def clean(self) -> bool:
        return not self.of("lost") and not self.of("wrong")


def share(values: Sequence[float], part: float) -> float:
    """The value that `part` of them do not exceed; 0 of none."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else 0.0


def rows(tally: Tally) -> Iterable[str]:
    """A line for each kind of request, and one for all."""
    columns: tuple[Outcome, ...] = ("right", "scripted", "refused", "rejected", "left", "lost", "wrong")
    yield f"{'request':<22}" + "".join(f"{name:>10}" for name in columns) + f"{'p50 ms':>10}{'p99 ms':>10}"
    for kind in (*sorted({kind for kind, _ in tally.counts}), None):
        seconds = tally.seconds.get(kind, []) if kind else [one for some in tally.seconds.values() for one in some]
        counts = "".join(f"{tally.of(name, kind):>10}" for name in columns)
        yield f"{kind or 'all':<22}{counts}{share(seconds, 0.5) * 1e3:>10.1f}{share(seconds, 0.99) * 1e3:>10.1f}"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Resident bytes of the server: once warm, at the end, at the highest."""

    before: int
    after: int
    peak: int

    def __str__(self) -> str:
        return (
            f"memory {self.before / 2**20:.0f} MiB before, {self.after / 2**20:.0f} after "
            f"({(self.after - self.before) / 2**20:+.0f}), {self.peak / 2**20:.0f} at the peak"
        )
