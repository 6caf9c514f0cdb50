"""One model in an engine of its own, asked as a client asks; judges nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from vecgate.app import build_engine
from vecgate.core import Call, ModelCard, Vectors
from vecgate.engine.golden import Asked
from vecgate.engine.local import LocalEngine
from vecgate.errors import CommandError
from vecgate.settings import Settings

CALL = Call("verify", 7 * 86_400.0)
"""Its deadline is a week: nobody waits for it but the user, who has Ctrl-C."""


class Loaded:
    """The engine, ready."""

    def __init__(self, engine: LocalEngine, settings: Settings) -> None:
        self.engine = engine
        self.cache = settings.cache_dir.expanduser()

    @property
    def card(self) -> ModelCard:
        return self.engine.status().models[0]

    async def rows(self, asked: Sequence[Asked]) -> Vectors:
        """(N, D) unit rows or (N, 1) logits in the order asked: a call for each role or query."""
        groups: dict[str | None, list[int]] = {}
        for at, (first, _) in enumerate(asked):
            groups.setdefault(first, []).append(at)
        parts = [await self._call(first, [asked[at][1] for at in places]) for first, places in groups.items()]
        rows = np.empty((len(asked), parts[0].shape[1]), np.float32)
        for places, part in zip(groups.values(), parts):
            rows[places] = part
        return rows

    async def at_once(self, asked: Sequence[Asked]) -> Vectors:
        """The same, each text a call of its own, all of them waiting together."""
        return np.concatenate(await asyncio.gather(*(self._call(first, [text]) for first, text in asked)))

    async def _call(self, first: str | None, texts: Sequence[str]) -> Vectors:
        if self.card.task == "embed":
            return (await self.engine.embed(CALL, None, texts, role=first)).vectors
        ranking = await self.engine.rerank(CALL, None, first or "", texts)
        rows = np.empty((len(texts), 1), np.float32)
        rows[[*ranking.order], 0] = ranking.raw
        return rows


@asynccontextmanager
async def loaded(settings: Settings) -> AsyncIterator[Loaded]:
    """Raises CommandError where it can't be loaded."""
    engine = build_engine(settings)
    engine.start()
    try:
        await engine.settled()
        status = engine.status()
        if status.state == "failed":
            raise CommandError(f"it failed to load: {str(status.error).rstrip('.')}")
        yield Loaded(engine, settings)
    finally:
        engine.close()
