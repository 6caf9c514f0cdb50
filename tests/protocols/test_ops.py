"""Health, metrics, the description and the pages, in-process over the stub engine in every state."""

import asyncio
import hashlib
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.protocols import stub
from vecgate import __version__
from vecgate.core import Embeddings, Memory, Queue, State, Status
from vecgate.protocols import Site, ops, ops_live

OPS = ["vecgate.protocols.ops"]
PAGES = ("/", "/docs")
WEB = files("vecgate") / "web"
VENDORED = WEB / "docs"
OURS = sorted(entry.name for entry in WEB.iterdir() if entry.is_file() and entry.name != "index.html")
LOADED = {"text/css", "text/javascript", "image/png", "image/svg+xml"}


@dataclass
class Staged(stub.StubEngine):
    """The stub in any state; a probe that asks it for a row fails."""

    state: State = "ready"
    alive: bool = True
    error: str | None = None
    models: bool = True

    def status(self) -> Status:
        found = super().status()
        models = (
            tuple(replace(card, state="ready" if self.state == "draining" else self.state) for card in found.models)
            if self.models
            else ()
        )
        return replace(
            found,
            state=self.state,
            alive=self.alive,
            error=self.error,
            models=models,
            queue=Queue(3, 500, 1e4),
            busy_s=0.25,
            uptime_s=61.5,
            memory=Memory(100, 20, None),
        )

    async def embed(self, *_: Any, **__: Any) -> Embeddings:
        raise AssertionError("a probe must not compute")


def get(
    path: str,
    engine: stub.StubEngine | None = None,
    method: str = "GET",
    *,
    trusted: bool = True,
    timeout_s: float = 300.0,
    headers: dict[str, str] | None = None,
    **site: Any,
) -> httpx.Response:
    app = stub.app_of(engine or Staged(), Site(**site), OPS, trusted=trusted, timeout_s=timeout_s)

    async def go() -> httpx.Response:
        async with stub.client_of(app) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(go())


def test_health_tells_everything_an_operator_asks() -> None:
    response = get("/health")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert {key: body[key] for key in ("status", "ready", "version", "model", "backend", "why", "device", "dtype")} == {
        "status": "ok",
        "ready": True,
        "version": __version__,
        "model": "org/stub-embed",
        "backend": "stub",
        "why": "it is the only one",
        "device": "none",
        "dtype": "float32",
    }
    assert (body["dimensions"], body["uptime_s"], body["load_s"], body["warmup_s"]) == (8, 61.5, 0.5, 0.25)
    assert body["queue"] == {"items": 3, "tokens": 500, "tokens_per_s": 1e4, "busy_s": 0.25}
    assert body["device_memory"] == {"active_bytes": 100, "cache_bytes": 20, "limit_bytes": None}
    assert body["process"]["memory_bytes"] > 1_000_000
    assert body["process"]["cpu_percent"] >= 0
    assert body["machine"]["memory_bytes"] >= body["machine"]["memory_available_bytes"] > 0
    assert 0 <= body["machine"]["cpu_percent"] <= 100
    assert body["machine"]["cpu_count"] >= 1
    assert body["error"] is None
    (model,) = body["models"]
    assert (model["name"], model["task"], model["state"], model["space"]) == (
        "org/stub-embed",
        "embed",
        "ready",
        "stub-space",
    )


@pytest.mark.parametrize(
    ("state", "alive", "word", "health", "live", "ready"),
    [
        ("ready", True, "ok", 200, 200, 200),
        ("loading", True, "loading", 200, 200, 503),
        ("warming", True, "warming", 200, 200, 503),
        ("draining", True, "draining", 200, 200, 503),
        ("failed", True, "failed", 503, 503, 503),
        ("ready", False, "failed", 503, 503, 503),
        ("loading", False, "failed", 503, 503, 503),
    ],
)
def test_each_state_has_its_word_and_its_statuses(
    state: State, alive: bool, word: str, health: int, live: int, ready: int
) -> None:
    engine = Staged(state=state, alive=alive)
    answer = get("/health", engine)
    assert (answer.status_code, answer.json()["status"], answer.json()["ready"]) == (health, word, word == "ok")
    answer = get("/health/live", engine)
    assert (answer.status_code, answer.json()) == (live, {"status": "alive" if live == 200 else "failed"})
    answer = get("/health/ready", engine)
    assert (answer.status_code, answer.json()) == (ready, {"status": "ready" if ready == 200 else word})


@pytest.mark.parametrize("state", ["loading", "warming", "draining"])
def test_who_is_not_ready_says_when_to_come_back(state: State) -> None:
    assert get("/health/ready", Staged(state=state)).headers["retry-after"] == "5"


def test_a_server_of_which_one_model_failed_is_not_ready_and_not_to_be_restarted() -> None:
    class Half(Staged):
        def status(self) -> Status:
            found = super().status()
            (card, *_) = found.models
            return replace(found, models=(replace(card, state="failed"), replace(card, name="other", state="unloaded")))

    engine = Half(state="failed")
    assert [get(path, engine).status_code for path in ("/health", "/health/ready", "/health/live")] == [503, 503, 200]


