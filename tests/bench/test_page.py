import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from vecgate.bench import command, page, plots, table
from vecgate.bench.figures import Spread
from vecgate.bench.plots import Line
from vecgate.bench.result import (
    BulkRound,
    BulkRow,
    Ceiling,
    Floor,
    Machine,
    Ratio,
    Raw,
    Report,
    Round,
    Row,
    Server,
    Sweep,
)

VOID = {"meta", "br"}
ONE = Spread(100.0, 90.0, 110.0)
ROUND = Round(
    seconds=5.0,
    requests=500.0,
    texts_per_s=100.0,
    tokens_per_s=900.0,
    p50_ms=8.0,
    p90_ms=9.0,
    p95_ms=10.0,
    p99_ms=12.5,
    most_ms=20.0,
    client_cpu=0.03,
    errors={},
    stages_ms={"queue": 1.0, "forward": 6.5, "rest": 0.5},
)


def row(server: int, mix: str, concurrency: int | None, **changes: Any) -> Row:
    made = Row(server, mix, 1, concurrency, None, [ROUND] * 3, ONE, Spread(8.0, 7.0, 9.0), Spread(12.5, 11.0, 14.0))
    return msgspec.structs.replace(made, **changes)


def report(**changes: Any) -> Report:
    bulk = BulkRow(0, 10_000, 32, 8, [BulkRound(ROUND, ROUND, ROUND, ROUND)], ONE, ONE, ONE, Spread(0.95, 0.9, 1), ONE)
    made = Report(
        command="vecgate bench '<URL>'",
        begun="2030-01-01T00:00:00+00:00",
        vecgate="1.2",
        machine=Machine("Linux", "a <fast> one", 2, 2**34, "3.11", 0.1),
        servers=[Server("http://a", version="1.2", model="m<&>"), Server("http://b")],
        floor=Floor(0.1, 0.03),
        raw=Raw("m", "torch", "cpu", "float32", 2048, 0.2, 10**7, 1e6),
        ceiling=Ceiling("torch", "2", "cpu", "float32", 2, 1e11, 1e10),
        rows=[row(at, mix, clients) for mix in ("queries", "mixed") for clients in (1, 64) for at in (0, 1)],
        ratios=[Ratio("queries", 1, None, [1.5, 1.7], [0.6, 0.7], Spread(1.6, 1.5, 1.7), Spread(0.65, 0.6, 0.7))],
        bulk=[bulk, msgspec.structs.replace(bulk, texts_a_call=256)],
        sweeps=[Sweep("length", [8, 256], [row(at, "x", 8) for _ in range(2) for at in (0, 1)])],
    )
    return msgspec.structs.replace(made, **changes)


class Reading(HTMLParser):
    """Raises where a tag is not closed; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Reading:
    found = Reading()
    found.feed(html)
    found.close()
    assert found.open == []
    return found


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    html = page.page(report())
    found = parsed(html)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(found.tags)
    assert [value for name, value in found.attributes if name in ("src", "href", "srcset")] == []
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "a <fast> one" in found.text
    assert "m<&>" in found.text


def test_the_page_has_every_plot() -> None:
    html = page.page(report())
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[0] == "Throughput over concurrency"
    for caption in (
        "Latency, queries, server 1",
        "Latency, mixed, server 2",
        "Time by stage, queries (Server-Timing)",
        "A single query beside a bulk",
        "texts/s over tokens in a text, about",
    ):
        assert any(one.startswith(caption) for one in captions), caption
    drawn = re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL)
    assert len(drawn) == len(captions)
    for one in drawn:
        ElementTree.fromstring(one)


def test_a_run_with_errors_says_so_first() -> None:
    wrong = report(errors=["queries x 1: 3 wrong: <order>."])
    assert "These figures are not to be used" in parsed(page.page(wrong)).text
    assert "ERRORS: these figures are not to be used.\n  queries x 1: 3 wrong: <order>." in table.text(wrong)
    assert "not to be used" not in page.page(report()) + table.text(report())


def test_nothing_measured_makes_a_page_too() -> None:
    parsed(page.page(report(rows=[], ratios=[], bulk=[], sweeps=[], floor=None, raw=None, ceiling=None)))


def test_the_table_has_medians_and_ranges() -> None:
    said = table.text(report())
    assert re.search(r"1 +queries +1 client +100 \(90\.0-110\)", said)
    assert re.search(r"queries +1 client +1\.60 \(1\.50-1\.70\) +0\.65 \(0\.60-0\.70\) +1\.50 1\.70", said)
    assert "ceiling: 100 GFLOP/s in a matrix product" in said


def test_markdown_keeps_a_cell_in_its_place() -> None:
    assert table.markdown(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


def test_the_json_is_read_back_as_the_same() -> None:
    assert msgspec.json.decode(command.as_json(report()), type=Report) == report()


def test_points_stand_where_their_numbers_say() -> None:
    figure = plots.lines("t", [Line("a", [(1, 0), (2, 50), (16, 100)], [(0, 10), (40, 60), (90, 100)])], "x", "y")
    assert figure is not None
    drawn = figure.drawn
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    xs, ys = zip(*places)
    assert ys[0] == plots.HEIGHT - plots.BOTTOM
    assert ys[2] == plots.TOP
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2)
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(1 / 4, abs=1e-2)  # doublings


def test_bars_are_as_wide_as_their_parts() -> None:
    figure = plots.stacks("t", [("a", {"p": 1.0, "q": 3.0}), ("b", {"q": 2.0}), ("none", {})], "ms")
    assert figure is not None
    drawn = figure.drawn
    widths = [float(width) for width in re.findall(r'<rect class="f\d" x=[^>]* width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=1e-2)
    assert widths[2] == pytest.approx(2 * widths[0], rel=1e-2)
    assert "none" not in drawn


def test_nothing_to_draw_draws_nothing() -> None:
    assert plots.lines("t", [Line("a", [])], "x", "y") is None
    assert plots.stacks("t", [("a", {})], "ms") is None
    assert plots.lines("t", [Line("a", [(1, 0.0)])], "x", "y") is not None


def test_each_plot_can_be_a_file_of_its_own() -> None:
    files = page.files(report())
    assert len(files) == page.page(report()).count("<figure>")
    assert "throughput-over-concurrency.svg" in files
    for drawn in files.values():
        ElementTree.fromstring(drawn)
    assert "queries, server 1" in files["throughput-over-concurrency.svg"]
