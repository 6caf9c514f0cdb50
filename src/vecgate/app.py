"""The composition root: Settings -> engine, protocols, guard, joined; holds no logic of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import ceil
from typing import Any

import msgspec
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.plugins import PluginProtocol

from vecgate import __version__, access, protocols
from vecgate.backends import choose, mlx_possible, open_backend, require_one
from vecgate.core import BatchReport, Checkpoint, Status
from vecgate.engine import checkpoint, room
from vecgate.engine.local import TOKENIZE_THREADS, LocalEngine
from vecgate.engine.model import Model
from vecgate.engine.names import Alias
from vecgate.errors import CheckpointError, ConfigError, MethodNotAllowed, NotFound, VecgateError
from vecgate.guard import Guard
from vecgate.metrics import Metrics
from vecgate.protocols import mounting, openapi
from vecgate.server import Life
from vecgate.settings import NO_MODEL, Settings, in_force, short
from vecgate.traces import Traces
from vecgate.traits import Engine, Owned

FLUSH_S = 0.8
"""What the end grants to traces still to be sent: server.py waits EXIT_MARGIN_S past the drain, guard takes 1 s of it."""

BYTES_PER_TOKEN = 4
"""Of a body before it is read: what tells a small call from a large one."""


def build(
    settings: Settings,
    on_ready: Callable[[Status], None] = lambda _: None,
    lost_lines: Callable[[], int] = lambda: 0,
    traces: Traces | None = None,
    make: Callable[[Metrics], Owned] | None = None,
) -> tuple[Guard, Life]:
    """The whole server, not yet loading; raises ConfigError and CheckpointError.

    on_ready: called once, on the device thread, when every model is loaded. lost_lines: of the log, since the start. make:
    another engine than one of this process.
    """
    metrics = Metrics(__version__)
    engine: Owned
    if make is None:
        shed = partial(metrics.on_shed, "queue")
        engine = build_engine(settings, metrics.on_batch, shed, aliases=settings.aliases)
    else:
        engine = make(metrics)
    engine.on_ready = lambda: on_ready(engine.status())
    guard = create_app(settings, engine, metrics, lost_lines, traces)

    def leaving() -> None:
        engine.drain()

    async def drain(timeout_s: float) -> None:
        await guard.drain(timeout_s)
        if traces is not None:
            await traces.flush(FLUSH_S)

    def on_death(tell: Any) -> None:
        engine.on_death = tell

    return guard, Life(leaving=leaving, drain=drain, on_death=on_death, is_first=guard.is_probe)


def build_engine(
    settings: Settings,
    on_batch: Callable[[BatchReport], None] | None = None,
    on_shed: Callable[[], None] = lambda: None,
    *,
    aliases: Iterable[Alias] = (),
) -> LocalEngine:
    """The engine over the settings' models; `start` loads them. Raises ConfigError and CheckpointError.

    aliases: for who is asked by name; a command that takes one model needs none of what another would serve.
    """
    models = models_of(settings)
    room.check([model.checkpoint for model in models], settings.dtype, settings.device_memory_fraction)
    return LocalEngine(
        models,
        aliases=aliases,
        max_rows=settings.max_batch_size,
        batch_tokens=settings.batch_tokens,
        on_batch=on_batch,
        cache=settings.cache_dir.expanduser(),
        verify=settings.verify,
        idle_unload_min=settings.idle_unload_min,
        on_shed=on_shed,
    )


class Bare(Litestar):
    """Without the plugins it looks for by itself: they import pydantic wherever that is installed, a tenth of the time
    until the first answer, for types that no handler here has."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return plugins