def test_a_failed_model_is_told_and_does_not_ask_for_retries() -> None:
    engine = Staged(state="failed", error="model.safetensors ends early.")
    assert get("/health", engine).json()["error"] == "model.safetensors ends early."
    headers = get("/health/ready", engine).headers
    assert "retry-after" not in headers
    assert headers["x-should-retry"] == "false"


def test_a_dead_device_thread_is_told() -> None:
    assert "thread" in get("/health", Staged(alive=False)).json()["error"]


def test_health_before_any_model_is_known() -> None:
    body = get("/health", Staged(state="loading", models=False)).json()
    assert (body["status"], body["model"], body["backend"], body["models"]) == ("loading", None, None, [])


def test_the_main_model_is_the_one_that_embeds() -> None:
    class Both(Staged):
        def status(self) -> Status:
            found = super().status()
            reranker = replace(found.models[0], name="r", task="rerank", device="other")
            return replace(found, models=(reranker, *found.models))

    body = get("/health", Both()).json()
    assert (body["model"], body["device"], len(body["models"])) == ("org/stub-embed", "none", 2)


@pytest.mark.parametrize("state", ["ready", "loading", "failed"])
def test_without_the_key_that_is_set_health_is_one_word(state: State) -> None:
    body = get("/health", Staged(state=state, error="secret"), trusted=False).json()
    assert body == {"status": "ok" if state == "ready" else state}


def test_a_share_of_cpu_is_a_delta_and_never_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    intervals: list[float | None] = []
    clock = [100.0]

    def sample(interval: float | None) -> float:
        intervals.append(interval)
        return float(len(intervals))

    monkeypatch.setattr("psutil.cpu_percent", sample)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    load = ops.Load()
    first = load.read()[1].cpu_percent
    assert load.read()[1].cpu_percent == first
    clock[0] += ops.SAMPLE_S
    assert load.read()[1].cpu_percent == first + 1
    assert intervals == [None, None]


def test_ping_is_empty() -> None:
    response = get("/ping", Staged(state="failed"))
    assert (response.status_code, response.content) == (200, b"")


