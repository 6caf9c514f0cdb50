import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest

from tests.bench.stub import Stub, embeddings, row
from vecgate.bench import machine, plan, run
from vecgate.bench.raw import Pass
from vecgate.bench.result import Ceiling, Floor, Raw, Report
from vecgate.bench.run import Bench, Options
from vecgate.errors import CommandError

SHORT = Options(mixes=("queries",), concurrency=(2,), seconds=0.05, warm_s=0.01, rounds=2, timeout_s=20.0)
RAW = Raw("m", "torch", "cpu", "float32", 2048, 0.5, 1000, 100.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def floor() -> Floor:
        return Floor(0.1, 0.05)

    monkeypatch.setattr(machine, "floor", floor)
    monkeypatch.setattr(plan, "POOL_TEXTS", 64)
    monkeypatch.setattr(run, "BUSY_CLIENT", 9.0)  # the servers of these tests run in the client's process


def bench(*stubs: Stub, steps: list[str] | None = None, **changes: Any) -> Report:
    told: list[str] = [] if steps is None else steps
    options = replace(SHORT, urls=tuple(stub.url for stub in stubs), **changes)
    return asyncio.run(Bench(options, lambda what, _: told.append(what)).run())


def test_every_load_has_its_rounds_and_no_complaint() -> None:
    with Stub() as stub:
        report = bench(stub, mixes=("queries", "batch", "rerank"), concurrency=(1, 3))
    assert [(one.mix, one.concurrency) for one in report.rows] == [
        (mix, clients) for mix in ("queries", "batch", "rerank") for clients in (1, 3)
    ]
    assert {len(one.rounds) for one in report.rows} == {2}
    assert all(one.texts_per_s and one.texts_per_s.low > 0 for one in report.rows)
    assert report.errors == []
    assert report.rows[0].rounds[0].stages_ms.keys() == {"queue", "forward", "rest"}
    assert (report.servers[0].version, report.servers[0].model, report.servers[0].dtype) == ("9.9", "m", "float32")
    assert {body.get("model") for _, body in stub.asked} == {"m"}


def test_two_servers_take_turns_and_are_compared_round_by_round() -> None:
    steps: list[str] = []
    with Stub() as first, Stub() as second:
        report = bench(first, second, steps=steps, rounds=3)
    assert [step[-1] for step in steps] == ["1", "2", "2", "1", "1", "2"]
    (ratio,) = report.ratios
    assert len(ratio.texts_per_s_rounds) == len(ratio.p50_rounds) == 3
    assert ratio.texts_per_s is not None
    expected = [a.texts_per_s / b.texts_per_s for a, b in zip(report.rows[0].rounds, report.rows[1].rounds)]
    assert ratio.texts_per_s_rounds == expected
    assert ratio.texts_per_s.low == min(expected)


def test_random_arrivals_are_a_load_of_their_own() -> None:
    with Stub() as stub:
        report = bench(stub, concurrency=(), rates=(100.0,))
    (found,) = report.rows
    assert (found.concurrency, found.rate) == (None, 100.0)
    assert found.rounds[0].late_ms is not None


def swapped(_path: str, body: Any, answer: Any) -> Any:
    if "input" in body and len(body["input"]) == 32:
        rows = answer["data"]
        rows[0]["embedding"], rows[1]["embedding"] = rows[1]["embedding"], rows[0]["embedding"]
    return answer


def not_a_number(_path: str, body: Any, answer: Any) -> Any:
    if len(body["input"]) != 32:
        return answer
    return embeddings(body["input"], [np.full(16, np.nan, np.float32)] * 32)


def too_few(_path: str, body: Any, answer: Any) -> Any:
    return answer if len(body["input"]) != 32 else {"data": answer["data"][:-1]}


def all_the_same(_path: str, body: Any, answer: Any) -> Any:
    return answer if len(body["input"]) != 32 else embeddings(body["input"], [row("cached")] * 32)


def busy(_path: str, body: Any, answer: Any) -> Any:
    return answer if len(body["input"]) != 32 else 429


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (swapped, "wrong: order"),
        (not_a_number, "wrong: not finite"),
        (too_few, "wrong: count"),
        (all_the_same, "wrong: order"),
        (busy, "429"),
    ],
)
def test_wrong_answers_and_failures_make_the_figures_useless(spoil: Any, kind: str) -> None:
    with Stub(spoil) as stub:
        report = bench(stub, mixes=("batch",), concurrency=(1,), rounds=1)
    assert set(report.rows[0].rounds[0].errors) == {kind}
    assert report.rows[0].rounds[0].texts_per_s == 0
    assert len(report.errors) == 1
    assert kind in report.errors[0]


def test_a_server_that_is_wrong_about_one_text_is_not_measured() -> None:
    long = Stub(lambda _path, body, _answer: embeddings([body["input"]], [2 * row("x")]))
    with long as stub, pytest.raises(CommandError, match="wrongly \\(norm\\)"):
        bench(stub)


def test_rerank_is_found_on_the_path_that_the_server_has() -> None:
    with Stub(rerank="/rerank") as stub:
        report = bench(stub, mixes=("rerank",), rounds=1)
    assert report.errors == []
    assert [path for path, _ in groupby(path for path, _ in stub.asked)] == ["/v1/rerank", "/v2/rerank", "/rerank"]


