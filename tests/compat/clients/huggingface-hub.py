"""huggingface_hub's InferenceClient against a server, whose URL stands where a model's name would."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import driving
from driving import DIMENSIONS, DOCUMENTS, LONG, QUERY, TEXTS, TOP_N, WRONG_KEY, Call, Result
from huggingface_hub import InferenceClient


def cases(base: str, right_key: str) -> dict[str, Call | str]:
    def client(key: str = right_key) -> InferenceClient:
        return InferenceClient(base_url=base, token=key)

    def embed(texts: Any, key: str = right_key, **more: Any) -> Result:
        return driving.vectors(client(key).feature_extraction(texts, **more))

    def roles() -> Result:
        query = client().feature_extraction(QUERY, prompt_name="query")
        documents = client().feature_extraction(DOCUMENTS, prompt_name="document")
        return driving.vectors([*query, *documents])

    def similar() -> Result:
        """Scores in the order of the sentences: which are the best is the caller's to find."""
        scores = client().sentence_similarity(QUERY, DOCUMENTS)
        best = sorted(enumerate(scores), key=lambda pair: -pair[1])
        return driving.ranking(best[:TOP_N])

    return {
        "embedding": lambda: embed(TEXTS[0]),
        "batch": lambda: embed(TEXTS),
        "base64": "it decodes numbers only",
        "dimensions": lambda: embed(TEXTS, dimensions=DIMENSIONS),
        "token-ids": "it takes texts only",
        "roles": roles,
        "rerank": similar,
        "errors": lambda: embed(TEXTS[0], prompt_name="no-such-prompt"),
        "retries": lambda: embed(TEXTS[0]),
        "wrong-key": lambda: embed(TEXTS[0], key=WRONG_KEY),
        "long-input": lambda: embed(LONG, truncate=True),
    }


if __name__ == "__main__":
    url, control_url, given_key = driving.arguments()
    driving.drive(control_url, "huggingface-hub", version("huggingface_hub"), cases(url, given_key))
