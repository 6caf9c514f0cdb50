"""Traces of requests, where OpenTelemetry's standard variables ask for them (only door to opentelemetry).

Its SDK reads its own OTEL_* variables out of the environment: where spans go, with what headers, which are sampled, what
the service is called. Here is only decided, from the variables that the caller hands over, whether it is loaded at all. A
span says what the log line says: never a text, a key or a path, only the path's template.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from vecgate.core import Record, Task
from vecgate.errors import ConfigError
from vecgate.metrics import METHODS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
INSTALL = "pip install 'vecgate[otel]'"
OPERATIONS: dict[Task, str] = {"embed": "embeddings", "rerank": "rerank"}
"""gen_ai.operation.name by what the model is for; OpenTelemetry names no operation for a reranker yet."""
LEFT = 499
"""The status of a request whose client left; see flight.py."""


def asked_by(environ: Mapping[str, str]) -> str | None:
    """The variable that asks for traces, if one does."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in _exporters(environ):
        return None
    return next((name for name in (EXPORTER, *ENDPOINTS) if environ.get(name, "").strip()), None)


def traces(environ: Mapping[str, str], version: str) -> Traces | None:
    """What the variables ask for; None, with nothing imported, where they ask for nothing. Raises ConfigError."""
    name = asked_by(environ)
    if name is None:
        return None
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(f"{name} asks for traces, which need packages that are not installed: {INSTALL}.") from None
    return Traces(version, [BatchSpanProcessor(_exporter(kind, environ)) for kind in _exporters(environ)])


def _exporters(environ: Mapping[str, str]) -> list[str]:
    return [name.strip().lower() for name in environ.get(EXPORTER, "").split(",") if name.strip()] or ["otlp"]


def _exporter(kind: str, environ: Mapping[str, str]) -> Any:
    """One of the exporters that are installed, by the name that its package gives it."""
    name = kind
    if kind == "otlp":
        protocol = next((environ[name] for name in PROTOCOLS if environ.get(name, "").strip()), "http/protobuf")
        name = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()()
    raise ConfigError(f"{EXPORTER} asks for {name[:60]!a}, which is not installed: {INSTALL} brings otlp_proto_http.")


class Traces:
    """One server span a request, made when the request has ended, and one within it for each part that took time."""

    def __init__(self, version: str, processors: Iterable[SpanProcessor]) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        ours = Resource.create({"service.name": "vecgate", "service.version": version})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vecgate", version)
        self._extract, self._trace = propagate.extract, trace

    def on_request(
        self,
        tasks: Mapping[str, Task],
        method: str,
        status: int,
        seconds: float,
        record: Record,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> str:
        """The id of the trace that the request is of. tasks: what the models are for. headers: those that came."""
        trace = self._trace
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        ended_ns = time.time_ns()
        begun_ns = ended_ns - int(seconds * 1e9)
        known = method if method in METHODS else "HTTP"
        span = self._tracer.start_span(
            f"{known} {record.route}" if record.route else known,
            self._extract(carrier),
            trace.SpanKind.SERVER,
            dict(_attributes(tasks, method, status, record)),
            start_time=begun_ns,
        )
        if span.is_recording():
            self._parts(trace.set_span_in_context(span), begun_ns, ended_ns, record)
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended_ns)
        return str(trace.format_trace_id(span.get_span_context().trace_id))

    def _parts(self, within: Any, begun_ns: int, ended_ns: int, record: Record) -> None:
        """Their lengths are measured, their places are not: they are laid end to end before the request's end."""
        if record.model is None:
            return
        parts = ("tokenize", record.tokenize_s), ("queue", record.queue_s), ("forward", record.forward_s)
        until_ns = ended_ns
        for name, seconds in reversed((*parts, ("encode", record.encode_s))):
            from_ns = max(begun_ns, until_ns - int(seconds * 1e9))
            self._tracer.start_span(name, within, start_time=from_ns).end(until_ns)
            until_ns = from_ns

    async def flush(self, timeout_s: float) -> None:
        """Send what waits, as far as that goes in time; an exporter that hangs keeps nobody."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.force_flush(int(timeout_s * 1e3))
            with suppress(RuntimeError):  # too late: the loop is closed
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="vecgate-traces", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await sent.wait()


def _attributes(tasks: Mapping[str, Task], method: str, status: int, record: Record) -> Iterator[tuple[str, Any]]:
    yield "http.request.method", method if method in METHODS else "_OTHER"
    yield "vecgate.request.id", record.call.id
    if record.route is not None:
        yield "http.route", record.route
    if status == LEFT:
        yield "error.type", "client_left"
    else:
        yield "http.response.status_code", status
    if status >= 500:
        yield "error.type", str(status)
    if record.model is not None:
        yield "gen_ai.operation.name", OPERATIONS[tasks.get(record.model, "embed")]
        yield "gen_ai.provider.name", "vecgate"
        yield "gen_ai.request.model", record.model
        yield "gen_ai.usage.input_tokens", record.tokens
        yield "vecgate.inputs", record.inputs
        yield "vecgate.truncated_inputs", record.truncated
