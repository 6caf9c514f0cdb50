"""Ray Serve: engines in replicas that it keeps alive, and gateways before them (only door to ray).

`build` is for a cluster's own config file, `running` for one command on one machine: there the gateway stays in the
command's own process, as it is without Ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import psutil
import ray
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from vecgate import logs
from vecgate.app import build as build_app
from vecgate.app import build_engine
from vecgate.config import load
from vecgate.core import BatchReport, Status, pack, unpack
from vecgate.engine.merging import Lost
from vecgate.engine.parcel import REPORTS, Desk, Parcel, Reply
from vecgate.engine.remote import RemoteEngine
from vecgate.errors import CommandError, NotReady, Overloaded
from vecgate.guard import Guard
from vecgate.metrics import Metrics
from vecgate.settings import Settings

log = logging.getLogger("vecgate")

APPLICATION = "vecgate"
NOWHERE = Path(os.devnull)
"""The folder of a cluster's vecgate.toml and .env: there is none, its config file says it all."""
ONGOING, QUEUED = 16, 256
"""Trips that a replica takes at once, and that each gateway lets wait for one; a trip is up to 128 calls, see merging.py."""
GONE = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError, ReplicaUnavailableError)
"""What a caller is told when whoever had its call is no more; by OutOfMemoryError, that Ray ended it for want of memory."""
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)
"""A line for each trip would cost as much as the trip."""
END_S = 3.0
HEARTBEAT_S = 5.0
RETRY_AFTER_S = 1


class Replica:
    """One engine in a process of its own, which runs once its models are loaded."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # as Serve allows: it waits for the end
        self._stack = ExitStack()
        self._stack.enter_context(logs.logging_to(level=settings.log_level, form=settings.log_format))
        reports: deque[BatchReport] = deque(maxlen=REPORTS)
        self._engine = build_engine(settings, reports.append, aliases=settings.aliases)
        self._engine.on_death = partial(os._exit, 1)  # calls in flight are then made again elsewhere
        self._engine.start()
        self._stack.callback(self._engine.close)
        await self._engine.settled()
        self.check_health()
        self._desk = Desk(serve.get_replica_context().replica_id.unique_id, self._engine, reports)

    def check_health(self) -> None:
        """The device thread's heartbeat: Serve starts another replica where this raises."""
        status = self._engine.status()
        if not status.alive or status.state == "failed":
            raise RuntimeError(status.error or "The device no longer answers.")

    async def answer(self, data: bytes) -> bytes:
        return await self._desk.answer(data)

    def __del__(self) -> None:
        self._stack.close()


class Gateway:
    """The whole HTTP side over a RemoteEngine, behind Serve's own proxy."""

    def __init__(self, settings: Settings, engine: DeploymentHandle[Any]) -> None:
        self._settings, self._engine = settings, engine
        self._stack = ExitStack()
        self._stack.enter_context(logs.logging_to(level=settings.log_level, form=settings.log_format))

    def __serve_build_asgi_app__(self) -> Guard:
        """Serve calls it in the replica: the app can't be pickled."""
        app, _ = build_app(self._settings, make=partial(_remote, self._settings, self._engine))
        return app


ENGINE = serve.deployment(
    Replica,
    name="Engine",
    max_ongoing_requests=ONGOING,
    max_queued_requests=QUEUED,
    health_check_period_s=HEARTBEAT_S,
    logging_config=QUIET,
)
GATEWAY = serve.deployment(serve.ingress()(Gateway), name="Gateway", num_replicas=2, logging_config=QUIET)


def build(args: dict[str, Any]) -> serve.Application:
    """The application for a cluster's config file (import_path: vecgate.ray_serve:build), whose `args` are settings as in
    vecgate.toml. Raises ConfigError."""
    settings = load({**args, "engine": "ray"}, {}, NOWHERE)
    gateway = GATEWAY.options(max_ongoing_requests=settings.max_in_flight)
    return gateway.bind(settings, ENGINE.options(num_replicas=settings.replicas).bind(settings))


