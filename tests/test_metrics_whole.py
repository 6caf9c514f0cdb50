"""/metrics through the whole app: a known call moves each series by exactly what it should and no other, and there is
no metric without such a call."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from tests import small
from tests.whole import Whole
from vecgate.backends import fake
from vecgate.core import Memory
from vecgate.errors import DeviceLost
from vecgate.metrics import Metrics, table
from vecgate.protocols import routes

POISON = small.SPECIALS.index("poison")
PATHS = {path for route in routes() for path in route.paths}
Moved = dict[str, float]


class Some:
    """Seconds that a machine took, or the rate it had: more than none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and other > 0

    def __repr__(self) -> str:
        return "some"

    __hash__ = None  # type: ignore[assignment]


SOME: Any = Some()
BY_ITSELF = {
    *("vecgate_uptime_seconds", "vecgate_build_info", "vecgate_memory_footprint_bytes"),
    *("vecgate_memory_footprint_peak_bytes", "process_resident_memory_bytes", "process_start_time_seconds"),
    *("process_cpu_seconds", "vecgate_tokens_per_second"),
}
"""What no call moves; tests/test_metrics.py tries them."""


def read(app: Whole) -> Moved:
    """Every series but buckets and what moves by itself, without the reading's own request."""
    answer = app.get("/metrics", authorization="Bearer key")
    assert answer.status_code == 200
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if family.name not in BY_ITSELF and not sample.name.endswith("_bucket") and "/metrics" not in str(sample.labels)
    }


def moved(before: Moved, after: Moved) -> Moved:
    changes = {name.removesuffix("{}"): after.get(name, 0.0) - before.get(name, 0.0) for name in before | after}
    return {name: by for name, by in changes.items() if by}


def ended(route: str, status: int, method: str = "POST") -> Moved:
    """What every request moves."""
    return {
        f"vecgate_requests_total{{method={method},route={route},status={status}}}": 1,
        f"vecgate_request_seconds_count{{route={route}}}": 1,
        f"vecgate_request_seconds_sum{{route={route}}}": SOME,
    }


def answered(inputs: int, model: str = "small") -> Moved:
    """What a request moves that the model answered."""
    return {
        f"vecgate_inputs_total{{model={model}}}": inputs,
        "vecgate_tokenize_seconds_count": 1,
        "vecgate_tokenize_seconds_sum": SOME,
        "vecgate_encode_seconds_count": 1,
        "vecgate_encode_seconds_sum": SOME,
    }


