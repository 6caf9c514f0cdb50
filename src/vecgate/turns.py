"""Turns on the event loop: of many requests that are ready at once, a few begin in each pass of the loop.

Without them a burst that is ready at once is run at once, and whoever comes next waits for all of it. `Loop` bounds how many
tasks the server begins, `Turns` how many of them go on to their work. Knows no request but by its ASGI scope.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")

SHARE_S = 0.001
"""Of a pass, for whoever comes in it: about as many small requests as cost what another pass does."""


STARTS = 32
"""Requests that begin in a pass: about 3 ms. Fewer cost a burst more passes than they spare a probe."""


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which a burst of requests, which granian hands over from its own thread one by one, begins in parts.

    is_first: whether a request with this ASGI scope goes before all others. Every other callback is asyncio's alone. Measured
    in bursts of 2,000 on two cores: without it 800 first steps stood in one pass of 180 ms, before any could wait its turn.
    """

    def __init__(self, is_first: Callable[[dict[str, Any]], bool], starts: int = STARTS) -> None:
        super().__init__()
        self._is_first = is_first
        self._most = starts
        self._starts: deque[tuple[Callable[..., object], tuple[Any, ...], Context]] = deque()
        self._feeding = False

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        # granian's last argument is the request's watcher, which has its scope
        scope = getattr(args[-1], "scope", None) if args else None
        if scope is None or self._is_first(scope):
            return super().call_soon_threadsafe(callback, *args, context=context)
        self._starts.append((callback, args, copy_context() if context is None else context))
        if self._feeding:
            return asyncio.Handle(callback, args, self, context)  # of no use to cancel: granian drops it
        self._feeding = True
        return super().call_soon_threadsafe(self._feed)

    def _feed(self) -> None:
        try:
            for _ in range(min(self._most, len(self._starts))):
                callback, args, context = self._starts.popleft()
                context.run(callback, *args)
        finally:
            self._feeding = False
            if self._starts:  # asked last, as another thread appends first and asks then
                self._feeding = True
                self.call_soon(self._feed)


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
