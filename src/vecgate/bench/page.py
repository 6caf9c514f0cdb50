"""A report as one HTML file that needs nothing else: tables, plots drawn here, light and dark as the reader has it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape

from vecgate.bench import plots, table
from vecgate.bench.figures import Spread, spread
from vecgate.bench.plots import Figure, Line
from vecgate.bench.result import BulkRow, Report, Row, Sweep

SLUG = re.compile(r"[^a-z0-9]+")
COLOURS = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2128; --soft: #57606a; --line: #d8dee4; --bad: #b3261e;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; --c5: #9a6700; --c6: #1b7c83; --c7: #6e7781 }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --soft: #9198a1; --line: #30363d;
  --bad: #ff7b72; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #f778ba; --c5: #d29922; --c6: #39c5cf;
  --c7: #8b949e } }
.mid { text-anchor: middle } .end { text-anchor: end } .grid { stroke: var(--line) }
svg text { fill: var(--soft); font-size: 11px } polyline, line { fill: none; stroke-width: 2 }
.page { fill: var(--page) } svg .title { fill: var(--text); font-size: 14px; font-weight: 600 }
"""
COLOURS += "".join(
    f".s{at} {{ stroke: var(--c{at}) }} .f{at} {{ fill: var(--c{at}) }}\n" for at in range(plots.COLOURS)
)
STYLE = """
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem;
  max-width: 1100px }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } pre { overflow-x: auto; white-space: pre-wrap }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: right; white-space: nowrap }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left } .bad { color: var(--bad); font-weight: 600 }
.plots { margin-top: 1.5rem; display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1.5rem }
figure { margin: 0 } figcaption { font-weight: 600 }
.legend { list-style: none; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: 13px }
"""


