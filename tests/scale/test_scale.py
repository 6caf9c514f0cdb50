"""The trial of two gateways can fail: what is not the right answer is counted as such, and what is shipped is what is tried."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.scale import document, report
from tests.scale.load import HEAD_BYTES, SIZES, Client, Outcome, Shot, judge
from tests.scale.proxy import BACKEND, COUNTED, TEMPLATE, buffer_bytes, filled, found
from tests.scale.scenes import Course, Phase
from tests.soak.wire import Answer, Place

ROWS = {"one": np.array([1, 0], np.float32), "two": np.array([0, 1], np.float32)}


def answer(*rows: list[float], status: int = 200, **headers: str) -> Answer:
    data = [{"index": at, "embedding": row} for at, row in enumerate(rows)]
    return Answer(status, headers, msgspec.json.encode({"data": data}))


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (answer([1, 0], [0, 1]), "right"),
        (answer([0, 1], [1, 0]), "wrong"),
        (answer([1, 0]), "wrong"),
        (answer([1, 0], [1e-3, 1]), "wrong"),
        (Answer(200, {}, b"half"), "wrong"),
        (answer(status=503, **{"retry-after": "5"}), "refused"),
        (answer(status=503), "failed"),
        (answer(status=502, **{"retry-after": "1"}), "failed"),
    ],
)
def test_only_the_texts_own_rows_are_right(given: Answer, outcome: Outcome) -> None:
    assert judge(given, ["one", "two"], ROWS)[0] == outcome


def test_bodies_are_as_large_as_they_are_called() -> None:
    texts = {f"t{at}": ROWS["one"] for at in range(300)}
    client, fits = Client(Place("", 0), texts, 100_000, 1.0, 0), 100_000 - HEAD_BYTES
    sizes = {size.name: len(client.body(size, list(texts)[: size.texts])) for size in SIZES}
    assert sizes["a full buffer"] == fits
    assert [name for name, size in sizes.items() if size > fits] == ["over the buffer"]


def course(*outcomes: tuple[Outcome, bool]) -> Course:
    shots = [Shot(0.1, 0.2 + at, "1 text", over, outcome) for at, (outcome, over) in enumerate(outcomes)]
    counts = dict.fromkeys(COUNTED, 1)
    return Course(shots, [Phase(name, at, at + 1.0, counts) for at, name in enumerate(("before", "killed", "before"))])


def test_a_request_counts_where_it_ended_and_phases_of_one_name_together() -> None:
    told = report.scene("fake", course(("right", False), ("lost", False), ("wrong", True)), 1, 0.1)
    before, killed = told.lines
    assert (before.within["right"], before.over["wrong"], before.counts["wretr"], before.seconds) == (1, 1, 2, 2.0)
    assert (killed.within["lost"], killed.counts["wretr"]) == (1, 1)


@pytest.mark.parametrize(
    ("bad", "count"),
    [(("lost", False), 1), (("failed", False), 1), (("refused", False), 1), (("wrong", True), 1), (("lost", True), 0)],
)
def test_what_must_not_be_is_a_fault(bad: tuple[Outcome, bool], count: int) -> None:
    assert len(report.faults([report.scene("fake", course(("right", False), bad), 1, 0.1)])) == count


def test_the_template_is_tried_as_it_is_but_for_addresses() -> None:
    template = TEMPLATE.read_text("utf-8")
    made = filled(template, (1, 2), [("a", 3), ("b", 4)], TEMPLATE)
    left = [line for line in template.splitlines() if line not in made.splitlines()]
    assert {line.split()[0] for line in left} == {"bind", "server"}
    assert [line.split()[1:3] for line in made.splitlines() if line.strip().startswith("server ")] == [
        ["a", "127.0.0.1:3"],
        ["b", "127.0.0.1:4"],
    ]
    assert f"backend {BACKEND}" in made
    assert buffer_bytes(template) == buffer_bytes(made) > 16_384


@pytest.mark.skipif(found() is None, reason="haproxy is not installed; on Debian: apt-get install haproxy")
def test_haproxy_takes_the_lines_of_the_page(tmp_path: Path) -> None:
    blocks = re.findall(r"^```haproxy\n(.*?)^```$", document.DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    config = tmp_path / "haproxy.cfg"
    large = "backend large\n    server vecgate3 127.0.0.1:9003\n"
    timeouts = "".join(f"    timeout {what} 5s\n" for what in ("client", "connect", "server"))
    config.write_text(f"defaults\n    mode http\n    option http-buffer-request\n{timeouts}{large}" + "".join(blocks))
    told = subprocess.run([found() or "", "-c", "-f", config], capture_output=True, text=True, check=False)
    assert (told.returncode, "ALERT" in told.stderr) == (0, False), told.stderr


def test_an_answer_s_bytes_are_the_encoder_s_own() -> None:
    counted = document.wire_bytes()
    assert counted["384 base64"] == 4 * 384 * 4 // 3 + 2  # quotes
    assert 2.0 < counted["1024 float"] / counted["1024 base64"] < 2.5