@contextmanager
def running(settings: Settings) -> Iterator[Callable[[Metrics], RemoteEngine]]:
    """Replicas on this machine, loaded, until the end of the block; what makes an engine over them. Raises ConfigError,
    CheckpointError and CommandError."""
    build_engine(settings, aliases=settings.aliases).close()  # says what is wrong, and fetches what is missing, once
    log.info("Starting Ray and %d replicas, which takes about 15 s.", settings.replicas)
    _join_log()
    with _ray_of_our_own():
        try:
            handle, status = _started(settings)
        except (RayError, RuntimeError) as error:
            raise CommandError(f"Ray could not start the replicas: {error}") from error
        yield partial(_remote, settings, handle, status=status)


@contextmanager
def _ray_of_our_own() -> Iterator[None]:
    """At the end of the block no process is left of those that began in it: of a Ray that was ended while it started, some
    would stay for a minute (seen)."""
    others = set(psutil.Process().children(recursive=True))
    try:
        yield
    finally:
        begun = set(psutil.Process().children(recursive=True)) - others
        ray.shutdown()
        _, left = psutil.wait_procs(begun, END_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _started(settings: Settings) -> tuple[DeploymentHandle[Any], Status | None]:
    """The replicas, once they are loaded, and how one of them is."""
    cores = os.cpu_count() or 1
    signal.signal(signal.SIGTERM, _left)
    ray.init(
        address="local",
        num_cpus=2 * max(cores, settings.replicas),  # room for one that comes beside one that is not yet gone
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _system_config={"worker_niceness": 0},  # not 15: they do the server's own work
    )
    signal.signal(signal.SIGTERM, _left)  # Ray has put its own there, which ends it without a word to its processes
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=QUIET)
    handle = serve.run(_here(settings, cores), name=APPLICATION, route_prefix=None)
    return handle, unpack(Reply, handle.answer.remote(pack(Parcel(status=True))).result()).status


def _left(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _join_log() -> None:
    """What Ray says in this process goes where our own lines go, where it is an error."""
    for name in ("ray", "ray.serve"):
        theirs = logging.getLogger(name)
        theirs.handlers.clear()
        theirs.propagate = True
        theirs.setLevel(logging.ERROR)


def _here(settings: Settings, cores: int) -> serve.Application:
    """The replicas, with equal shares of this machine: Ray gives each as many threads as it has cores."""
    share: dict[str, float] = {"num_cpus": max(1, cores // settings.replicas)}
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if gpus:  # without a share Ray would hide them
        share["num_gpus"] = gpu_share(gpus, settings.replicas)
    return ENGINE.options(num_replicas=settings.replicas, ray_actor_options=share).bind(settings)


def gpu_share(gpus: float, replicas: int) -> float:
    """Of one GPU, for each replica, so that all have a place: no replica's share lies on two GPUs, and Ray counts in
    ten-thousandths."""
    return 10_000 // ceil(replicas / gpus) / 10_000


def _remote(
    settings: Settings, handle: DeploymentHandle[Any], metrics: Metrics, status: Status | None = None
) -> RemoteEngine:
    return RemoteEngine(
        partial(_trip, handle.answer),
        aliases=settings.aliases,
        status=status,
        on_batch=metrics.on_batch,
        on_shed=partial(metrics.on_shed, "queue"),
    )


async def _trip(answer: Any, data: bytes) -> bytes:
    """remote.Trip over a deployment's method."""
    response = answer.remote(data)
    try:
        replied: bytes = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except BackPressureError as error:
        raise Overloaded(f"All replicas are busy; try again in {RETRY_AFTER_S} s.", RETRY_AFTER_S) from error
    except DeploymentUnavailableError as error:
        raise NotReady("The replicas could not be started; the cluster's log says why.") from error
    except GONE as error:
        raise Lost from error
    return replied
