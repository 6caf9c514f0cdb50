"""The workflow of docs/n8n, and what the page offers for n8n, in a real n8n over a real server: `make test-n8n`.

KEEP=docs/n8n beside it keeps the execution there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import nodejs
from tests.live import ROOT, Live
from tests.n8n.instance import N8n

TEMPLATE = ROOT / "docs" / "n8n"
DEFAULT = "http://127.0.0.1:9000"
"""The server that the template names."""
KEY = "sesame-of-n8n"
KEEP = os.environ.get("KEEP")
QUERY = "What is the capital of France?"
TEXTS = [
    "Dogs bark at night.",
    "Berlin is the capital of Germany.",
    "Paris is the capital of France.",
    "Rust is a programming language.",
]

Execution = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with Live(tmp_path_factory.mktemp("server"), VECGATE_API_KEY=KEY) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def n8n(server: Live, tmp_path_factory: pytest.TempPathFactory) -> N8n:
    """One that holds the template's credential, with the server's address and key in it."""
    made = N8n(tmp_path_factory.mktemp("n8n"))
    (credential,) = template("credential.json", server)
    credential["data"]["apiKey"] = KEY
    assert "Successfully imported 1 credential" in made.take("credentials", [credential])
    return made


def template(name: str, server: Live) -> Any:
    """What lies in docs/n8n, with this server's address where the template has the default one."""
    text = (TEMPLATE / name).read_text("utf-8")
    assert DEFAULT in text
    return json.loads(text.replace(DEFAULT, server.url))


def executed(n8n: N8n, workflow: dict[str, Any]) -> Execution:
    assert "Successfully imported 1 workflow" in n8n.take("workflow", [workflow])
    return n8n.execute(workflow["id"])


def outputs(execution: Execution, node: str, kind: str = "main") -> list[Any]:
    """The JSON of each item that the node gave, of all its runs."""
    runs = execution["data"]["resultData"]["runData"][node]
    return [item["json"] for run in runs for item in run["data"][kind][0]]


@pytest.fixture(scope="module")
def execution(n8n: N8n, server: Live) -> Execution:
    found = executed(n8n, template("workflow.json", server))
    if KEEP:
        (ROOT / KEEP / "execution.json").write_text(readable(found).replace(server.url, DEFAULT))
    return found


def readable(execution: Execution) -> str:
    """Indented, a vector in one line, without the token that would resume it."""
    kept = {**execution, "data": {name: part for name, part in execution["data"].items() if name != "resumeToken"}}
    text = json.dumps(kept, indent=1) + "\n"
    return re.sub(r"\[\s+(-?\d[^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)


def test_n8n_finishes_without_an_error(execution: Execution) -> None:
    assert execution["data"]["resultData"].get("error") is None
    assert (execution["finished"], execution["status"]) == (True, "success")


def test_n8ns_vectors_are_the_servers_own(execution: Execution, server: Live) -> None:
    told = [one["response"] for one in outputs(execution, "Embeddings", "ai_embedding")]
    *documents, query = [row for rows in told for row in (rows if isinstance(rows[0], list) else [rows])]
    found = np.array([query, *documents])
    assert found.shape == (5, 384)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert np.abs(found - embedded(server, [QUERY, *TEXTS])).max() < 1e-6


def embedded(server: Live, texts: list[str]) -> np.ndarray:
    body = {"model": "all-MiniLM-L6-v2", "input": texts}
    status, _, answer = server.post("/v1/embeddings", body, Authorization=f"Bearer {KEY}")
    assert status == 200, answer
    return np.array([row["embedding"] for row in json.loads(answer)["data"]])


def test_n8n_ranks_the_right_document_first(execution: Execution) -> None:
    (nearest, *_) = outputs(execution, "Nearest")
    assert nearest["document"]["pageContent"] == TEXTS[2]
    (answer,) = outputs(execution, "Answer")
    texts, scores = zip(*((one["text"], one["score"]) for one in answer["ranked"]), strict=True)
    assert len(texts) == 3
    assert (texts[0], sorted(scores, reverse=True)) == (TEXTS[2], list(scores))
    assert scores[0] > 0.9


def offered(server: Live, keyed: bool) -> list[dict[str, Any]]:
    """The nodes that the page offers for n8n: one embeds, one reranks."""
    call = {"base": server.url, "keyed": keyed, "model": "all-MiniLM-L6-v2", "role": None, "dimensions": None}
    call |= {"texts": TEXTS, "query": QUERY, "documents": TEXTS, "method": "auto"}
    script = f"""
        import {{ embedCalls, rerankCalls }} from {json.dumps((ROOT / "src/vecgate/web/calls.js").as_uri())};
        const call = {json.dumps(call)};
        const pasted = [embedCalls(call), rerankCalls(call)].map((calls) => calls.find(([name]) => name === "n8n")[2]);
        console.log(JSON.stringify(pasted.flatMap((text) => JSON.parse(text).nodes)));
    """
    told = [str(nodejs.NODE), "--input-type=module", "--eval", script]
    said = subprocess.run(told, capture_output=True, text=True, check=True).stdout
    nodes: list[dict[str, Any]] = json.loads(said)
    return nodes


def pasted(node: dict[str, Any], *, workflow: str, credential: bool) -> dict[str, Any]:
    """The node behind a trigger, as on a canvas, with the credential chosen that it asks for."""
    trigger = {"name": "Start", "type": "n8n-nodes-base.manualTrigger", "typeVersion": 1, "position": [-220, 0]}
    nodes: list[dict[str, Any]] = [{**trigger, "parameters": {}}, dict(node)]
    if credential:
        kind = node["parameters"]["nodeCredentialType"]
        nodes[1]["credentials"] = {kind: {"id": "vecgateCredential", "name": "vecgate"}}
    connections = {"Start": {"main": [[{"node": node["name"], "type": "main", "index": 0}]]}}
    return {"id": workflow, "name": workflow, "active": False, "nodes": nodes, "connections": connections}


def test_the_nodes_that_the_page_offers_embed_and_rerank(n8n: N8n, server: Live) -> None:
    embed, rerank = offered(server, keyed=True)
    (vectors,) = outputs(executed(n8n, pasted(embed, workflow="embed", credential=True)), embed["name"])
    rows = np.array([row["embedding"] for row in vectors["data"]])
    assert np.abs(rows - embedded(server, TEXTS)).max() < 1e-6
    (ranked,) = outputs(executed(n8n, pasted(rerank, workflow="rerank", credential=True)), rerank["name"])
    assert ranked["results"][0]["index"] == 2


def test_the_nodes_that_the_page_offers_where_no_key_is_wanted(n8n: N8n, tmp_path: Path) -> None:
    with Live(tmp_path) as server:
        (embed, _) = offered(server.ready(), keyed=False)
        (vectors,) = outputs(executed(n8n, pasted(embed, workflow="keyless", credential=False)), embed["name"])
    assert [len(row["embedding"]) for row in vectors["data"]] == [384] * len(TEXTS)
