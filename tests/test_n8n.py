"""What docs/n8n holds: a workflow that fits this server, and the execution of it that was kept. `make test-n8n` runs it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "docs" / "n8n"


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def test_the_credential_is_the_one_that_the_nodes_name() -> None:
    (credential,) = read("credential.json")
    assert credential["data"]["url"].endswith("/v1")
    asked = [node["credentials"] for node in read("workflow.json")["nodes"] if "credentials" in node]
    assert asked == [{credential["type"]: {"id": credential["id"], "name": credential["name"]}}] * 2


def test_the_kept_execution_is_of_the_workflow_and_right() -> None:
    nodes = {node["name"] for node in read("workflow.json")["nodes"]}
    execution = read("execution.json")
    runs = execution["data"]["resultData"]["runData"]
    assert (execution["status"], set(runs)) == ("success", nodes)
    responses = [run["data"]["ai_embedding"][0][0]["json"]["response"] for run in runs["Embeddings"]]
    rows = [np.atleast_2d(one) for one in responses]
    assert {row.shape[1] for row in rows} == {384}
    assert np.abs(np.linalg.norm(np.vstack(rows), axis=1) - 1).max() < 1e-5
    answer = runs["Answer"][0]["data"]["main"][0][0]["json"]
    assert answer["ranked"][0]["text"] == "Paris is the capital of France."