def create_app(
    settings: Settings,
    engine: Engine,
    metrics: Metrics | None = None,
    lost_lines: Callable[[], int] = lambda: 0,
    traces: Traces | None = None,
) -> Guard:
    """The ASGI app over any engine; one that is Owned is started and closed by the app's lifespan."""
    metrics = metrics or Metrics(__version__)
    table = protocols.routes()
    render = protocols.render_for(table)
    _check_root(settings.root_path, table)

    def expose(accept: str) -> tuple[str, bytes]:
        return metrics.expose(
            engine.status(),
            accept,
            in_flight=guard.in_flight,
            body_bytes=guard.body_bytes,
            lost_lines=lost_lines(),
        )

    work = {path for route in table if route.method == "POST" for path in route.paths}

    def now() -> Mapping[str, Any]:
        return {"totals": metrics.totals(work, access.PROBES), "in_flight": guard.in_flight, "leaving": guard.draining}

    site = replace(
        _site(settings, expose, table),
        now=now,
        about=partial(_about, settings, engine),
    )
    litestar = Bare(
        route_handlers=mounting.mount(table, engine, site),
        exception_handlers={
            HTTPException: partial(_outside_a_route, table, render, protocols.base_finder(table)),
            Exception: _unforeseen,
        },
        on_startup=[engine.start] if isinstance(engine, Owned) else [],
        on_shutdown=[engine.close] if isinstance(engine, Owned) else [],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )
    guard = Guard(
        litestar,
        render=render,
        routes={path for route in table for path in route.paths},
        keys=settings.api_key,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
        bind_host=settings.host,
        local=settings.uds is not None,
        root=settings.root_path or "",
        proxies=settings.trusted_proxies,
        rate_limit=settings.rate_limit,
        key_concurrency=settings.key_concurrency,
        request_timeout_s=settings.request_timeout_s,
        body_limit_bytes=settings.body_limit_bytes,
        body_memory_bytes=settings.body_memory_bytes,
        max_in_flight=settings.max_in_flight,
        waits_s=lambda length: engine.wait_s(length // BYTES_PER_TOKEN),
        watching=lambda: len(site.watching),
        retry_after_s=partial(_retry_after_s, engine),
        on_request=metrics.on_request,
        on_shed=metrics.on_shed,
        trace=partial(traces.on_request, {card.name: card.task for card in engine.status().models}) if traces else None,
    )
    return guard


def models_of(settings: Settings) -> list[Model]:
    """What the settings name, not yet loaded: MODEL_NAME's, whose files say whether they embed or rerank, then
    CROSS_ENCODER_MODEL's; one of them at least. Raises ConfigError and CheckpointError."""
    require_one(settings.backend)
    names = [name for name in settings.models if name.casefold() != NO_MODEL]
    if len(names) > 1:
        _check_alone(settings, "MODEL_NAME", names)
    if names and len(names) < len(settings.models):
        raise ConfigError(f"MODEL_NAME is {', '.join(settings.models)}; allowed: models, or none alone.")
    if not names and (settings.task or settings.pooling or settings.prompts):
        raise ConfigError(
            "VECGATE_TASK, VECGATE_POOLING and VECGATE_PROMPTS are about MODEL_NAME, which is none: a reranker that needs "
            "them is served as MODEL_NAME."
        )
    if not names and len(settings.rerankers) > 1:
        _check_alone(settings, "CROSS_ENCODER_MODEL", settings.rerankers)
    if not names and not settings.rerankers:
        raise ConfigError("MODEL_NAME is none and CROSS_ENCODER_MODEL is not set; allowed: none beside a reranker.")
    models = [_named(settings, name) for name in names]
    alone = replace(settings, task="rerank", pooling=None, prompts=())
    models += [_model(alone, name, served_name=None if names else settings.served_name) for name in settings.rerankers]
    _check_names([*names, *settings.rerankers], models)
    return models


def _check_alone(settings: Settings, variable: str, names: Sequence[str]) -> None:
    """Raises ConfigError where a setting is about one model and there are more."""
    about_one = {
        "VECGATE_TASK": settings.task,
        "VECGATE_POOLING": settings.pooling,
        "VECGATE_PROMPTS": settings.prompts,
        "VECGATE_SERVED_NAME": settings.served_name,
        "MLX_MODEL_PATH": settings.mlx_model_path and mlx_possible(settings.backend),
    }
    for name, value in about_one.items():
        if value:
            raise ConfigError(
                f"{name} is about one model, and {variable} holds {len(names)} ({', '.join(names)}): which is meant can't "
                "be said, so leave it out, or serve that model by a vecgate of its own."
            )


def _check_names(asked: Sequence[str], models: Sequence[Model]) -> None:
    """Raises ConfigError where two models would answer to one name."""
    known: dict[str, str] = {}
    for name, model in zip(asked, models):
        if model.name.casefold() in known:
            other = known[model.name.casefold()]
            raise ConfigError(f"{other} and {name} would both be served as {model.name!r}: rename the folder of one.")
        known[model.name.casefold()] = name


def _named(settings: Settings, name: str) -> Model:
    """MLX_MODEL_PATH where MLX is what serves it, else the model of that name."""
    if settings.mlx_model_path and mlx_possible(settings.backend):
        model = _model(settings, settings.mlx_model_path, served_name=settings.served_name)
        if model.backend_name == "mlx":
            return model
    return _model(settings, name, served_name=settings.served_name)


def _model(settings: Settings, name: str, *, served_name: str | None) -> Model:
    """One model, found on disk and given a backend; its weights are read later, on the device thread."""
    found = checkpoint.resolve(
        name,
        cache=settings.cache_dir.expanduser(),
        offline=settings.offline,
        allow_pickle=settings.allow_pickle,
        ignore_code=settings.ignore_code,
    )
    read = checkpoint.read(
        found.folder,
        name=found.name,
        task=settings.task,
        aliases=found.aliases,
        revision=found.revision,
        pooling=settings.pooling,
        prompts=dict(settings.prompts),
        allow_pickle=settings.allow_pickle,
        ignore_code=settings.ignore_code or found.ignore_code,
    )
    if served_name:
        read = replace(read, name=served_name, aliases=())
    backend, why = _backend(settings.backend, read)
    opened = partial(
        open_backend,
        backend,
        read,
        device=settings.device,
        dtype=settings.dtype,
        memory_fraction=settings.device_memory_fraction,
    )
    return Model(read, opened, backend, why, replaced=("VECGATE_POOLING",) if settings.pooling else ())


def _backend(requested: str, read: Checkpoint) -> tuple[str, str]:
    """What computes it, and why; MLX reads no pickle."""
    name, why = choose(requested, read.family, read.task)
    if name != "mlx" or not any(path.suffix == ".bin" for path in read.weights):
        return name, why
    if requested == "mlx":
        raise CheckpointError(
            f"{read.name} has its weights as pickle only, which MLX does not read; use BACKEND=torch."
        )
    return choose("torch", read.family, read.task)[0], "its weights are pickle, which MLX does not read"


def _site(
    settings: Settings,
    metrics: Callable[[str], tuple[str, bytes]],
    table: tuple[protocols.Route, ...],
) -> protocols.Site:
    return protocols.Site(
        max_inputs=settings.max_inputs,
        max_texts_per_request=settings.max_texts_per_request,
        max_passages_per_rerank=settings.max_passages_per_rerank,
        batch_size=settings.batch_size,
        max_batch_size=settings.max_batch_size,
        max_in_flight=settings.max_in_flight,
        tokenize_threads=TOKENIZE_THREADS,
        cut=settings.truncate,
        token_ids=settings.token_ids,
        tiktoken_dir=settings.tiktoken_dir,
        metrics=metrics,
        document=cache(lambda: msgspec.json.encode(openapi.document(table, __version__, settings.root_path))),
    )


def _about(settings: Settings, engine: Engine) -> Mapping[str, Any]:
    """What the page tells of how the server was set up; no secrets."""
    folders = engine.folders() if isinstance(engine, Owned) else {}
    return {
        "settings": in_force(settings),
        "folders": {name: short(folder) for name, folder in folders.items()},
    }


def _check_root(root: str | None, table: Iterable[protocols.Route]) -> None:
    """Raises ConfigError where a path of the server's own begins like that: which is meant could not be told."""
    if root and any(_may_begin(path, root) for route in table for path in route.paths):
        raise ConfigError(
            f"ROOT_PATH is {root}, where this server has paths of its own; allowed: another, such as /vecgate."
        )


def _may_begin(template: str, root: str) -> bool:
    """Whether a path of this template can begin with the root: /models/{id:path} with /models/x."""
    own, given = template.split("/"), root.split("/")
    for segment, one in zip(own, given):
        if segment.endswith(":path}"):
            return True
        if segment != one and not segment.startswith("{"):
            return False
    return len(given) <= len(own)


def _retry_after_s(engine: Engine) -> int:
    """Whole seconds until what waits should be done, 1 to 60: queued tokens over the measured rate."""
    queue = engine.status().queue
    wait_s = queue.wait_s or (queue.tokens / queue.tokens_per_s if queue.tokens_per_s else 0.0)
    return min(60, max(1, ceil(wait_s)))


def _outside_a_route(
    table: Iterable[protocols.Route],
    render: Any,
    find: Callable[[str], str | None],
    request: Request[Any, Any, Any],
    error: HTTPException,
) -> Response[bytes]:
    """Litestar's own refusals in the dialect of the path: unknown paths, also such as a wrong base URL leads to, and odd
    methods (TRACE) of those with parameters; an endpoint without parameters refuses a method itself. Any other is
    unforeseen."""
    path = request.scope["path"]
    if error.status_code == 404 and (meant := find(path)) is not None:
        told: VecgateError = NotFound(
            f"There is nothing at {path[:200]!r}, but at {meant[:200]!r}: take {path.removesuffix(meant)[:200]!r} off the end "
            "of the client's base URL."
        )
        path = meant
    elif error.status_code == 404:
        told = NotFound(f"There is nothing at {path[:200]!r}; see /docs for what there is.")
    elif error.status_code == 405:
        allowed = _methods(table, path)
        told = MethodNotAllowed(
            f"{request.method} is not offered at {path[:200]!r}; use {' or '.join(allowed)}.", allowed
        )
    else:
        raise error
    status, headers, body = render(path, told)
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _methods(table: Iterable[protocols.Route], path: str) -> tuple[str, ...]:
    """Those of the path with parameters that this one is of."""
    fixed = {template.partition("{")[0]: route.method for route in table for template in route.paths if "{" in template}
    method = next(method for start, method in fixed.items() if path.startswith(start))
    return ("GET", "HEAD") if method == "GET" else (method,)


def _unforeseen(_request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar would answer in its own shape and log nothing; guard renders what nobody foresaw."""
    raise error