def test_what_is_missing_is_told_with_the_servers_words() -> None:
    refused = pytest.raises(CommandError, match=r"does not rerank: /v1/rerank answered 404: .*no")
    with Stub(rerank="/elsewhere") as stub, refused:
        bench(stub, mixes=("rerank",))
    with pytest.raises(CommandError, match=r"Nothing answers at .* \(refused\)"):
        bench(stub)


def test_names_and_keys_are_sent_as_given() -> None:
    with Stub() as stub:
        bench(stub, rounds=1, names={"embed": "other"}, key="k")
    assert {body["model"] for _, body in stub.asked} == {"other"}
    assert stub.keys == {"Bearer k"}


def test_a_bulk_is_measured_alone_and_beside_queries() -> None:
    steps: list[str] = []
    with Stub() as stub:
        report = bench(stub, steps=steps, mixes=(), bulk_texts=96, bulk_calls=(16, 32))
    assert [(one.texts, one.texts_a_call) for one in report.bulk] == [(96, 16), (96, 32)]
    assert steps[:3] == [f"bulk x 16: {what}, server 1" for what in ("queries alone", "bulk alone", "both")]
    assert steps[3] == "bulk x 16: both, server 1"
    found = report.bulk[0]
    assert found.rate_kept is not None
    first = found.rounds[0]
    assert found.rate_kept.high >= first.bulk_beside.texts_per_s / first.bulk_alone.texts_per_s >= found.rate_kept.low
    assert first.bulk_alone.requests == pytest.approx(6.0)
    assert first.bulk_beside.requests == pytest.approx(6.0)
    assert report.errors == []


def test_a_sweep_measures_each_value(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, tuple[int, ...]] = dict.fromkeys(run.SWEEPS, (1, 2))
    monkeypatch.setattr(run, "SWEEPS", values)
    with Stub() as stub:
        report = bench(stub, mixes=(), rounds=1, sweeps=tuple(values))
    assert [(one.what, one.values, len(one.rows)) for one in report.sweeps] == [(what, [1, 2], 2) for what in values]
    sizes = {one.what: [row.texts_a_request for row in one.rows] for one in report.sweeps}
    assert sizes == {"batch": [1, 2], "length": [1, 1], "concurrency": [1, 1], "documents": [1, 2]}
    assert [row.concurrency for row in report.sweeps[2].rows] == [1, 2]
    assert report.errors == []


class Passing:
    """In place of the model's process."""

    card = RAW

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, ...]]] = []

    async def run(self, calls: list[tuple[str, ...]]) -> Pass:
        self.calls.append(calls)
        texts = sum(map(len, calls))
        return Pass(texts, 10 * texts, 0.1, 0.5, 1e6, 0.002)


def raw_bench(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, flops_per_s: list[float], clients: int = 2
) -> tuple[Report, Passing]:
    passing = Passing()

    @asynccontextmanager
    async def offline(_settings: bytes) -> Any:
        yield passing

    async def ceiling(_raw: Raw) -> Ceiling:
        return Ceiling("torch", "2", "cpu", "float32", 2, flops_per_s.pop(0), 1e9)

    monkeypatch.setattr(run, "offline", offline)
    monkeypatch.setattr(machine, "ceiling", ceiling)
    return bench(stub, raw=b"{}", concurrency=(clients,)), passing


def test_the_same_texts_go_through_the_model_and_the_higher_ceiling_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub() as stub:
        report, passing = raw_bench(stub, monkeypatch, [1e9, 1e12])
    served = {body["input"] for _, body in stub.asked}
    assert [len(calls) for calls in passing.calls] == [1, 1]
    assert all(set(texts) <= served for (texts,) in passing.calls)
    (found,) = report.rows
    first = found.rounds[0]
    assert first.raw_texts_per_s == len(passing.calls[0][0]) / 0.5
    assert found.p50_to_raw is None
    assert first.raw_flops_per_s == 2e6
    assert found.served_to_raw is not None
    assert report.ceiling is not None
    assert report.ceiling.flops_per_s == 1e12
    assert found.ceiling_share is not None
    assert found.ceiling_share.high < 1
    assert report.errors == []


def test_one_client_is_held_against_one_call_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub() as stub:
        report, passing = raw_bench(stub, monkeypatch, [1e12, 1e12], clients=1)
    assert all(len(calls) > 1 and {len(texts) for texts in calls} == {1} for calls in passing.calls)
    (found,) = report.rows
    assert found.rounds[0].raw_p50_ms == 2.0
    assert found.p50_to_raw is not None
    assert found.p50_to_raw.high == max(one.p50_ms or 0.0 for one in found.rounds) / 2.0


def test_models_are_found_by_what_they_are_for() -> None:
    cards = [{"id": "r", "capabilities": ["rerank"]}, {"id": "e", "capabilities": ["embed"]}]
    for told in (cards, [{"id": "r", "task": "rerank"}, {"id": "e", "task": "embed"}]):
        with Stub(cards=told) as stub:
            bench(stub, mixes=("queries", "rerank"), rounds=1)
        assert {(path, body["model"]) for path, body in stub.asked} == {("/v1/embeddings", "e"), ("/v1/rerank", "r")}


def test_a_figure_above_the_ceiling_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub() as stub:
        report, _ = raw_bench(stub, monkeypatch, [1e3, 1e3])
    assert any("the forward did 0 GFLOP/s, above the ceiling" in one for one in report.errors)


def test_a_client_that_is_busy_itself_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUSY_CLIENT", 0.0)
    with Stub() as stub:
        report = bench(stub, rounds=1)
    assert "may be what limits" in report.errors[0]
