"""The real Open WebUI, connected by `vecgate connect`, embeds an upload and reranks here: `make test-open-webui`.

It lives in an environment of its own (OPEN_WEBUI names its command), which takes gigabytes: outside `make test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.live import Live, environment, free_port
from vecgate import deploy

COMMAND = os.environ["OPEN_WEBUI"]
START_S, INDEX_S = 300.0, 120.0
MODEL = "all-MiniLM-L6-v2"
NOTES = """The observatory on the hill opens its dome every clear Friday night.

Ticket prices for the ferry rose by ten per cent in spring.

The bakery's rye bread takes two days because the dough rests overnight in the cellar."""
QUESTION = "When can visitors look at the stars?"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("gateway"), "--backend", "torch", "--api-key", "sesame") as started:
        yield started.ready()


@pytest.fixture(scope="module")
def open_webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    engine = {"RAG_EMBEDDING_ENGINE": "openai"}  # or it would look for a model of its own
    with running(tmp_path_factory.mktemp("open-webui"), engine) as client:
        yield client


@contextmanager
def running(folder: Path, told: Mapping[str, str]) -> Iterator[httpx.Client]:
    """Open WebUI with these variables, and its first user, who is the administrator."""
    port = free_port()
    settings = {
        "DATA_DIR": str(folder),
        "WEBUI_SECRET_KEY": "for-this-test",
        "OFFLINE_MODE": "true",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_OPENAI_API": "false",
        "CHUNK_SIZE": "100",
        "CHUNK_OVERLAP": "0",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment(**settings, **told),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=INDEX_S, trust_env=False) as client:
                wait_for(client, process, folder / "log")
                user = {"name": "a", "email": "a@example.com", "password": "Sesame-and-1-more"}
                made = client.post("/api/v1/auths/signup", json=user)
                assert made.status_code == 200, made.text
                client.headers["authorization"] = f"Bearer {made.json()['token']}"
                yield client
        finally:
            process.terminate()
            process.wait(30)


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    begun = time.monotonic()
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() - begun < START_S, log.read_text()[-3000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)


def counted(gateway: Live, route: str) -> float:
    lines = metrics(gateway)
    return sum(float(line.split()[-1]) for line in lines if f'route="{route}"' in line and 'status="200"' in line)


def metrics(gateway: Live) -> list[str]:
    told = httpx.get(f"{gateway.url}/metrics", headers={"authorization": "Bearer sesame"}, trust_env=False).text
    return [line for line in told.splitlines() if line.startswith("vecgate_requests_total{")]


def test_it_is_connected_embeds_an_upload_and_reranks(gateway: Live, open_webui: httpx.Client) -> None:
    command = [
        sys.executable,
        "-m",
        "vecgate",
        "connect",
        "open-webui",
        "--url",
        str(open_webui.base_url),
        "--token",
        "-",
    ]
    command += ["--gateway", gateway.url, "--api-key", "sesame", "--reranker", MODEL, "--batch-size", "8"]
    token = open_webui.headers["authorization"].removeprefix("Bearer ")
    done = subprocess.run(command, input=token, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"-> {MODEL!r}" in done.stdout

    assert_it_answers(gateway, open_webui)


def test_the_compose_file_connects_it(gateway: Live, tmp_path: Path) -> None:
    """By variables alone; with Open WebUI's own store, as there is no Qdrant here."""
    said = yaml.safe_load(deploy.read("compose"))["services"]["open-webui"]["environment"]
    told = {name: text.replace("http://vecgate:9000", gateway.url) for name, text in said.items()}
    told |= {name: "sesame" for name, text in said.items() if text == "${VECGATE_API_KEY}"}
    for name in ("VECTOR_DB", "QDRANT_URI", "QDRANT_API_KEY", "WEBUI_SECRET_KEY"):
        del told[name]
    with running(tmp_path, told) as client:
        kept = client.get("/api/v1/retrieval/config").json() | client.get("/api/v1/retrieval/embedding").json()
        shown = {name: str(kept[name]).lower() for name in told if name in kept}
        assert shown == {name: told[name].lower() for name in shown}
        assert told.keys() - shown.keys() == {"RAG_OPENAI_API_BASE_URL", "RAG_OPENAI_API_KEY"}
        assert kept["openai_config"] == {"url": f"{gateway.url}/v1", "key": "sesame"}
        assert_it_answers(gateway, client)


def assert_it_answers(gateway: Live, open_webui: httpx.Client) -> None:
    """An upload is embedded, and the passages for a question are ordered, by the gateway."""
    before = [counted(gateway, route) for route in ("/v1/embeddings", "/v1/rerank")]
    file = uploaded(open_webui)
    query = {"collection_name": f"file-{file}", "query": QUESTION, "k": 3, "k_reranker": 2}
    found = open_webui.post("/api/v1/retrieval/query/doc", json=query)
    assert found.status_code == 200, found.text
    assert "observatory" in texts(found.json())[0]
    after = [counted(gateway, route) for route in ("/v1/embeddings", "/v1/rerank")]
    assert all(now > then for now, then in zip(after, before)), (before, after)
    print(json.dumps(found.json(), indent=1))


def uploaded(open_webui: httpx.Client) -> str:
    """The id of a file that Open WebUI has cut into chunks and embedded."""
    sent = open_webui.post("/api/v1/files/", files={"file": ("notes.txt", NOTES.encode(), "text/plain")})
    assert sent.status_code == 200, sent.text
    file: str = sent.json()["id"]
    begun = time.monotonic()
    while (state := open_webui.get(f"/api/v1/files/{file}/process/status").json())["status"] != "completed":
        assert state["status"] in ("pending", "processing"), state
        assert time.monotonic() - begun < INDEX_S, state
        time.sleep(0.5)
    return file


def texts(found: dict[str, Any]) -> list[str]:
    """The passages, best first."""
    passages: list[str] = found["documents"][0]
    return passages
