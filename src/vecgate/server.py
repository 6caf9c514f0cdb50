"""The server: granian embedded in this process, the signals that end it, and the exit status (only door to granian).

One process and one model: granian's own workers would each hold a copy of the weights. Embedded rather than granian's
process server because the process then knows of SIGTERM at once: readiness goes 503, bodies on their way end, what is
in flight gets its drain time, and a second signal leaves at once. Knows no protocol and no model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

from vecgate.place import Place, check_unanswered, free_place
from vecgate.turns import Loop

log = logging.getLogger("vecgate.server")

BACKLOG = 4096
BACKPRESSURE = 16_384
"""granian counts connections here, idle ones too; shedding is guard's work, so this only has to be out of the way."""
HEADER_TIMEOUT_MS = 15_000
"""For a request's headers and for idle keep-alive; a proxy's own idle timeout belongs below it."""
SWITCH_INTERVAL_S = 0.00002
"""A thread that needs the interpreter back waits up to this long behind another one that computes in Python. As the thread
that reads requests does for each of them: in a burst of 2,000, /health/live waited 288 ms at 0.5 ms and 165 at this; no
forward was slower for it (`vecgate bench`, two servers in turns)."""
EXIT_MARGIN_S = 2.0
"""Past the drain time, what is left (a connection that will not close, a device that hangs) is abandoned."""


@dataclass(frozen=True, slots=True)
class Life:
    """What the server asks of the app: which request goes before a burst, by its ASGI scope, and what its end needs.

    leaving: told at the first signal. drain: waits for the work in flight, at most the given seconds. on_death: takes
    a callback for the death of the device thread, called on whatever thread sees it.
    """

    leaving: Callable[[], None]
    drain: Callable[[float], Awaitable[None]]
    on_death: Callable[[Callable[[], None]], None]
    is_first: Callable[[dict[str, Any]], bool] = lambda _: False


class Listener(Server):
    """granian's server on a port of its own: granian itself would let another server of the same user listen beside it
    (SO_REUSEPORT), and of two that start at once each would get half of the clients (seen)."""

    def _init_shared_socket(self) -> None:
        if self.bind_uds:
            super()._init_shared_socket()  # type: ignore[no-untyped-call]
            return
        family = socket.AF_INET6 if ":" in self.bind_addr else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.bind_addr, self.bind_port))
            listening.listen(self.backlog)
            listening.setblocking(False)
            self._shd = SocketHolder(listening.detach(), False, self.backlog)  # type: ignore[assignment, call-arg]


def run(app: Any, life: Life, place: Place, drain_timeout_s: float) -> int:
    """Serve until a signal or the device thread's death; the exit status (0 after a drain, 1 after a death)."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=partial(Loop, life.is_first)) as runner:
        return runner.run(_serve(app, life, place, drain_timeout_s))


async def _serve(app: Any, life: Life, place: Place, drain_timeout_s: float) -> int:
    cert, key = place.tls or (None, None)
    server = Listener(
        app,
        address=place.address,
        port=place.port,
        uds=place.uds,
        ssl_cert=cert,
        ssl_key=key,
        ssl_protocol_min=SSLProtocols.tls12,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=BACKPRESSURE,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_TIMEOUT_MS),
        log_enabled=False,
    )
    server.uds_permissions = place.uds_mode  # which Server's own arguments leave out
    logging.getLogger("_granian").setLevel(logging.ERROR)  # its start-up lines would stand beside ours
    loop = asyncio.get_running_loop()
    told, died = asyncio.Event(), asyncio.Event()
    _on_signals(told, place)
    life.on_death(partial(_tell, loop, died))
    serving = asyncio.create_task(server.serve())
    ends = [asyncio.create_task(told.wait()), asyncio.create_task(died.wait())]
    await asyncio.wait([serving, *ends], return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
    if serving.done():
        if serving.exception() is not None:
            _still_free(place)  # says so where another process took the port since it was tried
        serving.result()
        return 1
    status = 1 if died.is_set() else 0
    abandoned = _abandon_after(drain_timeout_s + EXIT_MARGIN_S, status, place)
    life.leaving()
    log.info("Leaving: up to %g s for the requests in flight.", drain_timeout_s)
    await life.drain(drain_timeout_s)
    server.stop()  # type: ignore[no-untyped-call]
    await serving
    abandoned.cancel()
    log.info("Left with status %d.", status)
    return status


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set the event from any thread."""
    loop.call_soon_threadsafe(event.set)


def _still_free(place: Place) -> None:
    if place.uds is None:
        free_place(place.address, place.port)
    else:
        check_unanswered(place.uds)


def _on_signals(told: asyncio.Event, place: Place) -> None:
    """The first SIGINT, SIGTERM or (where nohup has not said otherwise) SIGHUP of a terminal that closes asks for a drain;
    the second leaves at once with 130 (or 143, 129)."""

    def on(number: int) -> None:
        if told.is_set():
            _leave(128 + number, place)
        told.set()

    loop = asyncio.get_running_loop()
    closing = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    for number in (signal.SIGINT, signal.SIGTERM, *closing):
        loop.add_signal_handler(number, on, number)


def _leave(status: int, place: Place) -> NoReturn:
    """At once, with nothing waited for."""
    place.vacate()
    os._exit(status)


def _abandon_after(seconds: float, status: int, place: Place) -> threading.Timer:
    """Leave in any case: a thread of its own, since the loop may be what hangs."""
    timer = threading.Timer(seconds, _leave, (status, place))
    timer.daemon = True
    timer.start()
    return timer


def _raise_file_limit() -> None:
    """Every connection is a file; macOS starts with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.warning("The limit of open files stays %d: %s.", soft, error)
