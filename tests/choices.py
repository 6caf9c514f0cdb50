"""What the server's choices cost over a socket: `python -m tests.choices` asks servers without a model, in turns.

Each answers the same request for one row of 384 numbers: granian with a bare handler by its ASGI and by its RSGI interface, the
same ASGI handler as a route of Litestar, and vecgate's whole app over an engine that answers at once; `null` is the bench's
server that does nothing. `python -m tests.choices serve NAME` serves one of them.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from granian.constants import HTTPModes, Interfaces
from litestar import Litestar
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from tests.cost import app, bare
from vecgate import server
from vecgate.bench import load, null, plan
from vecgate.bench.figures import percentile
from vecgate.bench.wire import Connection, Place

ROUNDS, WARM_S, WINDOW_S = 5, 0.5, 2.0
CLIENTS = (1, 64)


async def rsgi(scope: Any, protocol: Any) -> None:
    """The bare handler's work by granian's own interface."""
    sent: dict[str, Any] = {}

    async def receive() -> dict[str, Any]:
        return {"body": await protocol()}

    async def send(message: dict[str, Any]) -> None:
        sent.update(message)

    await bare(scope, receive, send)
    headers = [(name.decode(), value.decode()) for name, value in sent["headers"]]
    protocol.response_bytes(sent["status"], headers, sent["body"])


def route() -> Any:
    """The bare handler as Litestar would be asked for it."""

    @asgi("/v1/embeddings", copy_scope=False)
    async def embeddings(scope: Scope, receive: Receive, send: Send) -> None:
        await bare(scope, receive, send)

    return Litestar([embeddings], openapi_config=None, logging_config=None)


SERVED: dict[str, Callable[[], tuple[Any, Interfaces]]] = {
    "granian, ASGI": lambda: (bare, Interfaces.ASGI),
    "granian, RSGI": lambda: (rsgi, Interfaces.RSGI),
    "Litestar route": lambda: (route(), Interfaces.ASGI),
    "vecgate": lambda: (app(), Interfaces.ASGI),
}
COMMANDS = {
    "null": [sys.executable, "-P", str(Path(null.__file__))],
    **{name: [sys.executable, "-m", "tests.choices", "serve", name] for name in SERVED},
}


async def serve(name: str) -> None:
    """On a free port, which is told on standard output, until standard input ends; the loop is vecgate's."""
    handler, interface = SERVED[name]()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listener = server.Listener(
        handler,
        address="127.0.0.1",
        port=port,
        interface=interface,
        http=HTTPModes.http1,
        websockets=False,
        log_enabled=False,
    )
    serving = asyncio.create_task(listener.serve())
    await asyncio.to_thread(_wait_for, port)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    listener.stop()  # type: ignore[no-untyped-call]
    await serving


def _wait_for(port: int) -> None:
    while True:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        sleep(0.05)


async def window(place: Place, clients: int, window_s: float) -> tuple[float, float]:
    """Median latency in ms and requests/s. Raises AssertionError where a request failed."""
    ask = plan.asks(plan.MIXES["queries"], 0, 1)[0]
    request = place.request("POST", "/v1/embeddings", plan.body(ask, "stub", "base64"))
    seen = await load.closed(
        lambda: Connection(place, 10.0),
        [request],
        repeat(0),
        clients,
        warm_s=WARM_S,
        until=partial(asyncio.sleep, window_s),
    )
    failed = {shot.kind for shot in seen.shots} - {None}
    assert not failed, failed
    inside = [shot for shot in seen.shots if seen.begin_s <= shot.end_s <= seen.end_s]
    latencies = sorted(shot.end_s - shot.begin_s for shot in inside)
    return 1e3 * percentile(latencies, 0.5), len(inside) / (seen.end_s - seen.begin_s)


async def measure(rounds: int = ROUNDS, window_s: float = WINDOW_S) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """By server and clients, of each round: median latency in ms, requests/s."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    running = {}
    try:
        for name, command in COMMANDS.items():
            running[name] = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        places = {}
        for name, process in running.items():
            assert process.stdout is not None
            places[name] = Place.of(f"http://127.0.0.1:{int(await process.stdout.readline())}")
        for _ in range(rounds):
            for clients in CLIENTS:
                for name, place in places.items():
                    found.setdefault((name, clients), []).append(await window(place, clients, window_s))
    finally:
        for process in running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()
    return found


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["serve"]:
        sys.setswitchinterval(server.SWITCH_INTERVAL_S)
        asyncio.run(serve(argv[1]))
        return 0
    found = asyncio.run(measure())
    print(f"| server | p50 ms, {CLIENTS[0]} client (range) | requests/s, {CLIENTS[1]} clients (range) |\n|---|---|---|")
    for name in COMMANDS:
        one = sorted(ms for ms, _ in found[name, CLIENTS[0]])
        many = sorted(rate for _, rate in found[name, CLIENTS[1]])
        print(
            f"| {name} | {median(one):.2f} ({one[0]:.2f}-{one[-1]:.2f}) "
            f"| {median(many):.0f} ({many[0]:.0f}-{many[-1]:.0f}) |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
