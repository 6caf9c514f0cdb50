"""openai-python against a server: the client, its asynchronous twin, and the one for Azure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import driving
from driving import (
    DIMENSIONS,
    DOCUMENTS,
    FAILING,
    LONG,
    MODEL,
    QUERY,
    TEXTS,
    TOKEN_IDS,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)
from openai import AsyncOpenAI, AzureOpenAI, OpenAI

Embed = Callable[..., Any]
"""`embed(input, model=, key=, ...)`: the SDK's own answer."""


def rows(answer: Any) -> list[list[float]]:
    return [one.embedding for one in answer.data]


def result(answer: Any) -> Result:
    return driving.vectors(rows(answer), answer.usage.prompt_tokens)


def roles(embed: Embed) -> Result:
    query = embed(QUERY, model=f"{MODEL}:query", encoding_format="float")
    documents = embed(DOCUMENTS, model=f"{MODEL}:document", encoding_format="float")
    return driving.vectors([*rows(query), *rows(documents)])


def cases(embed: Embed) -> dict[str, Call | str]:
    return {
        "embedding": lambda: result(embed(TEXTS[0], encoding_format="float")),
        "batch": lambda: result(embed(TEXTS, encoding_format="float")),
        "base64": lambda: result(embed(TEXTS)),  # the SDK asks for it unless told otherwise, and decodes
        "dimensions": lambda: result(embed(TEXTS, dimensions=DIMENSIONS)),
        "token-ids": lambda: result(embed([TOKEN_IDS])),
        "roles": lambda: roles(embed),
        "rerank": "the SDK has no rerank",
        "errors": lambda: result(embed(TEXTS[0], model=UNKNOWN)),
        "retries": lambda: result(embed(TEXTS[0], model=FAILING)),
        "wrong-key": lambda: result(embed(TEXTS[0], key=WRONG_KEY)),
        "long-input": lambda: result(embed(LONG)),
    }


if __name__ == "__main__":
    base, control, right_key = driving.arguments()

    def plain(texts: Any, model: str = MODEL, key: str = right_key, **more: Any) -> Any:
        with OpenAI(base_url=f"{base}/v1", api_key=key) as client:
            return client.embeddings.create(model=model, input=texts, **more)

    def asynchronous(texts: Any, model: str = MODEL, key: str = right_key, **more: Any) -> Any:
        async def go() -> Any:
            async with AsyncOpenAI(base_url=f"{base}/v1", api_key=key) as client:
                return await client.embeddings.create(model=model, input=texts, **more)

        return asyncio.run(go())

    def azure(texts: Any, model: str = MODEL, key: str = right_key, **more: Any) -> Any:
        with AzureOpenAI(azure_endpoint=base, api_version="2024-10-21", api_key=key) as client:
            return client.embeddings.create(model=model, input=texts, **more)

    driving.drive(control, "openai-python", version("openai"), cases(plain))
    driving.drive(control, "openai-python-async", version("openai"), cases(asynchronous))
    driving.drive(control, "azure-openai", version("openai"), cases(azure))
