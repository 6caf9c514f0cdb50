"""LiteLLM against a server, through its providers for OpenAI, vLLM, Infinity, Jina, Cohere and Hugging Face."""

from __future__ import annotations

import base64
import os
import struct
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
    RERANKER,
    TEXTS,
    TOKEN_IDS,
    TOP_N,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches its price list while it is imported
import litellm

litellm.suppress_debug_info = True  # it prints advice to standard output

OPENAI = "text-embedding-3-small"
"""LiteLLM knows which of OpenAI's models have `dimensions`, and refuses them for all others."""
REFUSED = "LiteLLM refuses it for this provider"
NO_NAME = "LiteLLM sends this provider no name of a model"

Cases = dict[str, Call | str]


class Provider:
    """One provider at one server. embed, rerank: what it wants as api_base; more: what it needs besides."""

    def __init__(self, name: str, key: str, embed: str = "", rerank: str = "", **more: Any) -> None:
        self.name, self.key, self.embed_base, self.rerank_base, self.more = name, key, embed, rerank, more

    def embed(self, texts: Any = TEXTS[:1], model: str = MODEL, key: str | None = None, **more: Any) -> Result:
        answer = litellm.embedding(
            f"{self.name}/{model}", texts, api_base=self.embed_base, api_key=key or self.key, **self.more, **more
        )
        counted = None if self.name == "huggingface" else answer.usage.prompt_tokens  # there LiteLLM guesses it
        return driving.vectors((row(each["embedding"]) for each in answer.data), counted)

    def rerank(self, model: str = RERANKER, key: str | None = None, **more: Any) -> Result:
        answer = litellm.rerank(
            f"{self.name}/{model}",
            QUERY,
            DOCUMENTS,
            top_n=TOP_N,
            api_base=self.rerank_base,
            api_key=key or self.key,
            **more,
        )
        return driving.ranking((each["index"], each["relevance_score"]) for each in answer.results)

    def both(self, query: dict[str, Any], document: dict[str, Any]) -> Result:
        rows = [self.embed([QUERY], **query), self.embed(DOCUMENTS, **document)]
        return driving.vectors(row for result in rows for row in result["vectors"])


def row(embedding: Any) -> list[float]:
    if isinstance(embedding, str):
        packed = base64.b64decode(embedding, validate=True)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    return embedding


def cases(provider: Provider, **others: Call | str) -> Cases:
    """Those that differ between the providers are `others`, "_" for "-"."""
    return {
        "embedding": provider.embed,
        "batch": lambda: provider.embed(TEXTS),
        "base64": lambda: provider.embed(TEXTS, encoding_format="base64"),
        "dimensions": lambda: provider.embed(TEXTS, dimensions=DIMENSIONS),
        "token-ids": lambda: provider.embed([TOKEN_IDS]),
        "roles": lambda: provider.both({"model": f"{MODEL}:query"}, {"model": f"{MODEL}:document"}),
        "rerank": provider.rerank,
        "errors": lambda: provider.embed(model=UNKNOWN),
        "retries": lambda: provider.embed(model=FAILING),
        "wrong-key": lambda: provider.embed(key=WRONG_KEY),
        "long-input": lambda: provider.embed([LONG]),
    } | {name.replace("_", "-"): case for name, case in others.items()}


def providers(base: str, key: str) -> dict[str, Cases]:
    v1 = f"{base}/v1"
    openai = Provider("openai", key, v1)
    vllm = Provider("hosted_vllm", key, v1, v1)
    infinity = Provider("infinity", key, v1, v1)
    jina = Provider("jina_ai", key, v1, base)
    cohere = Provider("cohere", key, f"{base}/v2/embed", base)
    hub = Provider("huggingface", key, f"{base}/embed", base, input_type="embed")
    return {
        "openai": cases(
            openai,
            dimensions=lambda: openai.embed(TEXTS, OPENAI, dimensions=DIMENSIONS),
            rerank="LiteLLM has no rerank for this provider",
        ),
        "hosted-vllm": cases(vllm),
        "infinity": cases(infinity, rerank=lambda: infinity.rerank(return_documents=False)),
        "jina-ai": cases(jina, base64=REFUSED),
        "cohere": cases(
            cohere,
            token_ids="Cohere's API takes texts only",
            roles=lambda: cohere.both({"input_type": "search_query"}, {"input_type": "search_document"}),
        ),
        "huggingface": cases(
            hub,
            base64=REFUSED,
            dimensions=REFUSED,
            token_ids="LiteLLM sends them, and fails where it counts the answer's tokens itself",
            roles=f"{NO_NAME}, and no prompt's",
            errors=NO_NAME,
        ),
    }


if __name__ == "__main__":
    base, control, right_key = driving.arguments()
    for name, told in providers(base, right_key).items():
        driving.drive(control, f"litellm-{name}", version("litellm"), told)
