"""Four kinds of trouble, one at a time, each while /health/live is asked by another process: it must answer at once.

A burst, giant inputs, sockets that sit there, a storm of clients that leave.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic, perf_counter

from tests.soak import abuse
from tests.soak.calls import Calls
from tests.soak.stand import Stand, Watch
from tests.soak.tally import Outcome, Tally, share
from tests.soak.wire import Connection, Lost, Place, request

LIVE_S = 0.25
BUSY = (429, 503)
BURST = 2000
STORM = 900
SITTERS = 1900
SITTING_S = 12.0
"""Longer than a silent body is waited for."""
LIMIT_BYTES = 32 * 2**20
IN_FLIGHT = 500
"""A limit that the second burst goes over."""

Scenario = Callable[[Stand, Tally], Awaitable[None]]


async def _ask(place: Place, tally: Tally, kind: str, data: bytes, allowed: tuple[int, ...]) -> None:
    begun = perf_counter()
    async with Connection(place) as one:
        try:
            answer = await one.ask(data)
        except Lost as lost:
            tally.add(kind, "lost", why=str(lost))
            return
    if answer.status not in allowed or (answer.status in BUSY and "retry-after" not in answer.headers):
        tally.add(kind, "wrong", why=f"{answer.status} {answer.body[:200]!r}")
    else:
        outcome: Outcome = "right" if answer.status == 200 else "refused" if answer.status in BUSY else "rejected"
        tally.add(kind, outcome, perf_counter() - begun)


async def burst(stand: Stand, tally: Tally) -> None:
    """Thousands of one-text requests at once, without a retry: each gets an answer."""
    calls = Calls(stand.oracle, 1)
    asks = (_ask(stand.place, tally, "burst", _untroubled(calls), (200, 429, 503)) for _ in range(BURST))
    await asyncio.gather(*asks)


def _untroubled(calls: Calls) -> bytes:
    while (made := calls.openai(1, "float")).trouble:
        pass
    return made.data


async def giants(stand: Stand, tally: Tally) -> None:
    """Texts of a million characters in several shapes, and bodies as large as allowed."""
    million = {
        "words": "w1 w2 w3 " * (10**6 // 9),
        "one word": "w" * 10**6,
        "blanks": " " * 10**6,
        "dots": "." * 10**6,
    }
    bodies = {
        f"a million of {name}": json.dumps({"input": text, "model": "m"}).encode() for name, text in million.items()
    }
    text = "w1 w2 " * ((LIMIT_BYTES - 1000) // 6)
    bodies["32 MiB, one text"] = json.dumps({"input": text, "model": "m"}).encode()
    many = [text[: (LIMIT_BYTES - 100_000) // 2048]] * 2048
    bodies["32 MiB, 2,048 texts"] = json.dumps({"input": many, "model": "m", "encoding_format": "base64"}).encode()
    bodies["32 MiB of numbers"] = b'{"model": "m", "input": [' + b"1," * (LIMIT_BYTES // 2 - 100) + b"1]}"
    bodies["32 MiB of nesting"] = b'{"model": "m", "input": ' + b"[" * (LIMIT_BYTES - 100)
    bodies["32 MiB of nothing"] = b'{"model": "m", "input": "w1", "user": "' + b" " * (LIMIT_BYTES - 100) + b'"}'
    asks = [
        _ask(stand.place, tally, kind, request("POST", path, body), (200, 400, 413, 422, 429))
        for kind, body in bodies.items()
        for path in ("/v1/embeddings",)
    ]
    tokenize = request("POST", "/tokenize", json.dumps({"inputs": million["dots"]}).encode())
    asks.append(_ask(stand.place, tally, "tokenise a million", tokenize, (200, 400, 413, 422)))
    for ask in asks:  # one by one, and then all at once
        await ask
    again = [
        _ask(stand.place, tally, kind, request("POST", "/v1/embeddings", body), (200, 400, 413, 422, 429))
        for kind, body in bodies.items()
    ]
    await asyncio.gather(*again)


async def sitters(stand: Stand, tally: Tally) -> None:
    """Slow and silent sockets by the hundred, while a few honest clients ask."""
    begun = monotonic()

    def ended() -> bool:
        return monotonic() - begun > SITTING_S

    async def honest(seed: int) -> None:
        calls = Calls(stand.oracle, seed)
        while not ended():
            await _ask(stand.place, tally, "honest", _untroubled(calls), (200,))

    slow = [abuse.sit(stand.place, random.Random(seed), ended) for seed in range(SITTERS)]
    await asyncio.gather(*slow, *(honest(seed) for seed in range(4)))


async def storm(stand: Stand, tally: Tally) -> None:
    """Clients that ask for much and are gone at once; who comes after them is answered."""
    calls = Calls(stand.oracle, 2)

    async def gone(at: int) -> None:
        async with Connection(stand.place) as one:
            await one.send(calls.openai(2048 if at % 30 == 0 else 32, "float").data)
            await asyncio.sleep(random.Random(at).uniform(0, 0.5))
            one.reset()
        tally.add("left", "left")

    await asyncio.gather(*(gone(at) for at in range(STORM)))
    for _ in range(50):
        await _ask(stand.place, tally, "after the storm", _untroubled(calls), (200,))


SCENARIOS: tuple[tuple[str, Scenario, dict[str, str]], ...] = (
    ("burst", burst, {}),
    ("burst, few", burst, {"VECGATE_MAX_IN_FLIGHT": str(IN_FLIGHT)}),
    ("giants", giants, {}),
    ("sitters", sitters, {}),
    ("storm", storm, {}),
)
"""With what the server is told beside its defaults."""


COLUMNS: tuple[Outcome, ...] = ("right", "refused", "rejected", "left", "lost", "wrong")


def run(folder: Path, timed: bool, only: str = "") -> list[str]:
    """Prints a line for each; what was not as it must be. only: names with semicolons between them."""
    counts = "".join(f"{name:>9}" for name in COLUMNS)
    print(f"{'scenario':<12}{'requests':>10}{counts}{'p50 ms':>9}{'p99 ms':>9}")
    found = []
    for name, scenario, settings in SCENARIOS:
        if only and name not in only.split(";"):
            continue
        tally = Tally()
        with Stand(folder / name.replace(", ", "-"), **settings) as stand:
            with Watch(stand) as watch:
                asyncio.run(_alone(scenario, stand, tally))
            print(_line(name, tally), f"{watch.live}; {watch.footprint}", sep="   ", flush=True)
            died = stand.died()
        found += [f"{name}: {why}" for why in (*tally.told, died, watch.late(LIVE_S) if timed else None) if why]
    return found


def _line(name: str, tally: Tally) -> str:
    seconds = [one for some in tally.seconds.values() for one in some]
    counts = "".join(f"{tally.of(column):>9}" for column in COLUMNS)
    return f"{name:<12}{tally.requests:>10}{counts}{share(seconds, 0.5) * 1e3:>9.0f}{share(seconds, 0.99) * 1e3:>9.0f}"


async def _alone(scenario: Scenario, stand: Stand, tally: Tally) -> None:
    await scenario(stand, tally)
    await asyncio.sleep(2)  # for what it left behind
