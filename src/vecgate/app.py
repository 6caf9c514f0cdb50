"""The composition root: Settings -> engine, protocols, guard, joined; holds no logic of its own."""

from __future__ import annotations

from functools import cache, partial
from math import ceil
from typing import Any

import msgspec
from litestar import Litestar, Request
from litestar.exceptions import HTTPException
from litestar.response.base import ASGIResponse

from vecgate import __version__, protocols
from vecgate.backends import choose, open_backend
from vecgate.config import Settings
from vecgate.core import Engine, Task
from vecgate.engine import checkpoint
from vecgate.engine.local import LocalEngine, Model
from vecgate.errors import MethodNotAllowed, NotFound, VecgateError
from vecgate.guard import Guard
from vecgate.metrics import Metrics
from vecgate.protocols import openapi
from vecgate.server import Life


def build(settings: Settings) -> tuple[Guard, Life]:
    """The whole server, not yet loading; raises ConfigError and CheckpointError."""
    metrics = Metrics(__version__)
    engine = build_engine(settings, metrics)
    guard = create_app(settings, engine, metrics)

    def leaving() -> None:
        engine.drain()

    def on_death(tell: Any) -> None:
        engine.on_death = tell

    return guard, Life(leaving=leaving, drain=guard.drain, on_death=on_death)


def build_engine(settings: Settings, metrics: Metrics) -> LocalEngine:
    """The engine over the settings' models; `start` loads them."""
    models = [_model(settings, settings.model_name, "embed")]
    if settings.cross_encoder_model:
        models.append(_model(settings, settings.cross_encoder_model, "rerank"))
    return LocalEngine(
        models, max_rows=settings.max_batch_size, batch_tokens=settings.batch_tokens, on_batch=metrics.on_batch
    )


def create_app(settings: Settings, engine: Engine, metrics: Metrics | None = None) -> Guard:
    """The ASGI app over any engine. An engine with `start` and `close` is started and closed by the app's lifespan."""
    metrics = metrics or Metrics(__version__)
    table = protocols.routes()
    render = protocols.render_for(table)
    litestar = Litestar(
        route_handlers=protocols.mount(table, engine, _site(settings, engine, metrics, table)),
        exception_handlers={HTTPException: partial(_outside_a_route, render)},
        on_startup=[engine.start] if isinstance(engine, LocalEngine) else [],
        on_shutdown=[engine.close] if isinstance(engine, LocalEngine) else [],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )
    return Guard(
        litestar,
        render=render,
        keys=settings.api_key,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
        bind_host=settings.host,
        request_timeout_s=settings.request_timeout_s,
        body_limit_bytes=settings.body_limit_bytes,
        body_memory_bytes=settings.body_memory_bytes,
        max_in_flight=settings.max_in_flight,
        retry_after_s=partial(_retry_after_s, engine),
        on_request=metrics.on_request,
        on_shed=metrics.on_shed,
    )