def page(report: Report) -> str:
    """Complete HTML: no script, nothing from elsewhere."""
    body = [
        "<h1>vecgate bench</h1>",
        _errors(report.errors),
        f"<pre>{escape(table.head(report))}</pre>",
        _rows("Loads", table.ROW_HEAD, map(table.cells, report.rows)),
        _rows("The first server over the second", table.RATIO_HEAD, map(table.ratio_cells, report.ratios)),
        _plots(_loads(report)),
        _rows("Bulk beside queries", table.BULK_HEAD, map(table.bulk_cells, report.bulk)),
        _plots(_bulks(report)),
        *(_swept(sweep, report) for sweep in report.sweeps),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vecgate bench</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{COLOURS}{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _errors(errors: Sequence[str]) -> str:
    if not errors:
        return ""
    listed = "".join(f"<li>{escape(one)}</li>" for one in errors)
    return f'<p class="bad">These figures are not to be used:</p><ul class="bad">{listed}</ul>'


def _rows(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h2>{escape(title)}</h2><div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{inner}</tbody></table></div>'


def figures(report: Report) -> list[Figure]:
    """Every plot there is something to draw in."""
    found = [*_loads(report), *_bulks(report), *(_sweep(sweep, report) for sweep in report.sweeps)]
    return [figure for figure in found if figure is not None]


def files(report: Report) -> dict[str, str]:
    """Every plot as an SVG file of its own, by its name."""
    return {f"{SLUG.sub('-', one.title.lower()).strip('-')}.svg": one.svg(COLOURS) for one in figures(report)}


def _plots(drawn_: Iterable[Figure | None]) -> str:
    drawn = "".join(figure.html() for figure in drawn_ if figure is not None)
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def _loads(report: Report) -> list[Figure | None]:
    """Throughput over concurrency, latencies by percentile, time by stage."""
    rows = [row for row in report.rows if row.concurrency]
    by_mix: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_mix[row.mix].append(row)
    throughput = [_line(_named(report, own), own) for mix in by_mix.values() for own in _by_server(mix)]
    drawn = [plots.lines("Throughput over concurrency", throughput, "clients", "texts/s")]
    for mix, own in by_mix.items():
        drawn += [_percentiles(report, f"Latency, {mix}", one) for one in _by_server(own)]
        drawn.append(_stages(report, mix, own))
    return drawn


def _by_server(rows: Sequence[Row]) -> list[list[Row]]:
    servers = sorted({row.server for row in rows})
    return [[row for row in rows if row.server == server] for server in servers]


def _named(report: Report, rows: Sequence[Row]) -> str:
    row = rows[0]
    return f"{row.mix}, server {row.server + 1}" if len(report.servers) > 1 else row.mix


def _line(name: str, rows: Sequence[Row]) -> Line:
    known = [(float(row.concurrency or 0), row.texts_per_s) for row in rows if row.texts_per_s]
    return Line(name, [(x, of.median) for x, of in known], [(of.low, of.high) for _, of in known])


def _percentiles(report: Report, title: str, rows: Sequence[Row]) -> Figure | None:
    """p50 to p99 over concurrency, the medians of the rounds."""
    names = ("p50_ms", "p90_ms", "p95_ms", "p99_ms")
    of = []
    for name in names:
        points = []
        for row in rows:
            found = spread([value for one in row.rounds if (value := getattr(one, name)) is not None])
            if found:
                points.append((float(row.concurrency or 0), found.median))
        of.append(Line(name.removesuffix("_ms"), points))
    where = f", server {rows[0].server + 1}" if len(report.servers) > 1 else ""
    return plots.lines(f"{title}{where}", of, "clients", "ms")


def _stages(report: Report, mix: str, rows: Sequence[Row]) -> Figure | None:
    bars = []
    for row in rows:
        where = f"{row.server + 1}: " if len(report.servers) > 1 else ""
        bars.append((f"{where}{table.load(row.concurrency, row.rate)}", row.rounds[-1].stages_ms if row.rounds else {}))
    return plots.stacks(f"Time by stage, {mix} (Server-Timing)", bars, "ms")


def _bulks(report: Report) -> list[Figure | None]:
    drawn: list[Figure | None] = []
    for server in sorted({row.server for row in report.bulk}):
        rows = [row for row in report.bulk if row.server == server]
        where = f", server {server + 1}" if len(report.servers) > 1 else ""
        queries = [
            _over_calls("p99 alone", rows, lambda row: row.query_alone_p99_ms),
            _over_calls("p50 beside the bulk", rows, lambda row: row.query_beside_p50_ms),
            _over_calls("p99 beside the bulk", rows, lambda row: row.query_beside_p99_ms),
        ]
        drawn.append(plots.lines(f"A single query beside a bulk{where}", queries, "texts in a call of the bulk", "ms"))
        kept = [_over_calls("rate kept", rows, lambda row: row.rate_kept)]
        drawn.append(plots.lines(f"The bulk beside queries{where}", kept, "texts in a call of the bulk", "share"))
    return drawn


def _over_calls(name: str, rows: Sequence[BulkRow], read: Callable[[BulkRow], Spread | None]) -> Line:
    known = [(float(row.texts_a_call), of) for row in rows if (of := read(row))]
    return Line(name, [(x, of.median) for x, of in known], [(of.low, of.high) for _, of in known])


UNITS = {
    "batch": "texts in a call",
    "length": "tokens in a text, about",
    "concurrency": "clients",
    "documents": "documents in a rerank",
}


def _swept(sweep: Sweep, report: Report) -> str:
    title = f"texts/s over {UNITS[sweep.what]}"
    return _rows(title, table.ROW_HEAD, map(table.cells, sweep.rows)) + _plots([_sweep(sweep, report)])


def _sweep(sweep: Sweep, report: Report) -> Figure | None:
    lines = []
    for own in _by_server(sweep.rows):
        known = [(float(value), row.texts_per_s) for value, row in zip(sweep.values, own) if row.texts_per_s]
        name = f"server {own[0].server + 1}" if len(report.servers) > 1 else "texts/s"
        lines.append(Line(name, [(x, of.median) for x, of in known], [(of.low, of.high) for _, of in known]))
    return plots.lines(f"texts/s over {UNITS[sweep.what]}", lines, UNITS[sweep.what], "texts/s")
