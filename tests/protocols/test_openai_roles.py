"""OpenAI's routes in-process: whose prompt stands before a text, and Azure's paths, with what Azure's client makes of them."""

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from tests.protocols import stub
from tests.protocols.test_openai import PATH, app_of, embed, refused, rows, send

PROMPTS = {"query": "q: ", "Clustering": "c: ", "retrieval.passage": "p: "}
AZURE = "/openai/deployments/{}/embeddings?api-version=2024-10-21"


# roles


@pytest.mark.parametrize(
    ("asked", "role"),
    [
        (None, None),
        (" ", None),
        ("search_query", "query"),
        ("query", "query"),
        ("search_document", "document"),
        ("document", "document"),
        ("Passage", "document"),
        ("clustering", "Clustering"),
        ("classification", None),
        ("retrieval.passage", "retrieval.passage"),
    ],
)
def test_input_type_is_a_role_however_a_vendor_spells_it(asked: str | None, role: str | None) -> None:
    engine = stub.StubEngine(prompts=PROMPTS)
    answer = embed({"input": "a", "input_type": asked}, engine)
    assert answer.status_code == 200, answer.text
    assert engine.calls[0]["role"] == role
    assert answer.headers.get("x-vecgate-role") == role


@pytest.mark.parametrize("asked", ["image", "poet"])
def test_another_input_type_is_told_which_there_are(asked: str) -> None:
    error = refused(embed({"input": "a", "input_type": asked}, stub.StubEngine(prompts=PROMPTS)))
    assert error["param"] == "input_type"
    assert f"{asked!r}; it takes search_query, query, search_document" in error["message"]
    assert error["message"].endswith("Clustering, retrieval.passage.")


@pytest.mark.parametrize(
    ("prompts", "asked", "role"),
    [
        ({}, None, None),
        ({}, "", None),
        ({"query": "q: "}, "retrieval.query", "query"),
        ({"query": "q: "}, "Retrieval.Passage", "document"),
        (PROMPTS, "retrieval.passage", "retrieval.passage"),
        (PROMPTS, "clustering", "Clustering"),
        (PROMPTS, "text-matching", None),
        (PROMPTS, "query", "query"),
    ],
)
def test_jinas_task_is_a_role(prompts: dict[str, str], asked: str | None, role: str | None) -> None:
    engine = stub.StubEngine(prompts=prompts)
    answer = embed({"input": "a", "task": asked}, engine)
    assert answer.status_code == 200, answer.text
    assert engine.calls[0]["role"] == role


def test_another_task_is_told_which_there_are() -> None:
    error = refused(embed({"input": "a", "task": "poetry"}, stub.StubEngine(prompts=PROMPTS)))
    assert error["param"] == "task"
    assert error["message"].startswith(
        "task does not take 'poetry'; it takes retrieval.query, retrieval.passage, text-"
    )
    assert error["message"].endswith("query, Clustering.")


def test_a_task_and_an_input_type_may_say_the_same_only() -> None:
    same = {"input": "a", "task": "retrieval.query", "input_type": "search_query"}
    assert embed(same).headers["x-vecgate-role"] == "query"
    error = refused(embed(same | {"input_type": "document"}))
    assert (error["param"], error["message"]) == (
        "task",
        "input_type is 'document' and task 'retrieval.query'; give one.",
    )


# Azure


@pytest.mark.parametrize("name", ["stub", "org/stub-embed", "org%2Fstub-embed", "stub:query"])
def test_azures_path_names_the_model_and_the_body_does_not(name: str) -> None:
    engine = stub.StubEngine()
    answer = send(app_of(engine), "POST", AZURE.format(name), json={"input": "a", "model": "another"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == engine.calls[0]["model"] == name.replace("%2F", "/")
    assert answer.headers["x-vecgate-model"] == "org/stub-embed"


@pytest.mark.parametrize("path", [AZURE.format("nobody"), AZURE.format("no/body")])
def test_an_unknown_deployment_is_404_in_openais_shape(path: str) -> None:
    error = refused(send(app_of(), "POST", path, json={"input": "a"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_azures_newer_paths_are_openais() -> None:
    answer = send(app_of(), "POST", "/openai/v1/embeddings", json={"input": "a"})
    assert len(rows(answer)) == 1
    assert send(app_of(), "GET", "/openai/models?api-version=1").json() == send(app_of(), "GET", "/v1/models").json()


def of_azure(engine: stub.StubEngine, **given: Any) -> Any:
    async def go() -> Any:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app_of(engine)), base_url="http://test")
        client = openai.AsyncAzureOpenAI(
            azure_endpoint="http://test", api_key="k", api_version="2024-10-21", http_client=http, max_retries=0
        )
        async with client:
            return await client.embeddings.create(**given)

    return asyncio.run(go())


@pytest.mark.parametrize("name", ["stub", "org/stub-embed"])
def test_azures_client_embeds(name: str) -> None:
    engine = stub.StubEngine()
    answer = of_azure(engine, model=name, input=["the cat", "dog"], dimensions=4)
    assert [len(one.embedding) for one in answer.data] == [4, 4]
    assert (answer.model, engine.calls[0]["model"], engine.calls[0]["dimensions"]) == (name, name, 4)


def test_azures_client_raises_what_was_wrong() -> None:
    with pytest.raises(openai.NotFoundError, match="nobody") as caught:
        of_azure(stub.StubEngine(), model="nobody", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="dimensions is 9"):
        of_azure(stub.StubEngine(), model="stub", input="a", dimensions=9)


def test_a_get_of_azures_path_is_405() -> None:
    assert refused(send(app_of(), "GET", AZURE.format("stub")), 405)["message"].endswith("use POST.")
    assert send(app_of(), "POST", PATH, json={"input": "a"}).status_code == 200
