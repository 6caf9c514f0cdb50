"""One client embeds thousands of chunks while another asks single queries: what each does to the other.

In each round: the queries alone, the bulk alone, then both; in odd rounds both first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vecgate.bench import load, plan
from vecgate.bench.figures import spread
from vecgate.bench.judge import judge
from vecgate.bench.plan import Ask
from vecgate.bench.read import Reader
from vecgate.bench.result import BulkRound, BulkRow, Round
from vecgate.bench.target import Target


@dataclass(frozen=True, slots=True)
class Scene:
    """queries, chunks: the calls of either client. seconds: of the queries alone."""

    queries: Sequence[Ask]
    chunks: Sequence[Ask]
    in_flight: int
    seconds: float
    warm_s: float
    seed: int


async def once(
    target: Target, scene: Scene, readers: tuple[Reader, Reader], number: int, step: Callable[[str], None]
) -> BulkRound:
    """readers: of queries and of chunks, kept over the rounds."""

    async def apart() -> tuple[Round, Round]:
        step("queries alone")
        queries = await _queries(target, scene, number, lambda: asyncio.sleep(scene.seconds))
        step("bulk alone")
        return judge(queries, scene.queries, readers[0]), judge(await _bulk(target, scene), scene.chunks, readers[1])

    async def together() -> tuple[Round, Round]:
        step("both")
        windows: list[load.Window] = []

        async def until() -> None:
            windows.append(await _bulk(target, scene))

        queries = await _queries(target, scene, number, until)
        return judge(queries, scene.queries, readers[0]), judge(windows[0], scene.chunks, readers[1])

    if number % 2:
        beside, alone = await together(), await apart()
    else:
        alone, beside = await apart(), await together()
    return BulkRound(alone[0], beside[0], alone[1], beside[1])


async def _queries(target: Target, scene: Scene, number: int, until: Callable[[], Awaitable[object]]) -> load.Window:
    requests = [target.request(ask) for ask in scene.queries]
    turn = plan.in_turn(scene.queries, scene.seed + number)
    return await load.closed(target.connection, requests, turn, 1, warm_s=scene.warm_s, until=until)


async def _bulk(target: Target, scene: Scene) -> load.Window:
    return await load.all_of(target.connection, [target.request(ask) for ask in scene.chunks], scene.in_flight)


def row(index: int, scene: Scene, rounds: list[BulkRound], batch_s: float | None) -> BulkRow:
    """batch_s: the time of one full batch, where it is known."""
    p99 = [one.query_beside.p99_ms for one in rounds if one.query_beside.p99_ms is not None]
    return BulkRow(
        server=index,
        texts=sum(len(ask.texts) for ask in scene.chunks),
        texts_a_call=len(scene.chunks[0].texts),
        calls_in_flight=scene.in_flight,
        rounds=rounds,
        query_alone_p99_ms=spread([one.query_alone.p99_ms for one in rounds if one.query_alone.p99_ms is not None]),
        query_beside_p50_ms=spread([one.query_beside.p50_ms for one in rounds if one.query_beside.p50_ms is not None]),
        query_beside_p99_ms=spread(p99),
        rate_kept=spread(
            [one.bulk_beside.texts_per_s / one.bulk_alone.texts_per_s for one in rounds if one.bulk_alone.texts_per_s]
        ),
        p99_over_batch=spread([one / 1e3 / batch_s for one in p99]) if batch_s else None,
    )
