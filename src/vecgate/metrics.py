"""The Prometheus metrics: hooks for guard and engine that only count, and the text of /metrics (only door to
prometheus_client).

No label comes from a request: routes are templates, models are the served ones' true names, methods are a fixed set.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, get_args

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from vecgate.core import BatchReport, ModelState, Queue, Record, State, Status
from vecgate.footprint import footprint

OPENMETRICS = "application/openmetrics-text"

METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
OTHER = "other"
"""The method of a label no method stands for, and the route of a path that has none."""

STATES: tuple[State, ...] = get_args(State)
MODEL_STATES: tuple[ModelState, ...] = get_args(ModelState)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True)
class Totals:
    """What has been counted since the start, over all models, for who takes differences.

    errors: answers of 400 and more by status, 499 of clients that left. shed: by reason. buckets: requests that took up
    to each of bounds_s, and all of them last. queue_s: waited by the `waited` rows together.
    """

    requests: int
    inputs: int
    truncated: int
    tokens: int
    padded_tokens: int
    batches: int
    rows: int
    waited: int
    forward_s: float
    queue_s: float
    errors: dict[str, int]
    shed: dict[str, int]
    buckets: tuple[int, ...]
    bounds_s: tuple[float, ...] = SECONDS


class Process(Collector):
    """This process under the names dashboards know; prometheus_client's own collector reads /proc, so only on Linux."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        held = footprint()
        with self._process.oneshot():
            times, resident = self._process.cpu_times(), self._process.memory_info().rss
            started = self._process.create_time()
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.", resident)
        yield GaugeMetricFamily("process_start_time_seconds", "Start, in Unix time.", started)
        yield CounterMetricFamily("process_cpu_seconds", "Processor time, user and system.", times.user + times.system)
        yield GaugeMetricFamily(
            "vecgate_memory_footprint_bytes",
            "The process's memory as the system counts it: on macOS with what the GPU holds, on Linux with what is swapped.",
            held.now_bytes,
        )
        yield GaugeMetricFamily(
            "vecgate_memory_footprint_peak_bytes", "The most of it since the process began.", held.peak_bytes
        )


