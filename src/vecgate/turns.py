"""Turns on the event loop: of many requests that are ready at once, one begins in each pass of the loop.

Without them a burst that is ready at once is run at once, and whoever comes next waits for all of it. Knows no request.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """First come, first served; for one event loop, and free of charge while nobody else has come in this pass."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def take(self) -> None:
        """Wait for a turn; it is over with the caller's next wait."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._taken = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # who was cancelled meanwhile needs none
                turn.set_result(None)  # its task runs in the next pass, and after it this is called again
                loop.call_soon(self._next, loop)
                return
        self._taken = False
