"""The mixed part: well-formed calls of many routes, all checked, while others leave, send rubbish and sit there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from typing import cast

from tests.soak import abuse
from tests.soak.calls import Calls
from tests.soak.stand import Stand, Watch
from tests.soak.tally import Outcome, Tally, rows
from tests.soak.wire import Connection, Lost, Place

WARM_SHARE = 0.4
"""Of the time, until memory counts: every kind of request and trouble has been there by then."""
LEAVERS, BAD, SITTERS = 4, 2, 60
NEW_SOCKET = 0.1
"""Of the calls, come on a new connection."""
GROWTH_BYTES = 64 * 2**20
"""Of resident memory, over the highest of the warm-up; measured: up to 51 in a minute, 34 in three."""
PEAK_BYTES = 512 * 2**20
LIVE_S = 0.25
EMPTY_S = 20.0
"""Until the queue must have drained."""


async def call(place: Place, tally: Tally, calls: Calls, rng: random.Random, ended: Callable[[], bool]) -> None:
    """One call after the other, each judged."""
    async with Connection(place) as one:
        while not ended():
            made = calls.next()
            begun = perf_counter()
            try:
                answer = await one.ask(made.data)
            except Lost as lost:
                tally.add(made.kind, "lost", why=str(lost))
                continue
            seconds = perf_counter() - begun
            outcome, why = made.judge(answer)
            tally.add(made.kind, cast(Outcome, outcome), seconds, why)
            if outcome == "refused":
                await asyncio.sleep(0.2)
            if rng.random() < NEW_SOCKET:
                one.close()


async def _load(stand: Stand, watch: Watch, tally: Tally, seconds: float, clients: int) -> None:
    begun = monotonic()

    def ended() -> bool:
        return monotonic() - begun > seconds

    async with asyncio.TaskGroup() as tasks:
        for seed in range(clients):
            calls, rng = Calls(stand.oracle, seed), random.Random(seed)
            tasks.create_task(call(stand.place, tally, calls, rng, ended))
        for seed in range(LEAVERS):
            calls, rng = Calls(stand.oracle, -1 - seed), random.Random(-1 - seed)
            tasks.create_task(abuse.leave(stand.place, tally, calls, rng, ended))
        for seed in range(BAD):
            tasks.create_task(abuse.bad_input(stand.place, tally, random.Random(seed), ended))
        for seed in range(SITTERS):
            tasks.create_task(abuse.sit(stand.place, random.Random(seed), ended))
        await asyncio.sleep(WARM_SHARE * seconds)
        watch.settled()


async def _drained(stand: Stand) -> str | None:
    """What the server still holds of clients that are gone."""
    if (died := stand.died()) is not None:
        return died
    until = monotonic() + EMPTY_S
    while True:
        waiting, held = stand.metric("vecgate_queue_items"), stand.metric("vecgate_body_bytes")
        if not waiting and not held:
            return None
        if monotonic() > until:
            return f"{waiting:.0f} rows wait and {held:.0f} bytes of bodies are held though every client is gone"
        await asyncio.sleep(0.2)


def run(folder: Path, seconds: float, clients: int, timed: bool) -> list[str]:
    """Prints the table; what was not as it must be."""
    tally = Tally()
    with Stand(folder) as stand, Watch(stand) as watch:
        asyncio.run(_load(stand, watch, tally, seconds, clients))
        left_over = asyncio.run(_drained(stand))
        footprint = watch.footprint
    print(*rows(tally), watch.live, f"{footprint}; {watch.course}", sep="\n")
    found: list[str | None] = [*tally.told, left_over]
    found += [] if tally.clean else [f"lost {tally.of('lost')}, wrong {tally.of('wrong')}; 0 are allowed"]
    found += [] if tally.of("right") > clients else [f"only {tally.of('right')} right answers"]
    if footprint.after - footprint.before > GROWTH_BYTES or footprint.peak > PEAK_BYTES:
        found.append(f"{footprint}: {GROWTH_BYTES >> 20} MiB more and a peak of {PEAK_BYTES >> 20} are allowed")
    found.append(watch.late(LIVE_S) if timed else None)
    return [one for one in found if one]
