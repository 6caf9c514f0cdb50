"""A window of shots -> the figures of a round: only right answers count, every other request is an error by its kind."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import median

from vecgate.bench.figures import overlap, percentile
from vecgate.bench.load import Shot, Window
from vecgate.bench.plan import Ask
from vecgate.bench.read import Reader
from vecgate.bench.result import Round

STAGE = re.compile(r"([\w-]+)\s*;[^,]*?dur=([0-9.]+)")


def judge(window: Window, asks: Sequence[Ask], reader: Reader) -> Round:
    """Throughput of the shares that lie in the window; latencies of the requests that ended in it."""
    errors: Counter[str] = Counter()
    requests = texts = tokens = 0.0
    unchecked, latencies, timings = 0, [], []
    for shot in window.shots:
        share = overlap(shot.begin_s, shot.end_s, window.begin_s, window.end_s)
        kind, counted, checked = _read(shot, asks[shot.ask], reader)
        if kind is not None:
            errors[kind] += 1
            continue
        unchecked += not checked
        requests += share
        texts += share * len(asks[shot.ask].texts)
        tokens += share * counted
        if window.begin_s <= shot.end_s <= window.end_s:
            latencies.append(shot.end_s - shot.begin_s)
            timings.append((shot.end_s - shot.begin_s, shot.timing))
    seconds = window.end_s - window.begin_s
    ordered = sorted(latencies)
    late = sorted(shot.late_s for shot in window.shots)
    return Round(
        seconds=seconds,
        requests=requests,
        texts_per_s=texts / seconds,
        tokens_per_s=tokens / seconds,
        p50_ms=_ms(ordered, 0.5),
        p90_ms=_ms(ordered, 0.9),
        p95_ms=_ms(ordered, 0.95),
        p99_ms=_ms(ordered, 0.99),
        most_ms=_ms(ordered, 1.0),
        client_cpu=window.client_cpu_s / seconds,
        errors=dict(errors),
        unchecked=unchecked,
        late_ms=1e3 * percentile(late, 0.99) if late and late[-1] > 0 else None,
        stages_ms=_stages(timings),
    )


def _read(shot: Shot, ask: Ask, reader: Reader) -> tuple[str | None, int, bool]:
    """What is wrong, the tokens the server counted, and whether the answer was there to be read."""
    if shot.kind is not None:
        return shot.kind, 0, False
    if shot.body is None:
        return None, 0, False
    wrong, tokens = reader.read(ask, shot.body)
    return (f"wrong: {wrong}" if wrong else None), tokens, True


def _ms(ordered_s: Sequence[float], share: float) -> float | None:
    return 1e3 * percentile(ordered_s, share) if ordered_s else None


def _stages(timings: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Medians in ms, in the server's order; {} where it sends none."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for latency_s, timing in timings:
        stages = {name: float(ms) for name, ms in STAGE.findall(timing)}
        for name, ms in stages.items():
            found[name].append(ms)
        if stages:
            found["rest"].append(max(0.0, 1e3 * latency_s - sum(stages.values())))
    rest = found.pop("rest", [])
    return {name: median(all_ms) for name, all_ms in found.items()} | ({"rest": median(rest)} if rest else {})
