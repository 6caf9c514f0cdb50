"""A report as lines for a terminal; the same tables serve docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vecgate.bench.figures import Spread, spread
from vecgate.bench.result import BulkRow, Ratio, Report, Row, Server


def text(report: Report) -> str:
    """All of it, errors last, where they are seen."""
    parts = [head(report)]
    if report.rows:
        parts.append(grid(ROW_HEAD, [cells(row) for row in report.rows]))
    if report.ratios:
        parts.append(grid(RATIO_HEAD, [ratio_cells(one) for one in report.ratios]))
    if report.bulk:
        parts.append(grid(BULK_HEAD, [bulk_cells(row) for row in report.bulk]))
    parts += [f"{sweep.what}:\n" + grid(ROW_HEAD, [cells(row) for row in sweep.rows]) for sweep in report.sweeps]
    if report.errors:
        listed = [*report.errors[:20], *([f"and {len(report.errors) - 20} more."] if len(report.errors) > 20 else [])]
        parts.append("ERRORS: these figures are not to be used.\n" + "\n".join(f"  {one}" for one in listed))
    return "\n\n".join(parts) + "\n"


def head(report: Report) -> str:
    here = report.machine
    lines = [
        f"{report.command}, {report.begun}, vecgate {report.vecgate}",
        f"{here.processor}, {here.cores} cores, {here.memory_bytes / 2**30:.0f} GiB, {here.system}, Python {here.python}, "
        f"load average {here.load_average}",
        *(f"server {at}: {told(server)}" for at, server in enumerate(report.servers, 1)),
    ]
    if report.floor:
        lines.append(
            f"client: {report.floor.cpu_ms_a_request:.3f} ms of CPU a request; on a server that does nothing p50 is "
            f"{report.floor.p50_ms:.3f} ms"
        )
    if report.raw:
        raw = report.raw
        lines.append(
            f"raw: {raw.model} by {raw.backend} on {raw.device} in {raw.dtype}; a full batch of {raw.batch_tokens} tokens "
            f"takes {1e3 * raw.full_batch_s:.1f} ms"
        )
    if report.ceiling:
        top = report.ceiling
        lines.append(
            f"ceiling: {top.flops_per_s / 1e9:.0f} GFLOP/s in a matrix product, {top.bytes_per_s / 1e9:.1f} GB/s in a copy "
            f"({top.library} {top.version}, {top.dtype}, {top.device}, {top.threads} threads)"
        )
    return "\n".join(lines)


def told(server: Server) -> str:
    """A server as it describes itself."""
    known = (server.version and f"version {server.version}", server.model, server.backend, server.device, server.dtype)
    return ", ".join([server.url, *filter(None, known)])


ROW_HEAD = (
    "server",
    "mix",
    "load",
    "texts/s (range)",
    "p50 ms",
    "p95",
    "p99 (range)",
    "client",
    "served/raw",
    "p50/raw",
    "of ceiling",
)
RATIO_HEAD = ("first over second", "load", "texts/s (range)", "p50 (range)", "texts/s by round")
BULK_HEAD = (
    *("server", "bulk", "query p99 ms alone", "p50 beside", "p99 beside"),
    *("bulk texts/s alone", "beside", "rate kept", "p99 / full batch"),
)


def cells(row: Row) -> tuple[str, ...]:
    """One of ROW_HEAD's."""
    p95 = spread([one.p95_ms for one in row.rounds if one.p95_ms is not None])
    cpu = max((one.client_cpu for one in row.rounds), default=0.0)
    return (
        str(row.server + 1),
        f"{row.mix} ({row.texts_a_request} a call)" if row.texts_a_request > 1 else row.mix,
        load(row.concurrency, row.rate),
        ranged(row.texts_per_s),
        middle(row.p50_ms),
        middle(p95),
        ranged(row.p99_ms),
        f"{cpu:.0%}",
        middle(row.served_to_raw),
        middle(row.p50_to_raw),
        f"{row.ceiling_share.median:.0%}" if row.ceiling_share else "-",
    )


def ratio_cells(one: Ratio) -> tuple[str, ...]:
    rounds = " ".join(f"{value:.2f}" for value in one.texts_per_s_rounds)
    return one.mix, load(one.concurrency, one.rate), ranged(one.texts_per_s), ranged(one.p50), rounds


def bulk_cells(row: BulkRow) -> tuple[str, ...]:
    alone = spread([one.bulk_alone.texts_per_s for one in row.rounds])
    beside = spread([one.bulk_beside.texts_per_s for one in row.rounds])
    return (
        str(row.server + 1),
        f"{row.texts} chunks, {row.texts_a_call} a call, {row.calls_in_flight} in flight",
        middle(row.query_alone_p99_ms),
        middle(row.query_beside_p50_ms),
        ranged(row.query_beside_p99_ms),
        middle(alone),
        middle(beside),
        ranged(row.rate_kept),
        ranged(row.p99_over_batch),
    )


def load(concurrency: int | None, rate: float | None) -> str:
    return f"{rate:g}/s" if rate else f"{concurrency} client{'' if concurrency == 1 else 's'}"


def number(value: float) -> str:
    """Three figures; more would be noise."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def middle(of: Spread | None) -> str:
    return number(of.median) if of else "-"


def ranged(of: Spread | None) -> str:
    """The median, and the range in parentheses."""
    return f"{number(of.median)} ({number(of.low)}-{number(of.high)})" if of else "-"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns for a terminal: the first three to the left, figures to the right."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 3 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
