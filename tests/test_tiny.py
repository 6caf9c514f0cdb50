"""One embed and one rerank through the whole engine on the fake backend: the first thing to break, in milliseconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from tests import small
from vecgate.core import Call, Embeddings, Ranking


def test_embed_and_rerank(tmp_path: Path) -> None:
    models = [small.model(small.checkpoint(tmp_path)), small.model(small.checkpoint(tmp_path, "rerank"))]

    async def calls() -> tuple[Embeddings, Ranking]:
        with small.Served(*models) as engine:
            await engine.settled()
            found = await engine.embed(Call("1"), None, ["paris is the capital of france", "dogs bark"])
            ranked = await engine.rerank(
                Call("2"), None, "what is the capital of france ?", ["dogs bark", "the capital"]
            )
            return found, ranked

    found, ranked = asyncio.run(calls())
    assert found.vectors.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert found.applied.tokens == (8, 4)
    assert (ranked.order, ranked.method) == ((1, 0), "cross-encoder")
