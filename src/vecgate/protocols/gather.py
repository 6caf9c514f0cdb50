"""Several calls of one request, side by side in the engine, and what they took as one report.

Knows awaitables and core.Applied, no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from vecgate.core import Applied

T = TypeVar("T")

AT_ONCE = 64
"""Calls of one request in the engine at a time: enough to fill the device, few enough that others get their turn."""


async def side_by_side(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What the calls give, in their order; the first error, or a cancellation, ends them all."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(call: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await call()

    tasks = [asyncio.create_task(one(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def together(done: Sequence[Applied]) -> Applied:
    """Several calls' work as one report. They wait and are computed side by side, so the longest time counts; the model
    is the first one's."""
    return replace(
        done[0],
        space=done[0].space if len({one.space for one in done}) == 1 else None,
        tokens=tuple(count for one in done for count in one.tokens),
        original=tuple(count for one in done for count in one.original),
        query_tokens=sum(one.query_tokens for one in done),
        cut_queries=tuple(cut for one in done for cut in one.cut_queries),
        queue_s=max(one.queue_s for one in done),
        tokenize_s=sum(one.tokenize_s for one in done),
        forward_s=max(one.forward_s for one in done),
    )