def test_metrics_and_the_document_are_the_sites() -> None:
    response = get("/metrics", metrics=lambda accept: ("text/plain; version=0.0.4", b"a 1\n" if accept else b""))
    assert (response.headers["content-type"], response.content) == ("text/plain; version=0.0.4", b"a 1\n")
    response = get("/openapi.json", document=lambda: b'{"openapi":"3.1.0"}')
    assert (response.headers["content-type"], response.json()) == ("application/json", {"openapi": "3.1.0"})


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/ping", "/docs", "/docs/start.js", "/", "/web/page.js", "/openapi.json"]
)
def test_head_is_get_without_the_body(path: str) -> None:
    whole, head = get(path, document=lambda: b"{}"), get(path, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/docs/start.js", "/"])
def test_another_method_is_405(path: str) -> None:
    response = get(path, method="POST")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"
    assert response.json()["error"]["code"] == "method_not_allowed"


class Links(HTMLParser):
    """Every address a page loads or leads to, and its scripts' own text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.inline: list[str] = []
        self._within = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._within = tag
        self.loads += [found["href"]] if tag == "link" else [found["src"]] if "src" in found else []
        self.leads += [found["href"]] if tag == "a" else []
        self.inline += [name for name in found if name.startswith("on") or name == "style"]

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        self.inline += [data] if self._within in ("script", "style") and data.strip() else []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_html_that_may_load_from_here_only(path: str) -> None:
    response = get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "http" not in response.headers["content-security-policy"]
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("prefix", ["", "/behind/a/proxy"])
@pytest.mark.parametrize("page", ["/", "/docs", "/docs/"])
def test_what_a_page_loads_is_relative_and_there(page: str, prefix: str) -> None:
    links = Links(get(page.rstrip("/") or "/").text)
    assert links.loads
    assert links.inline == []
    for link in links.loads:
        assert not re.match(r"\w+:|/", link)
        path = urljoin(f"http://test{prefix}{page}", link).removeprefix(f"http://test{prefix}")
        response = get(path)
        assert response.status_code == 200, path
        assert response.headers["content-type"].partition(";")[0] in LOADED


@pytest.mark.parametrize("page", ["/", "/docs", "/docs/"])
def test_where_a_page_leads_is_there(page: str) -> None:
    leads = Links(get(page.rstrip("/") or "/").text).leads
    known = {path for route in ops.ROUTES for path in route.paths} | {"/v1/models"}
    leads = [link for link in leads if not link.startswith("#")]
    assert {urljoin(f"http://test{page}", link).removeprefix("http://test") for link in leads} <= known
    assert leads


def test_our_script_reaches_for_nothing_but_the_document() -> None:
    script = get("/docs/start.js").text
    assert "http" not in script.replace("https://", "http")
    assert "validatorUrl: null" in script


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..%2f..%2fcore.py", "index.html", "SOURCE.md", "%00", "start.js%00", "swagger-ui.css.map"]
)
def test_only_files_of_the_table_are_served(name: str) -> None:
    response = get(f"/docs/{name}")
    assert response.status_code == 404
    assert b"import" not in response.content


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/swagger-ui-bundle.js", "/web/page.js", "/web/page.css"])
def test_a_file_is_asked_for_each_time_and_sent_once(path: str) -> None:
    whole = get(path)
    assert whole.headers["cache-control"] == "no-cache"
    tag = whole.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == whole.headers["content-security-policy"]
    assert get(path, headers={"if-none-match": '"other"'}).content == whole.content


def test_each_file_of_the_page_is_served_as_what_it_is() -> None:
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    assert {"page.js", "page.css", "icon.svg"} <= set(OURS)
    for name in OURS:
        response = get(f"/web/{name}")
        assert (response.status_code, response.headers["content-type"]) == (200, kinds[name.rpartition(".")[2]])
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "unsafe" not in response.headers["content-security-policy"]


def test_the_page_loads_modules_that_are_there_and_nothing_from_elsewhere() -> None:
    scripts = {name: (WEB / name).read_text() for name in OURS if name.endswith(".js")}
    needed = {found for text in scripts.values() for found in re.findall(r'from "\./([^"]+)"', text)}
    assert needed | {"page.js"} == set(scripts)
    addresses = {found for name in OURS for found in re.findall(r"https?://[^\s\"'`)]+", (WEB / name).read_text())}
    assert addresses == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    "name", ["index.html", "docs", "%2e%2e", "..%2fcore.py", "docs%2fstart.js", "%00", "page.js%00"]
)
def test_the_page_has_no_other_files(name: str) -> None:
    assert get(f"/web/{name}").status_code == 404


# the page's own routes


COUNTED = {"in_flight": 3, "leaving": False, "totals": {"requests": 7}}


def events(response: httpx.Response) -> list[dict[str, Any]]:
    found = [json.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n") if event]
    assert all(isinstance(event, dict) for event in found)
    return found


def test_the_stream_tells_the_state_and_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([COUNTED, COUNTED, {**COUNTED, "leaving": True}])
    monkeypatch.setattr(ops_live, "TICK_S", 0.0)
    watching: set[object] = set()
    response = get("/api/v1/live", now=lambda: next(readings), watching=watching)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    first, second, last = events(response)
    assert (first["status"], first["in_flight"], first["totals"]) == ("ok", 3, {"requests": 7})
    assert first["queue"] == {"items": 3, "tokens": 500, "tokens_per_s": 1e4, "wait_s": 0.0}
    assert first["batch_tokens"] == {"org/stub-embed": [1024, None]}
    assert first["process"]["memory_bytes"] > 1_000_000
    assert first["device_memory"]["active_bytes"] == 100
    assert (second["leaving"], last["leaving"]) == (False, True)
    assert watching == set()


def test_the_stream_ends_while_the_server_leaves() -> None:
    (only,) = events(get("/api/v1/live", Staged(state="draining"), now=lambda: COUNTED))
    assert only["status"] == "draining"


def test_the_stream_ends_before_the_deadline_would_break_it_off() -> None:
    (only,) = events(get("/api/v1/live", timeout_s=1.5, now=lambda: COUNTED))
    assert only["totals"] == {"requests": 7}


def test_the_streams_are_bounded_in_number() -> None:
    watching: set[object] = set(range(ops_live.STREAMS))
    response = get("/api/v1/live", watching=watching)
    assert (response.status_code, response.headers["retry-after"]) == (429, "10")
    assert str(ops_live.STREAMS) in response.json()["message"]
    assert watching == set(range(ops_live.STREAMS))


def test_head_of_the_stream_opens_none() -> None:
    watching: set[object] = set()
    head = get("/api/v1/live", method="HEAD", watching=watching)
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "text/event-stream")
    assert watching == set()


def test_the_page_is_told_of_models_and_settings() -> None:
    response = get("/api/v1/about", about=lambda: {"settings": [], "folders": {"org/stub-embed": "~/models/stub"}})
    body = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert (body["version"], body["folders"]) == (__version__, {"org/stub-embed": "~/models/stub"})
    (model,) = body["models"]
    assert (model["name"], model["normalize"], model["prompts"], model["batch_tokens"]) == (
        "org/stub-embed",
        True,
        {},
        1024,
    )


def test_the_files_of_others_are_as_shipped() -> None:
    source = (VENDORED / "SOURCE.md").read_text()
    sums = re.findall(r"^\| (\S+) \| ([0-9a-f]{64}) \|$", source, re.MULTILINE)
    assert len(sums) == 4
    for name, expected in sums:
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == expected
