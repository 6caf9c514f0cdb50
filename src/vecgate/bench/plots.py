"""Plots as inline SVG: lines over a number, and bars that are stacked; colours come from the page's style sheet.

Knows series of numbers, no report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2, log10

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 44
COLOURS = 8
"""Classes c0 to c7 of the style sheet."""
BAR, TITLE = 26, 30


@dataclass(frozen=True, slots=True)
class Line:
    """points: (x, y) by x. low, high: a range around each y, where there is one."""

    name: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot. drawn: SVG elements. names: of its colours, in their order."""

    title: str
    drawn: str
    names: tuple[str, ...]
    height: int

    def html(self) -> str:
        """With its caption and legend, for a page whose style has the classes."""
        legend = "".join(
            f'<li><svg width="12" height="12" aria-hidden="true"><rect class="f{at % COLOURS}" width="12" height="12"/></svg> '
            f"{escape(name)}</li>"
            for at, name in enumerate(self.names)
        )
        return (
            f'<figure><figcaption>{escape(self.title)}</figcaption><svg viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(self.title, quote=True)}">{self.drawn}</svg><ul class="legend">{legend}</ul></figure>'
        )

    def svg(self, style: str) -> str:
        """A file of its own: title above, legend below."""
        marks, y = [], TITLE + self.height + 14
        for at, name in enumerate(self.names):
            x, row = 12 + at % 3 * 208, y + at // 3 * 20
            marks.append(f'<rect class="f{at % COLOURS}" x="{x}" y="{row - 10}" width="12" height="12"/>')
            marks.append(f'<text x="{x + 18}" y="{row}">{escape(name)}</text>')
        height = y + ceil(len(self.names) / 3) * 20
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'font-family="system-ui, sans-serif"><style>{style}</style><rect class="page" width="100%" height="100%"/>'
            f'<text class="title" x="12" y="20">{escape(self.title)}</text>'
            f'<g transform="translate(0 {TITLE})">{self.drawn}</g>{"".join(marks)}</svg>\n'
        )


def lines(title: str, of: Sequence[Line], x: str, y: str) -> Figure | None:
    """None of no points; x is drawn in powers of two where it grows like them, y from 0."""
    of = [line for line in of if line.points]
    if not of:
        return None
    xs = sorted({point[0] for line in of for point in line.points})
    tops = [high for line in of for _, high in line.ranges] + [point[1] for line in of for point in line.points]
    ticks = _ticks(max(tops))
    place_x, place_y = _scale_x(xs), _scale_y(ticks[-1])
    parts = [_grid(ticks, place_y, y), _axis(xs, place_x, x)]
    for at, line in enumerate(of):
        parts.append(_line(line, at, place_x, place_y))
    return Figure(title, "".join(parts), tuple(line.name for line in of), HEIGHT)


def stacks(title: str, bars: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Figure | None:
    """One bar for each name, made of its parts in their order; None of no bars."""
    bars = [(name, parts) for name, parts in bars if parts]
    if not bars:
        return None
    kinds = list(dict.fromkeys(kind for _, parts in bars for kind in parts))
    ticks = _ticks(max(sum(parts.values()) for _, parts in bars))
    left, height = LEFT + 120, TOP + BAR * len(bars) + BOTTOM
    unit_px = (WIDTH - left - RIGHT) / ticks[-1]
    drawn = []
    for row, (name, parts) in enumerate(bars):
        y, x = TOP + BAR * row, float(left)
        drawn.append(f'<text class="end" x="{left - 8}" y="{y + 15}">{escape(name)}</text>')
        for kind, value in parts.items():
            colour = kinds.index(kind) % COLOURS
            told = f"{name}: {kind} {value:.2f} {unit}"
            drawn.append(
                f'<rect class="f{colour}" x="{x:.1f}" y="{y}" width="{value * unit_px:.1f}" height="{BAR - 6}">'
                f"<title>{escape(told)}</title></rect>"
            )
            x += value * unit_px
    for tick in ticks:
        x = left + tick * unit_px
        drawn.append(f'<text class="mid" x="{x:.1f}" y="{height - 26}">{tick:g}</text>')
    drawn.append(f'<text class="mid" x="{(left + WIDTH - RIGHT) / 2}" y="{height - 8}">{escape(unit)}</text>')
    return Figure(title, "".join(drawn), tuple(kinds), height)


def _ticks(top: float) -> list[float]:
    """From 0 to what is not below `top`, four to eight of them, at 1, 2 or 5 times a power of ten."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** floor(log10(top / 4))
    step = next(step for times in (1, 2, 5, 10) if top / (step := times * power) <= 8)
    return [step * at for at in range(ceil(top / step - 1e-9) + 1)]


def _scale_x(xs: Sequence[float]) -> dict[float, float]:
    doubling = xs[0] > 0 and xs[-1] / xs[0] >= 8
    at = [log2(x) if doubling else x for x in xs]
    wide = (at[-1] - at[0]) or 1.0
    return {x: LEFT + 12 + (where - at[0]) / wide * (WIDTH - LEFT - RIGHT - 24) for x, where in zip(xs, at)}


def _scale_y(top: float) -> Callable[[float], float]:
    return lambda value: HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _grid(ticks: Sequence[float], place_y: Callable[[float], float], label: str) -> str:
    drawn = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place_y(tick):.1f}" y2="{place_y(tick):.1f}"/>'
        f'<text class="end" x="{LEFT - 6}" y="{place_y(tick) + 4:.1f}">{tick:g}</text>'
        for tick in ticks
    ]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    drawn.append(f'<text class="mid" transform="translate(14 {middle}) rotate(-90)">{escape(label)}</text>')
    return "".join(drawn)


def _axis(xs: Sequence[float], place_x: Mapping[float, float], label: str) -> str:
    drawn = [f'<text class="mid" x="{place_x[x]:.1f}" y="{HEIGHT - BOTTOM + 17}">{x:g}</text>' for x in xs]
    drawn.append(f'<text class="mid" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(label)}</text>')
    return "".join(drawn)


def _line(line: Line, at: int, place_x: Mapping[float, float], place_y: Callable[[float], float]) -> str:
    colour = at % COLOURS
    path = " ".join(f"{place_x[x]:.1f},{place_y(y):.1f}" for x, y in line.points)
    drawn = [f'<polyline class="s{colour}" points="{path}"/>']
    for (x, _), (low, high) in zip(line.points, line.ranges):
        drawn.append(
            f'<line class="s{colour}" x1="{place_x[x]:.1f}" x2="{place_x[x]:.1f}" y1="{place_y(low):.1f}" '
            f'y2="{place_y(high):.1f}"><title>{low:.4g} to {high:.4g}</title></line>'
        )
    for x, y in line.points:
        drawn.append(
            f'<circle class="f{colour}" cx="{place_x[x]:.1f}" cy="{place_y(y):.1f}" r="3.5">'
            f"<title>{escape(line.name)}: {x:g}, {y:.4g}</title></circle>"
        )
    return "".join(drawn)
