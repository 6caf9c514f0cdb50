"""The config file of `vecgate deploy ray` on a Ray of its own: it serves, grows and shrinks, and survives a gateway's death."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.live import environment, free_port
from tests.ray import stand
from tests.ray.stand import EMBED, WAIT_S
from vecgate.bench.texts import of_tokens
from vecgate.deploy import read

TEXTS = [of_tokens(Random(seed), 200) for seed in range(16)]
"""A request of them takes a CPU long enough for several to be under way."""


@dataclass
class Cluster:
    """`serve run` with the template, on a Ray of its own."""

    process: subprocess.Popen[bytes]
    url: str

    @classmethod
    @contextmanager
    def started(cls, folder: Path, *, replicas: int, threads: int = 1) -> Iterator[Cluster]:
        """Ready, with at most so many engines of so many threads; its processes are gone at the end."""
        port, file = free_port(), folder / "serve.yaml"
        file.write_text(yaml.safe_dump(small(yaml.safe_load(read("ray")), port, replicas, threads)))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)],
                env=environment(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0"),
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            found = cls(process, f"http://127.0.0.1:{port}")
            begun = [psutil.Process(process.pid)]
            try:
                stand.until(lambda: process.poll() is not None or found.ready())
                assert process.poll() is None, (folder / "log").read_text()
                stand.until(lambda: found.count("vecgate:Gateway") == 2 and found.count("vecgate:Engine") >= 1)
                yield found
            finally:
                begun += begun[0].children(recursive=True)
                process.send_signal(signal.SIGINT)  # as Ctrl-C does
                psutil.wait_procs(begun, timeout=WAIT_S)

    def count(self, part: str) -> int:
        return len(stand.processes(part, self.process.pid))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=WAIT_S)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=WAIT_S).status_code == 200
        except httpx.TransportError:
            return False


def small(config: dict[str, Any], port: int, replicas: int, threads: int) -> dict[str, Any]:
    """The template on two cores, within seconds instead of minutes; what it serves and how stays as it is."""
    (application,) = config["applications"]
    gateway, engine = application["deployments"]
    config["http_options"]["port"] = port
    for deployment in (gateway, engine):
        deployment["ray_actor_options"]["num_cpus"] = 0.1
    engine["ray_actor_options"]["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
    sizes = {"min_replicas": 1, "max_replicas": replicas, "upscale_delay_s": 1, "downscale_delay_s": 5}
    engine["autoscaling_config"] |= sizes
    return config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster.started(tmp_path_factory.mktemp("cluster"), replicas=2) as found:
        yield found


def test_it_serves_as_one_server_does(cluster: Cluster) -> None:
    answer = httpx.post(cluster.url + EMBED, json={"input": ["a cat", "a dog"]}, timeout=WAIT_S)
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    assert answer.headers["x-vecgate-space"].startswith("vs1-")
    wrong = httpx.post(cluster.url + EMBED, json={"input": "a", "model": "x"}, timeout=WAIT_S)
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")


def test_a_gateway_that_is_killed_loses_nothing_to_a_client_that_asks_again(cluster: Cluster) -> None:
    async def use() -> list[int]:
        async with cluster.client() as client:
            return await stand.keep_busy(
                client,
                [f"text {n}" for n in range(200)],
                8,
                tries=2,
                meanwhile=lambda: stand.kill_one("vecgate:Gateway", cluster.process.pid),
            )

    assert set(asyncio.run(use())) == {200}
    stand.until(lambda: cluster.count("vecgate:Gateway") == 2)


def test_engines_come_under_load_and_go_without_it(cluster: Cluster) -> None:
    stand.until(lambda: cluster.count("vecgate:Engine") == 1)

    async def use() -> list[int]:
        found: list[int] = []

        async def one(client: httpx.AsyncClient) -> None:
            while cluster.count("vecgate:Engine") < 2:
                found.append(await stand.status(client, TEXTS))

        async with cluster.client() as client, asyncio.timeout(WAIT_S):
            await asyncio.gather(*(one(client) for _ in range(8)))
        return found

    assert set(asyncio.run(use())) == {200}
    assert cluster.count("vecgate:Engine") == 2
    stand.until(lambda: cluster.count("vecgate:Engine") == 1)