def computed(rows: int, tokens: int, model: str = "small") -> Moved:
    """What one batch moves, the first one of a server."""
    return {
        f"vecgate_batch_rows_count{{model={model}}}": 1,
        f"vecgate_batch_rows_sum{{model={model}}}": rows,
        f"vecgate_batch_tokens_count{{model={model}}}": 1,
        f"vecgate_batch_tokens_sum{{model={model}}}": tokens,
        f"vecgate_tokens_total{{model={model}}}": tokens,
        f"vecgate_padded_tokens_total{{model={model}}}": tokens,
        f"vecgate_padding_ratio{{model={model}}}": 1,
        f"vecgate_forward_seconds_count{{model={model}}}": 1,
        f"vecgate_forward_seconds_sum{{model={model}}}": SOME,
        f"vecgate_queue_seconds_count{{model={model}}}": rows,
        f"vecgate_queue_seconds_sum{{model={model}}}": SOME,
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that happens to a fresh server, and all that it moves."""

    act: Callable[[Whole], Any]
    moves: Moved
    names: dict[str, str] = field(default_factory=dict)
    script: Callable[[], fake.Script] = fake.Script


def post(path: str, body: Any, key: str = "key") -> Callable[[Whole], Any]:
    return lambda app: app.post(path, body, authorization=f"Bearer {key}")


def asked(method: str, path: str) -> Callable[[Whole], Any]:
    return lambda app: app.ask(method, path, headers={"authorization": "Bearer key"})


def embed(*texts: str) -> Callable[[Whole], Any]:
    return post("/v1/embeddings", {"input": texts})


def scope(path: str) -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1:9000"), (b"authorization", b"Bearer key"), (b"content-type", b"application/json")]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "headers": headers,
        "query_string": b"",
    }


async def from_a_client(app: Whole, body: bytes, gone: asyncio.Event) -> None:
    """A call of a client that leaves when it is told to."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    await app.app(scope("/v1/embeddings"), receive, send)


def call(app: Whole, body: bytes, gone: asyncio.Event | None = None) -> asyncio.Task[None]:
    return asyncio.create_task(from_a_client(app, body, gone or asyncio.Event()))


async def until(app: Whole, series: str, value: float) -> None:
    line = f"{series} {value}\n"
    for _ in itertools.count():
        if line in (await app.client.get("/metrics", headers={"authorization": "Bearer key"})).text:
            return
        await asyncio.sleep(0)


def leaves(app: Whole) -> None:
    """The first call is on the device when the second one's client leaves."""

    async def scene() -> None:
        stays = call(app, b'{"input": "a cat"}')
        await asyncio.to_thread(app.script.entered.wait, 30)
        gone = asyncio.Event()
        leaving = call(app, b'{"input": ["a cat", "dogs bark"]}', gone)
        await until(app, "vecgate_queue_items", 2.0)
        gone.set()
        await leaving
        hold(app).set()
        await stays

    hold(app).clear()
    app.script.entered.clear()  # set by the warm-up
    app.run(scene())


def waits(app: Whole) -> None:
    """One call was answered, so that there is a rate; then one is on the device and one waits behind it, for ever."""

    async def scene() -> None:
        call(app, b'{"input": "a cat"}')
        await asyncio.to_thread(app.script.entered.wait, 30)
        call(app, b'{"input": ["a cat", "dogs bark"]}')
        await until(app, "vecgate_queue_items", 2.0)

    assert embed("a cat")(app).status_code == 200
    hold(app).clear()
    app.script.entered.clear()  # set by the forward before
    app.run(scene())


def hold(app: Whole) -> threading.Event:
    assert app.script.hold is not None
    return app.script.hold


def grows(app: Whole) -> None:
    with patch.object(fake.Fake, "memory", lambda _: Memory(active_bytes=10**15, cache_bytes=5, limit_bytes=10**15)):
        embed("a cat")(app)
        while not app.script.trims:  # read once the answer is on its way, and too much of it, so then given back
            time.sleep(0.001)


def loses_lines(app: Whole) -> None:
    app.lost_lines = 3


def drains(app: Whole) -> None:
    app.app.draining = True
    app.life.leaving()
    assert embed("a cat")(app).status_code == 503


OPENAI, COHERE, OLLAMA = "/v1/embeddings", "/v1/rerank", "/api/embed"
BOTH = {"query": "what is paris", "documents": ["paris is", "dogs bark a cat"]}
REFUSALS = {
    "a bad request": Scene(post(OPENAI, {"input": 7}), ended(OPENAI, 400)),
    "no JSON": Scene(post(OPENAI, b"{"), ended(OPENAI, 400)),
    "a model that is not there": Scene(post(OPENAI, {"model": "gone", "input": "a"}), ended(OPENAI, 404)),
    "a wrong key": Scene(post(OPENAI, {"input": "a cat"}, key="guess"), ended(OPENAI, 401)),
    "an unknown path": Scene(asked("GET", "/etc/passwd"), ended("other", 404, "GET")),
    "a wrong method": Scene(asked("DELETE", OPENAI), ended(OPENAI, 405, "DELETE")),
    "a method of nobody's": Scene(asked("BREW", "/v1/models/x"), ended("other", 405, "other")),
    "a probe": Scene(asked("GET", "/health/live"), ended("/health/live", 200, "GET")),
}
"""And probes: what moves the same on every server, so one is enough."""
SCENES = {
    "an embedding": Scene(embed("a cat", "paris"), ended(OPENAI, 200) | answered(2) | computed(2, 7)),
    "a rerank": Scene(
        post(COHERE, BOTH), ended(COHERE, 200) | answered(2, "judge") | computed(2, 18, "judge"), {"judge": "yes"}
    ),
    "an Ollama call": Scene(
        post(OLLAMA, {"model": "small", "input": "a cat"}), ended(OLLAMA, 200) | answered(1) | computed(1, 4)
    ),
    "an input that is cut": Scene(
        embed("a cat", "dogs " * 40),
        ended(OPENAI, 200) | answered(2) | computed(2, 16) | {"vecgate_truncated_inputs_total{model=small}": 1},
    ),
    "a body over the limit": Scene(
        post(OPENAI, {"input": "a" * 300}), ended(OPENAI, 413), {"VECGATE_BODY_LIMIT": "256"}
    ),
    "a server that leaves": Scene(
        drains,
        ended(OPENAI, 503)
        | {
            "vecgate_shed_total{reason=draining}": 1,
            "vecgate_state{state=ready}": -1,
            "vecgate_state{state=draining}": 1,
        },
    ),
    "a client that leaves": Scene(
        leaves,
        ended(OPENAI, 200)
        | answered(1)
        | computed(1, 4)
        | {
            f"vecgate_requests_total{{method=POST,route={OPENAI},status=499}}": 1,
            f"vecgate_request_seconds_count{{route={OPENAI}}}": 2,
            "vecgate_dropped_rows_total{model=small}": 2,
        },
    ),
    "calls that wait": Scene(
        waits,
        ended(OPENAI, 200)
        | answered(1)
        | computed(1, 4)
        | {
            "vecgate_requests_in_flight": 2,
            "vecgate_body_bytes": len(b'{"input": "a cat"}{"input": ["a cat", "dogs bark"]}'),
            "vecgate_queue_items": 2,
            "vecgate_queue_tokens": 8,
            "vecgate_backlog_seconds": SOME,
            "vecgate_device_busy_seconds": SOME,
        },
    ),
    "a row that is not finite": Scene(
        embed("a cat", "poison"),
        ended(OPENAI, 500)
        | computed(2, 7)
        | {"vecgate_nonfinite_rows_total{model=small}": 1, "vecgate_failed_rows_total{model=small}": 1},
        script=lambda: fake.Script(nan_ids=frozenset({POISON})),
    ),
    "a row that fails": Scene(
        embed("a cat", "poison"),
        ended(OPENAI, 500) | computed(2, 7) | {"vecgate_failed_rows_total{model=small}": 1},
        script=lambda: fake.Script(failure=lambda row: ValueError("no") if POISON in row.ids else None),
    ),
    "a device that is lost": Scene(
        embed("poison"),
        ended(OPENAI, 503)
        | {"vecgate_state{state=ready}": -1, "vecgate_state{state=failed}": 1, "vecgate_device_alive": -1},
        script=lambda: fake.Script(failure=lost),
    ),
    "device memory": Scene(
        grows,
        ended(OPENAI, 200)
        | answered(1)
        | computed(1, 4)
        | {
            "vecgate_device_memory_bytes{kind=active}": SOME,
            "vecgate_device_memory_bytes{kind=cache}": 5,
            "vecgate_device_memory_bytes{kind=limit}": SOME,
        },
    ),
    "lost lines of the log": Scene(loses_lines, {"vecgate_log_lines_lost_total": 3}),
}


def lost(row: Any) -> None:
    if POISON in row.ids:
        raise DeviceLost("The device fell off the bus.")


def server(cwd: Path, scene: Scene) -> Whole:
    script = scene.script()
    script.hold = threading.Event()
    script.hold.set()
    names = dict(scene.names)
    if names.pop("judge", ""):
        names["CROSS_ENCODER_MODEL"] = str(small.folder(cwd / "judge", "rerank"))
    return Whole(cwd, script, VECGATE_API_KEY="key", **names)


@pytest.mark.parametrize("name", SCENES)
def test_a_call_moves_what_it_should_and_nothing_else(name: str, tmp_path: Path) -> None:
    scene = SCENES[name]
    with server(tmp_path, scene) as app:
        before = read(app)
        scene.act(app)
        assert moved(before, read(app)) == scene.moves
        hold(app).set()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with Whole(tmp_path_factory.mktemp("running"), VECGATE_API_KEY="key") as app:
        yield app


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_moves_what_it_should_and_nothing_else(name: str, running: Whole) -> None:
    before = read(running)
    REFUSALS[name].act(running)
    assert moved(before, read(running)) == REFUSALS[name].moves


# the states


class Watched(Whole):
    """Not waited for, so that it is seen while it loads."""

    def wait(self) -> None:
        pass

    def until(self, word: str) -> None:
        while self.get("/health").json()["status"] != word:
            time.sleep(0.002)

    def states(self) -> tuple[str, int, list[str], list[str]]:
        """/health's word, the status of /health/ready, and what /metrics shows of the server and of its model."""
        text = self.get("/metrics").text
        shown = [
            re.findall(rf'^vecgate_{name}{{.*\bstate="([a-z]+)".*}} 1.0$', text, re.M)
            for name in ("state", "model_state")
        ]
        return self.get("/health").json()["status"], self.get("/health/ready").status_code, shown[0], shown[1]

    def serves(self) -> bool:
        return self.post(OPENAI, {"input": "a cat"}).status_code == 200


LOADED: Moved = {
    "vecgate_state{state=loading}": -1,
    "vecgate_state{state=ready}": 1,
    "vecgate_model_state{model=small,state=loading,task=embed}": -1,
    "vecgate_model_state{model=small,state=ready,task=embed}": 1,
    "vecgate_batch_limit_tokens{kind=configured,model=small}": 2048,
    "vecgate_batch_limit_tokens{kind=now,model=small}": 2048,
    "vecgate_model_info{backend=fake,device=,dtype=,model=small,task=embed}": -1,
    "vecgate_model_info{backend=fake,device=cpu,dtype=float32,model=small,task=embed}": 1,
}


def test_it_loads_then_warms_up_then_is_ready_then_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, made = threading.Event(), fake.Fake

    def slowly(*given: Any, **named: Any) -> fake.Fake:
        assert opened.wait(30)
        return made(*given, **named)

    monkeypatch.setattr(fake, "Fake", slowly)
    with Watched(tmp_path, fake.Script(hold=threading.Event())) as app:
        before = read(app)
        assert app.states() == ("loading", 503, ["loading"], ["loading"])
        opened.set()
        assert app.script.entered.wait(30)
        assert app.states() == ("warming", 503, ["warming"], ["warming"])
        assert not app.serves()
        hold(app).set()
        app.until("ok")
        assert app.states() == ("ok", 200, ["ready"], ["ready"])
        changes = moved(before, read(app))
        assert {name: by for name, by in changes.items() if "request" not in name and "memory" not in name} == LOADED
        assert app.serves()
        app.life.leaving()
        assert app.states() == ("draining", 503, ["draining"], ["ready"])


def test_what_does_not_warm_up_has_failed(tmp_path: Path) -> None:
    with Watched(tmp_path, fake.Script(nan_ids=frozenset({small.SPECIALS.index("[CLS]")}))) as app:
        app.until("failed")
        assert app.states() == ("failed", 503, ["failed"], ["failed"])
        assert not app.serves()
        assert app.get("/health/live").status_code == 503


def test_what_dies_has_failed_for_good(tmp_path: Path) -> None:
    with Whole(tmp_path, fake.Script(failure=lost)) as app:
        assert app.post(OPENAI, {"input": "poison"}).status_code == 503
        assert Watched.states(app) == ("failed", 503, ["failed"], ["ready"])  # type: ignore[arg-type]
        assert app.get("/health/live").status_code == 503


# all of them, and nothing else


def test_there_is_no_metric_that_no_call_here_moves() -> None:
    tried = {name.partition("{")[0] for scene in (*SCENES.values(), *REFUSALS.values()) for name in scene.moves}
    tried |= {name.partition("{")[0] for name in LOADED}
    suffixes = {"counter": "_total", "histogram": "_count"}
    shown = {
        family.name + suffixes.get(family.type, "")
        for family in Metrics("1").registry.collect()
        if family.name not in BY_ITSELF
    }
    assert shown - tried == set()


HOSTILE = ('x"} 1\n', "a\\", "../../etc", "\u2028", "a" * 5000, "é")


def test_nothing_a_client_says_makes_a_series(running: Whole) -> None:
    before = read(running)
    for said in HOSTILE:
        for body in ({"input": said, "model": said}, {"input": "a", "role": said}, {"input": "a", "user": said}):
            running.post(OPENAI, body, authorization="Bearer key")
            running.post("/api/v1/embed", {"texts": ["a"], **body}, authorization="Bearer key")
            running.post(COHERE, {**BOTH, **body}, authorization="Bearer key")
        path = "/v1/models/" + quote(said)
        for method in ("GET", "BREW", "X" * 100):
            running.ask(method, path, headers={"authorization": "Bearer key", "user-agent": quote(said)})
            running.ask(method, "/" + quote(said), headers={"authorization": "Bearer " + quote(said)})
    told = {value for name in read(running).keys() - before.keys() for value in values(name)}
    assert told <= {"small", "POST", "GET", "other", "200", "400", "401", "404", "405", "422", *PATHS}
    assert "/v1/models/{model_id:path}" in told


def values(series: str) -> list[str]:
    """Of its labels."""
    return [label.partition("=")[2] for label in series.partition("{")[2].removesuffix("}").split(",")]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain"),
        ("text/plain;version=0.0.4", "text/plain"),
        ("application/openmetrics-text; version=1.0.0, text/plain", "application/openmetrics-text; version=1.0.0"),
        ("Application/OpenMetrics-Text; version=nonsense\t", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_it_is_text_that_prometheus_reads(accept: str, kind: str, running: Whole) -> None:
    answer = running.get("/metrics", authorization="Bearer key", accept=accept)
    assert answer.headers["content-type"].startswith(kind)
    parse = openmetrics_families if "openmetrics" in kind else text_string_to_metric_families
    families = {family.name: family for family in parse(answer.text)}
    assert families["vecgate_request_seconds"].type == "histogram"
    assert families.keys() >= {family.name for family in Metrics("1").registry.collect()}
    assert answer.text.endswith("# EOF\n") == ("openmetrics" in kind)


def test_names_and_units_are_as_prometheus_has_them() -> None:
    for family in Metrics("1").registry.collect():
        assert re.fullmatch(r"(vecgate|process)(_[a-z]+)+", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert not re.search(r"(?<!_per)_(s|ms|second|byte|kb|mib)$", family.name)
        assert family.documentation.endswith(".")


def test_the_documentation_has_the_table(root: Path) -> None:
    text = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    between = text.partition("<!-- metrics:begin -->")[2].partition("<!-- metrics:end -->")[0].strip()
    assert between == table(), 'paste what `python -c "from vecgate.metrics import table; print(table())"` prints'
    shown = {family.name for family in Metrics("1").registry.collect()}
    spoken = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"\bvecgate_[a-z_]+", text)}
    assert spoken <= shown
