"""The whole app in this process: settings as an operator writes them -> the app over the fake backend -> a client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from unittest.mock import patch

import httpx

from tests import small
from vecgate import config
from vecgate.app import build
from vecgate.backends import fake
from vecgate.metrics import Metrics
from vecgate.traits import Owned

T = TypeVar("T")

LIMIT_S = 60.0
"""For a start or an end that hangs."""


class Whole:
    """`with Whole(folder, NAME="value") as app`: loaded (or failed), asked without a socket, closed at the end.

    What is not named is the default, but the model is tests/small.py's and the backend the fake, which follows `script`.
    """

    make: Callable[[Metrics], Owned] | None = None
    """See app.build: another engine than one of this process."""

    def __init__(self, cwd: Path, script: fake.Script | None = None, /, **names: str) -> None:
        model = cwd / "small"
        if "MODEL_NAME" not in names and not model.exists():
            small.folder(model)
        given = {"BACKEND": "fake", "MODEL_NAME": str(model), "VECGATE_CACHE_DIR": str(cwd / "cache"), **names}
        self.settings = config.load({}, given, cwd)
        self.script = script or fake.Script()
        self.lost_lines = 0

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        self._patch = patch.object(fake, "load", partial(fake.load, script=self.script))
        self._patch.start()
        try:
            self.run(self._start())
            self.wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.run(self._end())
        finally:
            self._stop()

    def wait(self) -> None:
        """Until it is loaded, or failed to."""
        while self.get("/health/ready").json()["status"] in ("loading", "warming"):
            time.sleep(0.002)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def in_time() -> T:
            async with asyncio.timeout(LIMIT_S):
                return await work

        return self._runner.run(in_time())

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **more))

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """`body`: bytes as they are, anything else as JSON."""
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return self.ask("POST", path, headers={"content-type": "application/json", **headers}, **content)

    async def _start(self) -> None:
        self.app, self.life = build(self.settings, lost_lines=lambda: self.lost_lines, make=self.make)
        self._asked: asyncio.Queue[Any] = asyncio.Queue()
        self._told: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan = asyncio.ensure_future(self.app(scope, self._asked.get, self._told.put))
        await self._step("startup")
        transport = httpx.ASGITransport(app=self.app, client=("127.0.0.1", 5))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9000")

    async def _end(self) -> None:
        await self.client.aclose()
        await self._step("shutdown")
        await self._lifespan

    async def _step(self, name: str) -> None:
        await self._asked.put({"type": f"lifespan.{name}"})
        told = await self._told.get()
        assert told["type"] == f"lifespan.{name}.complete", told

    def _stop(self) -> None:
        self._patch.stop()
        self._runner.close()
