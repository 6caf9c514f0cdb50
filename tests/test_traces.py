"""traces.py: one server span a request, under the trace that the caller began; off, and not imported, unless asked for."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests import small, whole
from tests.whole import Whole
from vecgate import app as composed
from vecgate.core import Call, Record
from vecgate.errors import ConfigError
from vecgate.traces import Traces, asked_by, traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced(Whole):
    """Whole, with its spans kept."""

    def __init__(self, cwd: Path, exporter: SpanExporter | None = None, **names: str) -> None:
        super().__init__(cwd, None, **names)
        self.kept = InMemorySpanExporter()
        self.traces = Traces("1.2.3", [SimpleSpanProcessor(exporter or self.kept)])

    async def _start(self) -> None:
        def build(settings: Any, **told: Any) -> Any:
            return composed.build(settings, **told, traces=self.traces)

        with patch.object(whole, "build", build):
            await super()._start()

    def spans(self) -> dict[str, ReadableSpan]:
        found = {span.name: span for span in self.kept.get_finished_spans()}
        self.kept.clear()
        return found


def test_a_request_is_a_span_with_its_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Traced(tmp_path) as app, caplog.at_level(logging.INFO, "vecgate.access"):
        app.spans()
        answer = app.post("/v1/embeddings", {"input": ["a cat", "dogs " * 40]}, **CALLER)
        spans = app.spans()
    assert spans.keys() == {"POST /v1/embeddings", "tokenize", "queue", "forward", "encode"}
    span = spans["POST /v1/embeddings"]
    assert span.parent is not None
    assert span.context is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.kind.name == "SERVER"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "vecgate.request.id": answer.headers["x-request-id"],
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "vecgate",
        "gen_ai.request.model": "small",
        "gen_ai.usage.input_tokens": 16,
        "vecgate.inputs": 2,
        "vecgate.truncated_inputs": 1,
    }
    assert vars(caplog.records[-1])["fields"]["trace"] == TRACE
    inner = [spans[name] for name in ("tokenize", "queue", "forward", "encode")]
    assert {part.parent and part.parent.span_id for part in inner} == {span.context.span_id}
    edges = [edge for part in inner for edge in (part.start_time or 0, part.end_time or 0)]
    assert edges == sorted(edges)
    assert (span.start_time or 0) <= edges[0]
    assert edges[-1] == span.end_time
    resource = dict(span.resource.attributes)
    assert (resource["service.name"], resource["service.version"]) == ("vecgate", "1.2.3")


def test_a_refusal_is_a_span_without_what_the_client_said(tmp_path: Path) -> None:
    with Traced(tmp_path, CROSS_ENCODER_MODEL=str(small.folder(tmp_path / "judge", "rerank"))) as app:
        app.spans()
        app.ask("BREW", "/SECRET", headers={"traceparent": "SECRET", "x-api-key": "SECRET"})
        (refused,) = app.spans().values()
        app.post("/v1/rerank", {"query": "SECRET", "documents": ["SECRET"]})
        ranked = app.spans()
    assert refused.name == "HTTP"
    assert refused.parent is None
    assert (refused.attributes or {})["http.request.method"] == "_OTHER"
    assert (ranked["POST /v1/rerank"].attributes or {})["gen_ai.operation.name"] == "rerank"
    assert "SECRET" not in "".join(span.to_json() for span in (refused, *ranked.values()))


@pytest.mark.parametrize(("status", "kind"), [(500, "500"), (499, "client_left")])
def test_what_went_wrong_is_said(status: int, kind: str) -> None:
    kept = InMemorySpanExporter()
    Traces("1", [SimpleSpanProcessor(kept)]).on_request({}, "POST", status, 0.5, Record(Call("id")), [])
    (span,) = kept.get_finished_spans()
    assert (span.attributes or {})["error.type"] == kind
    assert (span.status.status_code.name == "ERROR") == (status == 500)
    assert (span.end_time or 0) - (span.start_time or 0) == 500_000_000


class Broken(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise OSError("the collector is gone")


def test_an_exporter_that_fails_touches_no_request(tmp_path: Path) -> None:
    with Traced(tmp_path, Broken()) as app:
        assert app.post("/v1/embeddings", {"input": "a cat"}).status_code == 200


def test_an_exporter_that_hangs_keeps_nobody_at_the_end() -> None:
    found, go = Traces("1", []), threading.Event()
    ended = threading.Event()

    def hangs(_timeout_ms: int) -> None:
        go.wait(30)
        ended.set()

    with patch.object(found._provider, "force_flush", hangs):
        asyncio.run(found.flush(0.01))
    assert not ended.is_set()
    go.set()
    assert ended.wait(30)


@pytest.mark.parametrize(
    ("environ", "asks"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, None),
    ],
)
def test_the_standard_variables_ask_for_it(environ: dict[str, str], asks: str | None) -> None:
    assert asked_by(environ) == asks


def test_the_console_exporter_is_one_of_the_sdks_own() -> None:
    assert traces({"OTEL_TRACES_EXPORTER": "console"}, "1") is not None


def test_what_is_not_installed_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'zipkin', which is not installed: pip install 'vecgate\[otel\]'"):
        traces({"OTEL_TRACES_EXPORTER": "zipkin"}, "1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"^OTEL_TRACES_EXPORTER asks for traces.*pip install 'vecgate\[otel\]'\.$"):
        traces({"OTEL_TRACES_EXPORTER": "console"}, "1")
    assert traces({}, "1") is None
