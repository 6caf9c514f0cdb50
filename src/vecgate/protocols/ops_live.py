"""What the page watches: one stream of server-sent events, a reading of the counters each second while somebody looks.

Belongs to ops.py alone, which says what is read. Keeps no history and no rates: the page takes the differences.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec

from vecgate.errors import Overloaded
from vecgate.protocols import Answer, Ask, Part, timer

TICK_S = 1.0
STREAMS = 8
"""Most streams at once, over all who look."""


def stream(ask: Ask, read: Callable[[], tuple[Any, bool]]) -> Answer:
    """Events of what `read` gives, until it says that it was the last one, or before REQUEST_TIMEOUT would break them off:
    the page then comes back. Raises Overloaded."""
    if len(ask.site.watching) >= STREAMS:
        raise Overloaded(f"{STREAMS} pages watch already, the most at once; close one.", 10)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx would hold the events back
    return Answer(_events(ask, read), media_type="text/event-stream", headers=headers)


async def _events(ask: Ask, read: Callable[[], tuple[Any, bool]]) -> AsyncGenerator[Part, None]:
    elapsed_s, seat = timer(), object()
    ask.site.watching.add(seat)
    try:
        while True:
            reading, last = read()
            yield Part(b"data: " + msgspec.json.encode(reading) + b"\n\n")
            if last or elapsed_s() + 2 * TICK_S > ask.call.timeout_s:
                return
            await asyncio.sleep(TICK_S)
    finally:
        ask.site.watching.discard(seat)
