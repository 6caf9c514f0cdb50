"""ollama-python against a server: its `embed`; the key goes as a header, which is how Ollama behind a proxy gets one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import driving
import ollama
from driving import DIMENSIONS, DOCUMENTS, FAILING, LONG, MODEL, QUERY, TEXTS, UNKNOWN, WRONG_KEY, Call, Result


def result(answer: Any) -> Result:
    return driving.vectors(answer.embeddings, answer.prompt_eval_count)


def cases(base: str, right_key: str) -> dict[str, Call | str]:
    def embed(texts: Any, model: str = MODEL, key: str = right_key, **more: Any) -> Any:
        client = ollama.Client(base, headers={"Authorization": f"Bearer {key}"})
        return client.embed(model=model, input=texts, **more)

    def roles() -> Result:
        query, documents = embed(QUERY, f"{MODEL}:query"), embed(DOCUMENTS, f"{MODEL}:document")
        return driving.vectors([*query.embeddings, *documents.embeddings])

    return {
        "embedding": lambda: result(embed(TEXTS[0])),
        "batch": lambda: result(embed(TEXTS)),
        "base64": "Ollama's API has numbers only",
        "dimensions": lambda: result(embed(TEXTS, dimensions=DIMENSIONS)),
        "token-ids": "Ollama's API takes texts only",
        "roles": roles,
        "rerank": "Ollama's API has no rerank",
        "errors": lambda: result(embed(TEXTS[0], model=UNKNOWN)),
        "retries": lambda: result(embed(TEXTS[0], model=FAILING)),
        "wrong-key": lambda: result(embed(TEXTS[0], key=WRONG_KEY)),
        "long-input": lambda: result(embed(LONG)),
    }


if __name__ == "__main__":
    url, control_url, given_key = driving.arguments()
    driving.drive(control_url, "ollama-python", version("ollama"), cases(url, given_key))
