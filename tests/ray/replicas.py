"""The app over engine replicas of Ray Serve: what was recorded is answered the same, rows are the same, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from tests.compat import servers
from tests.compat.test_replay import CASES, hold
from tests.ray import stand
from tests.ray.stand import EMBED, Replicated
from tests.whole import Whole
from vecgate import ray_serve
from vecgate.engine.merging import Lost


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """The two models that the recording had, over the fake backend."""
    folder = tmp_path_factory.mktemp("recorded")
    with stand.replicated(folder, **servers.fake(folder)) as started:
        yield started


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_a_recorded_request_is_answered_as_recorded(app: Replicated, case: Path) -> None:
    hold(app, case)


HEADERS = {"authorization": f"Bearer {servers.KEY}"}


def rows(app: Whole, inputs: Any, **headers: str) -> np.ndarray:
    answer = app.post(EMBED, {"input": inputs}, **headers)
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


def test_there_are_as_many_replicas_as_the_setting_says(app: Replicated) -> None:
    assert len(stand.processes("vecgate:Engine")) == app.settings.replicas == 2
    assert os.getpid() not in {process.pid for process in stand.processes("vecgate:Engine")}


def test_an_engine_that_is_killed_under_load_loses_nothing(app: Replicated) -> None:
    texts = [[f"text {n} of {len(word)}", word] for n, word in enumerate(["cat", "a longer sentence"] * 200)]
    killed: list[int] = []
    app.client.headers.update(HEADERS)
    found = app.run(
        stand.keep_busy(app.client, texts, 20, meanwhile=lambda: killed.append(stand.kill_one("vecgate:Engine")))
    )
    assert len(killed) == 1
    assert set(found) == {200}
    stand.until(lambda: len(stand.processes("vecgate:Engine")) == 2)
    assert killed[0] not in {process.pid for process in stand.processes("vecgate:Engine")}


@pytest.mark.parametrize(
    ("gpus", "replicas", "share"),
    [(1.0, 1, 1.0), (4.0, 2, 1.0), (1.0, 2, 0.5), (2.0, 3, 0.5), (2.0, 4, 0.5), (4.0, 10, 0.3333), (1.0, 6, 0.1666)],
)
def test_the_replicas_have_a_place_on_the_gpus(gpus: float, replicas: int, share: float) -> None:
    assert ray_serve.gpu_share(gpus, replicas) == share
    assert int(gpus) * int(1 / share) >= replicas


@pytest.mark.parametrize("ended", [RayActorError(), OutOfMemoryError("the machine's memory was full")])
def test_a_trip_whose_engine_was_ended_is_lost_and_so_made_again(ended: RayError) -> None:
    class Deployment:
        async def remote(self, _: bytes) -> bytes:
            raise ended

    with pytest.raises(Lost):
        asyncio.run(ray_serve._trip(Deployment(), b""))


def test_all_engines_killed_at_once_are_waited_for(app: Replicated) -> None:
    before = rows(app, ["cat"], **HEADERS)
    for process in stand.processes("vecgate:Engine"):
        process.kill()
    assert np.array_equal(rows(app, ["cat"], **HEADERS), before)


def test_the_batches_of_the_replicas_are_in_the_metrics(app: Replicated) -> None:
    rows(app, ["cat"], **HEADERS)
    rows(app, ["cat"], **HEADERS)
    assert counted(app, "vecgate_tokens_total", **HEADERS) > 0


def counted(app: Whole, name: str, **headers: str) -> float:
    """A counter of /metrics, over all of its labels."""
    lines = app.get("/metrics", **headers).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))
