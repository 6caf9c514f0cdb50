"""docs/machines.py foretells from one server what two behind a proxy were measured to do (tests/machines.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs import machines

PAIR = json.loads((Path(__file__).parent / "machines.json").read_text("utf-8"))
"""Two benches by `make test-scale`: one server that takes a fixed time a token, and two of them behind HAProxy."""
BUSY = 0.9
"""Of the most that two do: above it one more request makes a difference that no short window shows twice."""


@pytest.fixture
def one() -> machines.Machine:
    return machines.machine(PAIR["one"])


def made(*points: tuple[float, float], most: float = 100.0) -> machines.Machine:
    return machines.Machine("queries", tuple(machines.Point(*at, at[1] + 10) for at in points), most, 1700.0, 17.0)


def row(rate: float | None, requests: float, p99_ms: float = 50.0) -> dict[str, Any]:
    one = {"requests": requests, "seconds": 10.0, "tokens_per_s": requests * 1.7}
    spread = {"median": p99_ms, "low": p99_ms, "high": p99_ms + 5}
    return {"server": 0, "mix": "queries", "rate": rate, "rounds": [one, one], "p99_ms": spread}


def test_two_machines_do_what_one_foretells(one: machines.Machine) -> None:
    two = machines.machine(PAIR["two"])
    assert two.most / one.most == pytest.approx(2, rel=0.15)
    compared = [(at.p99_ms, one.p99_ms(at.rate / 2)) for at in two.points if at.rate < BUSY * 2 * one.most]
    assert len(compared) >= 3
    assert [pair for pair in compared if not 0.3 < pair[0] / pair[1] < 1.3] == []


def test_a_plan_for_twice_the_load_of_one_is_two_and_a_spare(one: machines.Machine) -> None:
    found = machines.plan(one, 2 * machines.LOAD * one.most)
    assert (found.machines, found.p99_ms <= found.without_ms) == (3, True)


def test_between_two_rates_it_is_interpolated_and_noise_is_no_gain() -> None:
    one = made((10, 20), (20, 40), (30, 30), (40, 100))
    assert [one.p99_ms(rate) for rate in (1, 10, 15, 20, 25, 30, 35, 40)] == [20, 20, 30, 40, 40, 40, 70, 100]
    assert one.p99_ms(15, worst=True) == 40


def test_a_goal_takes_more_machines_than_the_load_alone() -> None:
    one = made((10, 20), (50, 40), (90, 400))
    assert (machines.plan(one, 700).machines, machines.plan(one, 700, 40).machines) == (11, 15)
    assert machines.plan(one, 700, 40, spare=0).without_ms <= 40


def test_each_of_three_regions_carries_half() -> None:
    found = machines.plan(made((90, 50)), 700, regions=3)
    assert (found.region_rate, found.machines) == (350, 6)


def test_what_was_not_measured_is_not_told() -> None:
    one = made((10, 20), (50, 40))
    with pytest.raises(machines.Unknown, match=r"more than the 50"):
        one.p99_ms(51)
    with pytest.raises(machines.Unknown, match="no number of them"):
        machines.plan(one, 10, 19.9)


def test_a_rate_that_it_fell_behind_at_ends_the_curve() -> None:
    report = {"errors": [], "rows": [row(None, 950), row(20, 200), row(40, 399, 70), row(80, 700), row(90, 900)]}
    one = machines.machine(report)
    assert [at.rate for at in one.points] == [20, 40]
    assert (one.points[1].worst_ms, one.most, one.tokens_per_s) == (75, 95, 1615)
    assert one.tokens == pytest.approx(17)


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({"errors": ["queries x 1: 2 wrong."], "rows": []}, "had errors"),
        ({"errors": [], "rows": [row(None, 950)]}, "--rate"),
        ({"errors": [], "rows": [row(80, 700)]}, "--rate"),
    ],
)
def test_a_bench_that_does_not_say_is_refused(report: dict[str, Any], why: str) -> None:
    with pytest.raises(machines.Unknown, match=why):
        machines.machine(report)


def test_the_arithmetic_of_tokens() -> None:
    assert machines.machines_by_tokens(1e9, 200, 330e3) == 32
    assert machines.machines_by_tokens(1e6, 200, 7e3) == 3
    assert machines.machines_by_tokens(1e9, 200, 330e3, regions=3) == 51


def test_the_command_prints_machines_and_p99(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(PAIR["one"]))
    assert machines.main([str(path), "--a-day", "1e6", "--goal-ms", "1000"]) == 0
    told = capsys.readouterr().out
    assert "wanted: 34.7 requests/s" in told
    assert "expected p99: " in told
    assert machines.main([str(path), "--rate", "100", "--goal-ms", "0.1"]) == 1
    assert "no number of them" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "why"), [(None, "can't be read"), ("[]", "is not what"), ("{", "can't be read")])
def test_a_file_that_is_no_bench_is_named(
    content: str | None, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    (path if content else tmp_path / "another").write_text(content or "")
    assert machines.main([str(path), "--rate", "1"]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--rate", "1", "--load", "70"], ["--rate", "1", "--regions", "0"]])
def test_a_number_that_makes_no_sense_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        machines.main(["bench.json", *wrong])
