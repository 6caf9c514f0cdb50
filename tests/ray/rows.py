"""The real MiniLM in replicas and in this process: the same rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.compat import servers
from tests.ray import stand
from tests.ray.replicas import HEADERS, counted, rows
from tests.ray.stand import Replicated
from tests.whole import Whole
from vecgate.bench.texts import mixed, of_tokens

SAME = 1e-6
"""Of rows of length 1, in float32, from batches that are made up otherwise."""


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    with stand.replicated(tmp_path_factory.mktemp("far"), **servers.real(), MODEL_NAME="minilm") as app:
        app.client.headers.update(HEADERS)
        yield app


def test_rows_are_the_local_engines(tmp_path: Path, far: Replicated) -> None:
    rng = Random(0)
    found = [mixed(rng) for _ in range(40)]
    with Whole(tmp_path, **servers.real(), MODEL_NAME="minilm") as app:
        here = rows(app, found, **HEADERS)
    whole = rows(far, found)
    alone = np.concatenate([rows(far, one) for one in found])
    assert np.abs(whole - here).max() < SAME
    assert np.abs(alone - here).max() < SAME


def test_what_a_client_that_left_had_waiting_is_not_computed(far: Replicated) -> None:
    rng = Random(1)
    many = [of_tokens(rng, 250) for _ in range(600)]

    async def leave() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await far.client.post(stand.EMBED, json={"input": many})

    def dropped() -> float:
        rows(far, "a cat")  # its answer brings what the replica has counted, where that is the one it comes to
        return counted(far, "vecgate_dropped_rows_total")

    far.run(leave())
    stand.until(lambda: dropped() > 0)
