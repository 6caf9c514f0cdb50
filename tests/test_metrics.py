"""metrics.py: known calls move each series by exactly what they should, and nothing else moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vecgate import metrics
from vecgate.core import BatchReport, Call, Memory, ModelCard, Queue, Record, Status
from vecgate.metrics import Metrics

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

CARD = ModelCard(
    name="minilm",
    aliases=(),
    task="embed",
    family="bert",
    state="ready",
    max_tokens=256,
    pooling=("mean",),
    normalize=True,
    prompts={},
    default_prompt=None,
    created=0,
    weight_bytes=0,
    backend="torch",
    device="cpu",
    dtype="float32",
    batch_tokens=2048,
    batch_tokens_now=512,
)
IDLE = Status("ready", (), Queue(0, 0, None), alive=True, busy_s=None, uptime_s=0.0)


def series(found: Metrics, status: Status = IDLE, **now: int) -> Series:
    """Every sample but histogram buckets and what the process itself moves."""
    media_type, text = found.expose(status, "", **now)
    assert media_type.startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket") and not sample.name.startswith("process_")
    }


def moved(before: Series, after: Series) -> dict[str, Any]:
    """`name{label=value,...}` -> by how much, of the series that moved; a new one moved from 0."""

    def changes() -> Iterator[tuple[str, Any]]:
        for (name, labels), value in after.items():
            by = value - before.get((name, labels), 0.0)
            if by != 0:
                shown = ",".join(f"{label}={told}" for label, told in sorted(labels))
                yield (f"{name}{{{shown}}}" if shown else name), pytest.approx(by)

    return dict(changes())


def record(route: str | None = "/v1/embeddings") -> Record:
    return Record(
        Call("id"),
        route=route,
        model="minilm",
        inputs=3,
        tokens=20,
        truncated=1,
        queue_s=0.5,
        tokenize_s=0.25,
        forward_s=0.125,
        encode_s=0.0625,
    )


def test_a_request_is_counted() -> None:
    found = Metrics("1")
    before = series(found)
    found.on_request("POST", 200, 1.5, record())
    found.on_request("POST", 200, 0.5, record())
    assert moved(before, series(found)) == {
        "vecgate_requests_total{method=POST,route=/v1/embeddings,status=200}": 2,
        "vecgate_request_seconds_count{route=/v1/embeddings}": 2,
        "vecgate_request_seconds_sum{route=/v1/embeddings}": 2.0,
        "vecgate_inputs_total{model=minilm}": 6,
        "vecgate_truncated_inputs_total{model=minilm}": 2,
        "vecgate_tokenize_seconds_count": 2,
        "vecgate_tokenize_seconds_sum": 0.5,
        "vecgate_encode_seconds_count": 2,
        "vecgate_encode_seconds_sum": 0.125,
    }


def test_a_refused_request_is_counted_under_labels_that_no_client_chooses() -> None:
    found = Metrics("1")
    before = series(found)
    found.on_request("BREW", 405, 0.25, Record(Call("id")))
    assert moved(before, series(found)) == {
        "vecgate_requests_total{method=other,route=other,status=405}": 1,
        "vecgate_request_seconds_count{route=other}": 1,
        "vecgate_request_seconds_sum{route=other}": 0.25,
    }


def test_a_batch_is_counted() -> None:
    found = Metrics("1")
    before = series(found)
    found.on_batch(
        BatchReport(
            model="minilm",
            rows=3,
            tokens=100,
            padded_tokens=150,
            forward_s=0.5,
            queue_s=(0.25, 0.5, 0.75),
            failed_rows=2,
            nonfinite_rows=1,
            dropped_rows=4,
        )
    )
    assert moved(before, series(found)) == {
        "vecgate_batch_rows_count{model=minilm}": 1,
        "vecgate_batch_rows_sum{model=minilm}": 3,
        "vecgate_batch_tokens_count{model=minilm}": 1,
        "vecgate_batch_tokens_sum{model=minilm}": 100,
        "vecgate_tokens_total{model=minilm}": 100,
        "vecgate_padded_tokens_total{model=minilm}": 150,
        "vecgate_padding_ratio{model=minilm}": 1.5,
        "vecgate_forward_seconds_count{model=minilm}": 1,
        "vecgate_forward_seconds_sum{model=minilm}": 0.5,
        "vecgate_queue_seconds_count{model=minilm}": 3,
        "vecgate_queue_seconds_sum{model=minilm}": 1.5,
        "vecgate_failed_rows_total{model=minilm}": 2,
        "vecgate_nonfinite_rows_total{model=minilm}": 1,
        "vecgate_dropped_rows_total{model=minilm}": 4,
    }


def test_rows_dropped_before_a_batch_make_no_batch() -> None:
    found = Metrics("1")
    found.on_batch(BatchReport("minilm", 2, 10, 10, 0.5, (0.0, 0.0)))
    before = series(found)
    found.on_batch(BatchReport("minilm", 0, 0, 0, 0.0, (), dropped_rows=5))
    assert moved(before, series(found)) == {"vecgate_dropped_rows_total{model=minilm}": 5}


def test_the_padding_ratio_is_over_all_batches() -> None:
    found = Metrics("1")
    for tokens, padded in ((100, 200), (300, 400)):
        found.on_batch(BatchReport("minilm", 1, tokens, padded, 0.5, (0.0,)))
    assert series(found)["vecgate_padding_ratio", frozenset({("model", "minilm")})] == 1.5


def test_what_is_shed_is_counted_by_reason() -> None:
    found = Metrics("1")
    before = series(found)
    found.on_shed("in_flight")
    found.on_shed("in_flight")
    found.on_shed("draining")
    assert moved(before, series(found)) == {
        "vecgate_shed_total{reason=in_flight}": 2,
        "vecgate_shed_total{reason=draining}": 1,
    }


def test_the_gauges_follow_the_status() -> None:
    found = Metrics("1")
    before = series(found)
    busy = Status(
        "ready",
        (CARD,),
        Queue(7, 900, 1200.0),
        alive=True,
        busy_s=0.5,
        uptime_s=60.0,
        memory=Memory(active_bytes=10, cache_bytes=20, limit_bytes=30),
    )
    assert moved(before, series(found, busy, in_flight=3, body_bytes=400)) == {
        "vecgate_queue_items": 7,
        "vecgate_queue_tokens": 900,
        "vecgate_tokens_per_second": 1200,
        "vecgate_backlog_seconds": 0.75,
        "vecgate_device_busy_seconds": 0.5,
        "vecgate_uptime_seconds": 60,
        "vecgate_device_memory_bytes{kind=active}": 10,
        "vecgate_device_memory_bytes{kind=cache}": 20,
        "vecgate_device_memory_bytes{kind=limit}": 30,
        "vecgate_model_state{model=minilm,state=ready,task=embed}": 1,
        "vecgate_model_info{backend=torch,device=cpu,dtype=float32,model=minilm,task=embed}": 1,
        "vecgate_batch_limit_tokens{kind=configured,model=minilm}": 2048,
        "vecgate_batch_limit_tokens{kind=now,model=minilm}": 512,
        "vecgate_requests_in_flight": 3,
        "vecgate_body_bytes": 400,
    }
    assert series(found) == before


def test_a_state_is_one_of_all() -> None:
    found = Metrics("1")
    ready = series(found, IDLE)
    dead = Status("failed", (), Queue(0, 0, None), alive=False, busy_s=None, uptime_s=0.0, error="x")
    assert moved(ready, series(found, dead)) == {
        "vecgate_state{state=ready}": -1,
        "vecgate_state{state=failed}": 1,
        "vecgate_device_alive": -1,
    }


def test_a_model_that_is_gone_leaves_no_series() -> None:
    found = Metrics("1")
    with_model = Status("ready", (CARD,), Queue(0, 0, None), alive=True, busy_s=None, uptime_s=0.0)
    assert any("model" in dict(labels) for _, labels in series(found, with_model))
    assert not any("model" in dict(labels) for _, labels in series(found))


def test_the_process_and_the_build_are_told() -> None:
    text = Metrics("1.2.3").expose(IDLE)[1].decode()
    samples = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    assert samples["process_resident_memory_bytes"].value > 2**20
    assert samples["process_cpu_seconds_total"].value > 0
    assert samples["vecgate_memory_footprint_bytes"].value > 2**20
    assert samples["vecgate_memory_footprint_peak_bytes"].value >= samples["vecgate_memory_footprint_bytes"].value
    assert samples["process_start_time_seconds"].value > 1e9
    assert samples["vecgate_build_info"].labels["version"] == "1.2.3"


def test_lost_lines_are_counted_once() -> None:
    found = Metrics("1")
    before = series(found)
    for lost in (2, 2, 5):
        found.expose(IDLE, lost_lines=lost)
    assert moved(before, series(found, lost_lines=5)) == {"vecgate_log_lines_lost_total": 5}


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics("1"), Metrics("1")
    first.on_shed("in_flight")
    assert moved(series(second), series(first)) == {"vecgate_shed_total{reason=in_flight}": 1}


def test_the_buckets_ascend_and_cover_the_longest_request() -> None:
    for buckets in (metrics.SECONDS, metrics.ROWS, metrics.TOKENS):
        assert list(buckets) == sorted(set(buckets))
    assert metrics.SECONDS[-1] == 300
    assert all(math.isfinite(bucket) for bucket in metrics.SECONDS)


def test_totals_are_the_collectors_own_sums() -> None:
    found = Metrics("1")
    work, quiet = {"/v1/embeddings", "/"}, {"/", "/health"}
    found.on_request("POST", 200, 0.004, record())
    found.on_request("POST", 429, 0.03, record())
    found.on_request("POST", 200, 9.0, Record(Call("id"), route="/"))
    found.on_request("GET", 200, 0.001, Record(Call("id"), route="/"))
    found.on_request("GET", 503, 0.001, Record(Call("id"), route="/health"))
    found.on_request("GET", 404, 0.001, Record(Call("id")))
    found.on_batch(BatchReport("minilm", 3, 20, 32, 0.25, (0.5, 0.25, 0.25)))
    found.on_batch(BatchReport("other", 1, 5, 5, 0.5, (0.0,)))
    found.on_shed("queue")
    totals = found.totals(work, quiet)
    assert (totals.requests, totals.inputs, totals.truncated) == (3, 6, 2)
    assert (totals.tokens, totals.padded_tokens, totals.batches, totals.rows, totals.waited) == (25, 37, 2, 4, 4)
    assert (totals.forward_s, totals.queue_s) == (0.75, 1.0)
    assert (totals.errors, totals.shed) == ({"429": 1, "404": 1}, {"queue": 1})
    assert totals.bounds_s == metrics.SECONDS
    assert totals.buckets == tuple((bound >= 0.004) + (bound >= 0.03) for bound in (*metrics.SECONDS, math.inf))