class Metrics:
    """Collectors in a registry of their own. Hooks may be called on any thread, `expose` on one at a time."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter and histogram that nobody reads
        self.registry = CollectorRegistry()
        self.labels: dict[str, tuple[str, ...]] = {}
        self._totals: dict[str, tuple[int, int]] = {}
        self._lost_lines = 0
        self._start(version)
        self._requests()
        self._batches()
        self._states()

    def on_request(self, method: str, status: int, seconds: float, record: Record) -> None:
        """One answered or refused request; status 499: its client left."""
        route = record.route or OTHER
        self.requests.labels(route, method if method in METHODS else OTHER, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if record.model is not None:
            self.tokenize_seconds.observe(record.tokenize_s)
            self.encode_seconds.observe(record.encode_s)
            self.inputs.labels(record.model).inc(record.inputs)
            self.truncated_inputs.labels(record.model).inc(record.truncated)

    def on_batch(self, report: BatchReport) -> None:
        """One forward of the device, or (no rows) what was dropped before one."""
        model = report.model
        if report.rows:
            self._on_forward(report)
        waited = self.queue_seconds.labels(model)
        for seconds in report.queue_s:
            waited.observe(seconds)
        self.failed_rows.labels(model).inc(report.failed_rows)
        self.nonfinite_rows.labels(model).inc(report.nonfinite_rows)
        self.dropped_rows.labels(model).inc(report.dropped_rows)

    def _on_forward(self, report: BatchReport) -> None:
        model = report.model
        self.batch_rows.labels(model).observe(report.rows)
        self.batch_tokens.labels(model).observe(report.tokens)
        self.forward_seconds.labels(model).observe(report.forward_s)
        self.tokens.labels(model).inc(report.tokens)
        self.padded_tokens.labels(model).inc(report.padded_tokens)
        tokens, padded = self._totals.get(model, (0, 0))
        tokens, padded = self._totals[model] = tokens + report.tokens, padded + report.padded_tokens
        self.padding_ratio.labels(model).set(padded / max(tokens, 1))

    def on_shed(self, reason: str) -> None:
        """One request refused for lack of room; `reason` is one of the callers' own few words."""
        self.shed.labels(reason).inc()

    def expose(
        self, status: Status, accept: str = "", *, in_flight: int = 0, body_bytes: int = 0, lost_lines: int = 0
    ) -> tuple[str, bytes]:
        """Media type and text, with the gauges as they are at this moment; OpenMetrics where the Accept header names it.

        lost_lines: of the log, since the start.
        """
        self.in_flight.set(in_flight)
        self.body_bytes.set(body_bytes)
        self.lost_lines.inc(max(0, lost_lines - self._lost_lines))
        self._lost_lines = max(lost_lines, self._lost_lines)
        self._read_engine(status)
        self._read_models(status)
        if OPENMETRICS in accept.lower():
            text = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
            return openmetrics.CONTENT_TYPE_LATEST, text
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def totals(self, work: Collection[str], quiet: Collection[str]) -> Totals:
        """The collectors' own sums. work: the routes whose POSTs count; quiet: those whose errors do not, nor their times,
        which are not told apart by method."""
        requests = 0
        errors: Tally[str] = Tally()
        buckets: Tally[float] = Tally()
        for labels, count in _samples(self.requests, "_total"):
            requests += int(count) if labels["method"] == "POST" and labels["route"] in work else 0
            if int(labels["status"]) >= 400 and labels["route"] not in quiet:
                errors[labels["status"]] += int(count)
        for labels, count in _samples(self.request_seconds, "_bucket"):
            if labels["route"] in work and labels["route"] not in quiet:
                buckets[float(labels["le"])] += int(count)
        return Totals(
            requests=requests,
            inputs=int(_sum(self.inputs, "_total")),
            truncated=int(_sum(self.truncated_inputs, "_total")),
            tokens=int(_sum(self.tokens, "_total")),
            padded_tokens=int(_sum(self.padded_tokens, "_total")),
            batches=int(_sum(self.batch_rows, "_count")),
            rows=int(_sum(self.batch_rows, "_sum")),
            waited=int(_sum(self.queue_seconds, "_count")),
            forward_s=_sum(self.forward_seconds, "_sum"),
            queue_s=_sum(self.queue_seconds, "_sum"),
            errors=dict(errors),
            shed={labels["reason"]: int(count) for labels, count in _samples(self.shed, "_total")},
            buckets=tuple(buckets[bound] for bound in (*SECONDS, float("inf"))),
        )

    def _read_engine(self, status: Status) -> None:
        for state in STATES:
            self.state.labels(state).set(status.state == state)
        self.queue_items.set(status.queue.items)
        self.queue_tokens.set(status.queue.tokens)
        self.tokens_per_s.set(status.queue.tokens_per_s or 0.0)
        self.backlog_seconds.set(_backlog_s(status.queue))
        self.device_alive.set(status.alive)
        self.device_busy_seconds.set(status.busy_s or 0.0)
        self.uptime_seconds.set(status.uptime_s)
        self.device_memory.clear()
        if status.memory is not None:
            self.device_memory.labels("active").set(status.memory.active_bytes)
            self.device_memory.labels("cache").set(status.memory.cache_bytes)
            if status.memory.limit_bytes is not None:
                self.device_memory.labels("limit").set(status.memory.limit_bytes)

    def _read_models(self, status: Status) -> None:
        self.model_state.clear()
        self.model_info.clear()
        self.batch_limit_tokens.clear()
        for card in status.models:
            for each in MODEL_STATES:
                self.model_state.labels(card.name, card.task, each).set(card.state == each)
            for kind, tokens in (
                ("configured", card.batch_tokens),
                ("now", card.batch_tokens_now or card.batch_tokens),
            ):
                self.batch_limit_tokens.labels(card.name, kind).set(tokens or 0)
            self.model_info.labels(card.name, card.task, card.backend or "", card.device or "", card.dtype or "").set(1)

    def _start(self, version: str) -> None:
        python = platform.python_version()
        self._gauge("build_info", "What runs here.", "version", "python").labels(version, python).set(1)
        self.uptime_seconds = self._gauge("uptime_seconds", "Since the engine was made.")
        self.lost_lines = self._counter("log_lines_lost", "Lines of the log nobody took: a full disk, a stuck reader.")
        self.registry.register(Process())

    def _requests(self) -> None:
        self.requests = self._counter("requests", "Requests ended.", "route", "method", "status")
        self.request_seconds = self._histogram("request_seconds", "From head to last byte.", SECONDS, "route")
        self.in_flight = self._gauge("requests_in_flight", "Requests admitted and not yet ended.")
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies held.")
        self.shed = self._counter("shed", "Requests refused for lack of room.", "reason")
        self.inputs = self._counter("inputs", "Texts and pairs answered.", "model")
        self.truncated_inputs = self._counter("truncated_inputs", "Inputs cut to the model's limit.", "model")
        self.tokenize_seconds = self._histogram("tokenize_seconds", "Tokenising, per request.", SECONDS)
        self.encode_seconds = self._histogram("encode_seconds", "From rows to the answer's bytes.", SECONDS)

    def _batches(self) -> None:
        self.queue_seconds = self._histogram("queue_seconds", "Waiting for the device, per row.", SECONDS, "model")
        self.forward_seconds = self._histogram("forward_seconds", "On the device, per batch.", SECONDS, "model")
        self.batch_rows = self._histogram("batch_rows", "Rows of a batch.", ROWS, "model")
        self.batch_tokens = self._histogram("batch_tokens", "Tokens of a batch, without padding.", TOKENS, "model")
        self.tokens = self._counter("tokens", "Tokens computed, without padding.", "model")
        self.padded_tokens = self._counter("padded_tokens", "Tokens computed, padding included.", "model")
        self.padding_ratio = self._gauge("padding_ratio", "Padded tokens over tokens since the start.", "model")
        self.failed_rows = self._counter("failed_rows", "Rows the device gave no answer for.", "model")
        self.nonfinite_rows = self._counter(
            "nonfinite_rows", "Rows that held NaN or infinity, or had no norm.", "model"
        )
        self.dropped_rows = self._counter("dropped_rows", "Rows not computed, as their client had left.", "model")

    def _states(self) -> None:
        self.state = self._gauge("state", "1 for the server's state.", "state")
        self.model_state = self._gauge("model_state", "1 for each model's state.", "model", "task", "state")
        self.model_info = self._gauge("model_info", "The served models.", "model", "task", "backend", "device", "dtype")
        self.batch_limit_tokens = self._gauge(
            "batch_limit_tokens",
            "Most tokens of a batch: as set or found, and now, which is less while budgets are tried and for a while after the "
            "device had no room.",
            "model",
            "kind",
        )
        self.queue_items = self._gauge("queue_items", "Rows waiting for the device.")
        self.queue_tokens = self._gauge("queue_tokens", "Tokens waiting for the device.")
        self.tokens_per_s = self._gauge("tokens_per_second", "The device's measured rate; 0 before the first batch.")
        self.backlog_seconds = self._gauge("backlog_seconds", "How long what waits will take at the measured rate.")
        self.device_alive = self._gauge("device_alive", "1 while the device thread answers.")
        self.device_busy_seconds = self._gauge("device_busy_seconds", "How long the current batch has run; 0 if idle.")
        self.device_memory = self._gauge(
            "device_memory_bytes", "Held by arrays, kept for reuse, and the bound.", "kind"
        )

    def _named(self, name: str, labels: tuple[str, ...]) -> str:
        self.labels[f"vecgate_{name}"] = labels
        return f"vecgate_{name}"

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return _remembering(Counter(self._named(name, labels), told, labels, registry=self.registry))

    def _gauge(self, name: str, told: str, *labels: str) -> Gauge:
        return Gauge(self._named(name, labels), told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return _remembering(Histogram(self._named(name, labels), told, labels, buckets=buckets, registry=self.registry))


Family = TypeVar("Family", Counter, Histogram)


def _remembering(family: Family) -> Family:
    """It, with each child found at once: its own look, under a lock, is a tenth of what a request costs in Python. For
    what is never cleared, as its labels are few."""
    family.labels = cache(family.labels)  # type: ignore[method-assign]
    return family


def _samples(collector: Collector, suffix: str) -> Iterator[tuple[dict[str, str], float]]:
    """Labels and value of the collector's samples of that kind."""
    for family in collector.collect():
        for sample in family.samples:
            if sample.name == family.name + suffix:
                yield sample.labels, sample.value


def _sum(collector: Collector, suffix: str) -> float:
    return sum(value for _, value in _samples(collector, suffix))


def _backlog_s(queue: Queue) -> float:
    return queue.wait_s or (queue.tokens / queue.tokens_per_s if queue.tokens_per_s else 0.0)


def table() -> str:
    """Every metric, with what it means, as the Markdown table of docs/operations.md."""
    found, rows = Metrics(""), ["| Metric | Kind | Labels | What it says |", "|---|---|---|---|"]
    for family in sorted(found.registry.collect(), key=lambda family: family.name):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in found.labels.get(family.name, ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)
