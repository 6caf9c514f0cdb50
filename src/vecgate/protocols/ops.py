"""The routes that say how the server is: health, metrics, the API's description and its pages.

Reads the engine's status and never asks it for a row, so that a probe costs nothing.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import psutil

from vecgate import __version__
from vecgate.core import ModelCard, Status
from vecgate.protocols import Answer, Ask, Route
from vecgate.protocols.ops_live import stream
from vecgate.protocols.ops_pages import asset, docs, docs_asset, index
from vecgate.protocols.plain import render

RETRY_AFTER_S = 5
"""What a probe that is not ready is told to wait: a small model loads within it."""
SAMPLE_S = 1.0
"""CPU shares are deltas; probes closer together than this share one sample, else they would read noise."""


class Process(msgspec.Struct, kw_only=True):
    """cpu_percent: of one core, since the probe before; more than 100 when several are busy."""

    memory_bytes: int
    cpu_percent: float


class Machine(msgspec.Struct, kw_only=True):
    """cpu_percent: of all cores, since the probe before."""

    memory_bytes: int
    memory_available_bytes: int
    memory_percent: float
    cpu_percent: float
    cpu_count: int


class DeviceMemory(msgspec.Struct, kw_only=True):
    active_bytes: int
    cache_bytes: int
    limit_bytes: int | None


class Waiting(msgspec.Struct, kw_only=True):
    """What waits for the device. busy_s: how long the batch under way has run (null: the device is idle)."""

    items: int
    tokens: int
    tokens_per_s: float | None
    busy_s: float | None


class Looked(msgspec.Struct, kw_only=True):
    """One check. cosine, difference: the worst between two rows that should be one (null: nothing was compared)."""

    name: str
    verdict: str
    note: str
    cosine: float | None
    difference: float | None


class Verified(msgspec.Struct, kw_only=True):
    """What the model showed on its device before it was ready. verdict: passed, deviates (its rows moved more than its
    number type explains) or failed. at: seconds since the epoch."""

    form: str
    verdict: str
    at: float
    took_s: float
    checks: list[Looked]


class ServedModel(msgspec.Struct, kw_only=True):
    name: str
    aliases: list[str]
    task: str
    family: str
    state: str
    backend: str | None
    why: str | None
    device: str | None
    dtype: str | None
    dimensions: int | None
    max_tokens: int
    pooling: list[str]
    weight_bytes: int
    revision: str | None
    space: str | None
    load_s: float | None
    warmup_s: float | None
    verification: Verified | None


class Health(msgspec.Struct, kw_only=True):
    """status: ok, loading, warming, draining or failed; with an API key set it is all that is told."""

    status: str
    ready: bool | None = None
    version: str | None = None
    model: str | None = None
    backend: str | None = None
    why: str | None = None
    device: str | None = None
    dtype: str | None = None
    dimensions: int | None = None
    uptime_s: float | None = None
    load_s: float | None = None
    warmup_s: float | None = None
    queue: Waiting | None = None
    process: Process | None = None
    machine: Machine | None = None
    device_memory: DeviceMemory | None = None
    models: list[ServedModel] | None = None
    error: str | None = None


class Word(msgspec.Struct):
    status: str


class Load:
    """CPU and memory of this process and this machine, without ever waiting for a sample."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._taken = float("-inf")
        self._shares = (0.0, 0.0)
        self._share()

    def read(self) -> tuple[Process, Machine]:
        own, all_cores = self._share()
        memory = psutil.virtual_memory()
        return (
            Process(memory_bytes=self._process.memory_info().rss, cpu_percent=own),
            Machine(
                memory_bytes=memory.total,
                memory_available_bytes=memory.available,
                memory_percent=memory.percent,
                cpu_percent=all_cores,
                cpu_count=psutil.cpu_count() or 1,
            ),
        )

    def _share(self) -> tuple[float, float]:
        if time.monotonic() - self._taken >= SAMPLE_S:
            self._taken = time.monotonic()
            self._shares = self._process.cpu_percent(interval=None), psutil.cpu_percent(interval=None)
        return self._shares


_load = Load()


def word(status: Status) -> str:
    """The state in one word; "ok" and "failed" are what a probe looks for."""
    if not status.alive:
        return "failed"
    return "ok" if status.state == "ready" else status.state


async def health(ask: Ask) -> Answer:
    status = ask.engine.status()
    found = word(status)
    body = _told(status, found) if ask.trusted else Word(found)
    return Answer(msgspec.json.encode(body), status=503 if found == "failed" else 200, headers=_fresh())


async def live(ask: Ask) -> Answer:
    status = ask.engine.status()
    alive = status.alive and (status.state != "failed" or any(card.state != "failed" for card in status.models))
    return _word("alive" if alive else "failed", 200 if alive else 503)


