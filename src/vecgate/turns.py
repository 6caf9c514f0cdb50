"""Turns on the event loop: of many requests that are ready at once, a few begin in each pass of the loop.

Without them a burst that is ready at once is run at once, and whoever comes next waits for all of it. Knows no request.
"""

from __future__ import annotations

import asyncio
from collections import deque

SHARE_S = 0.001
"""Of a pass, for whoever comes in it: about as many small requests as cost what another pass does."""


class Turns:
    """First come, first served; for one event loop, and free of charge within the first `share_s` of a pass. Once those are
    over, one more begins in each pass."""

    def __init__(self, share_s: float = SHARE_S) -> None:
        self.share_s = share_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until_s: float | None = None

    async def take(self) -> None:
        """Wait for a turn; it is over with the caller's next wait."""
        loop = asyncio.get_running_loop()
        if self._until_s is None:
            self._until_s = loop.time() + self.share_s
            loop.call_soon(self._next, loop)
        elif self._waiting or loop.time() >= self._until_s:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # who was cancelled meanwhile needs none
                turn.set_result(None)  # its task runs in the next pass, and after it this is called again
                self._until_s = loop.time() + self.share_s
                loop.call_soon(self._next, loop)
                return
        self._until_s = None