async def ready(ask: Ask) -> Answer:
    found = word(ask.engine.status())
    if found == "ok":
        return _word("ready", 200)
    # A failed model does not come back by waiting.
    retry = {"x-should-retry": "false"} if found == "failed" else {"retry-after": str(RETRY_AFTER_S)}
    return _word(found, 503, retry)


async def ping(_ask: Ask) -> Answer:
    return Answer(b"", media_type="text/plain; charset=utf-8")


async def metrics(ask: Ask) -> Answer:
    media_type, body = ask.site.metrics(ask.accept)
    return Answer(body, media_type=media_type, headers=_fresh())


async def document(ask: Ask) -> Answer:
    return Answer(ask.site.document(), headers={"cache-control": "no-cache"})


async def watch(ask: Ask) -> Answer:
    return stream(ask, lambda: _now(ask))


async def about(ask: Ask) -> Answer:
    found = {"version": __version__, "models": ask.engine.status().models, **ask.site.about()}
    return Answer(msgspec.json.encode(found), headers=_fresh())


def _now(ask: Ask) -> tuple[dict[str, Any], bool]:
    """One reading, and whether it is the last."""
    status, counted = ask.engine.status(), ask.site.now()
    process, machine = _load.read()
    reading = {
        "status": word(status),
        "uptime_s": status.uptime_s,
        "queue": status.queue,
        "busy_s": status.busy_s,
        "batch_tokens": {card.name: (card.batch_tokens, card.batch_tokens_now) for card in status.models},
        "process": process,
        "machine": machine,
        "device_memory": status.memory,
        **counted,
    }
    return reading, status.state == "draining" or counted.get("leaving", False)


def _told(status: Status, found: str) -> Health:
    process, machine = _load.read()
    main = next((card for card in status.models if card.task == "embed"), None) or next(iter(status.models), None)
    memory = status.memory
    return Health(
        status=found,
        ready=found == "ok",
        version=__version__,
        uptime_s=round(status.uptime_s, 3),
        queue=Waiting(
            items=status.queue.items,
            tokens=status.queue.tokens,
            tokens_per_s=status.queue.tokens_per_s,
            busy_s=status.busy_s,
        ),
        process=process,
        machine=machine,
        device_memory=msgspec.convert(memory, DeviceMemory, from_attributes=True) if memory else None,
        models=[msgspec.convert(card, ServedModel, from_attributes=True) for card in status.models],
        error=status.error or (None if status.alive else "The device thread no longer answers."),
        **_of(main),
    )


def _of(card: ModelCard | None) -> dict[str, Any]:
    """What the top of the answer repeats of the main model, for eyes and for jq."""
    names = ("backend", "why", "device", "dtype", "dimensions", "load_s", "warmup_s")
    return {"model": card and card.name} | {name: getattr(card, name, None) for name in names}


def _word(status: str, code: int, headers: dict[str, str] | None = None) -> Answer:
    return Answer(msgspec.json.encode(Word(status)), status=code, headers=_fresh() | (headers or {}))


def _fresh() -> dict[str, str]:
    return {"cache-control": "no-store"}


def _route(paths: tuple[str, ...], handle: Any, summary: str, **more: Any) -> Route:
    return Route(method="GET", paths=paths, handle=handle, render=render, summary=summary, **more)


ROUTES = (
    _route(("/health",), health, "How the server is, and what it serves.", answer=Health, otherwise={503: Health}),
    _route(
        ("/health/live",), live, "200 while the process should be left running.", answer=Word, otherwise={503: Word}
    ),
    _route(
        ("/health/ready",), ready, "200 once requests are answered at full speed.", answer=Word, otherwise={503: Word}
    ),
    _route(("/ping",), ping, "200 with an empty body.", media_type="text/plain"),
    _route(("/metrics",), metrics, "Prometheus metrics.", media_type="text/plain"),
    # The second path of the two is where a relative link leads from /docs/, the page's address with a slash.
    _route(("/openapi.json", "/docs/openapi.json"), document, "This document.", documented=False),
    _route(("/docs",), docs, "The API's pages.", documented=False),
    _route(("/docs/{asset:str}", "/docs/docs/{asset:str}"), docs_asset, "A file of the API's pages.", documented=False),
    _route(("/",), index, "The page.", media_type="text/html"),
    _route(("/web/{asset:str}",), asset, "A file of the page.", documented=False),
    _route(("/api/v1/live",), watch, "What the page watches, as server-sent events.", documented=False),
    _route(("/api/v1/about",), about, "What the page tells of models and settings.", documented=False),
)
