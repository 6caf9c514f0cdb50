"""LangChain against a server: its OpenAI, Cohere and Ollama packages, and what its community package has for Infinity and Jina."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

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
    TOP_N,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_community.document_compressors import JinaRerank, jina_rerank
from langchain_community.embeddings import InfinityEmbeddings
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings

FLOATS = {"encoding_format": "float"}
NO_IDS = "it takes texts only"


def one(embeddings: Any, text: str = TEXTS[0]) -> Result:
    return driving.vectors([embeddings.embed_query(text)])


def many(embeddings: Any) -> Result:
    return driving.vectors(embeddings.embed_documents(TEXTS))


def both(query: Any, document: Any) -> Result:
    return driving.vectors([query.embed_query(QUERY), *document.embed_documents(DOCUMENTS)])


def ranked(reranker: Any) -> Result:
    found = reranker.rerank(DOCUMENTS, QUERY)
    return driving.ranking((result["index"], result["relevance_score"]) for result in found)


def openai(base: str, right_key: str) -> dict[str, Call | str]:
    """Texts as texts; what it does unless told otherwise, ids of OpenAI's tokenizer, is the case "token-ids"."""

    def embeddings(model: str = MODEL, key: str = right_key, **more: Any) -> OpenAIEmbeddings:
        more = {"check_embedding_ctx_length": False, **more}
        return OpenAIEmbeddings(base_url=f"{base}/v1", api_key=key, model=model, **more)

    return {
        "embedding": lambda: one(embeddings(model_kwargs=FLOATS)),
        "batch": lambda: many(embeddings(model_kwargs=FLOATS)),
        "base64": lambda: many(embeddings()),
        "dimensions": lambda: many(embeddings(dimensions=DIMENSIONS)),
        "token-ids": lambda: many(embeddings(check_embedding_ctx_length=True)),
        "roles": lambda: both(embeddings(f"{MODEL}:query"), embeddings(f"{MODEL}:document")),
        "rerank": "the package has no rerank",
        "errors": lambda: one(embeddings(UNKNOWN)),
        "retries": lambda: one(embeddings(FAILING)),
        "wrong-key": lambda: one(embeddings(key=WRONG_KEY)),
        "long-input": lambda: one(embeddings(), LONG),
    }


def cohere(base: str, right_key: str) -> dict[str, Call | str]:
    def embeddings(model: str = MODEL, key: str = right_key) -> CohereEmbeddings:
        return CohereEmbeddings(base_url=base, cohere_api_key=key, model=model, user_agent="langchain")

    def reranker() -> CohereRerank:
        return CohereRerank(base_url=base, cohere_api_key=right_key, model=RERANKER, top_n=TOP_N)

    return {
        "embedding": lambda: one(embeddings()),
        "batch": lambda: many(embeddings()),
        "base64": "it makes numbers of every type that it asks for",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": lambda: both(embeddings(), embeddings()),
        "rerank": lambda: ranked(reranker()),
        "errors": lambda: one(embeddings(UNKNOWN)),
        "retries": lambda: one(embeddings(FAILING)),
        "wrong-key": lambda: one(embeddings(key=WRONG_KEY)),
        "long-input": lambda: one(embeddings(), LONG),
    }


def community(base: str, right_key: str) -> dict[str, Call | str]:
    """InfinityEmbeddings takes no key but in its URL; JinaRerank takes no URL, so its module's constant is set."""
    jina_rerank.JINA_API_URL = f"{base}/v1/rerank"

    def embeddings(model: str = MODEL, key: str = right_key) -> InfinityEmbeddings:
        url = urlsplit(base)
        return InfinityEmbeddings(model=model, infinity_api_url=f"{url.scheme}://key:{key}@{url.netloc}/v1")

    def reranker() -> JinaRerank:
        return JinaRerank(jina_api_key=right_key, model=RERANKER, top_n=TOP_N)

    return {
        "embedding": lambda: one(embeddings()),
        "batch": lambda: many(embeddings()),
        "base64": "it reads lists of numbers only",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": lambda: both(embeddings(f"{MODEL}:query"), embeddings(f"{MODEL}:document")),
        "rerank": lambda: ranked(reranker()),
        "errors": lambda: one(embeddings(UNKNOWN)),
        "retries": lambda: one(embeddings(FAILING)),
        "wrong-key": lambda: one(embeddings(key=WRONG_KEY)),
        "long-input": lambda: one(embeddings(), LONG),
    }


def ollama(base: str, right_key: str) -> dict[str, Call | str]:
    def embeddings(model: str = MODEL, key: str = right_key, **more: Any) -> OllamaEmbeddings:
        headers = {"Authorization": f"Bearer {key}"}
        return OllamaEmbeddings(model=model, base_url=base, client_kwargs={"headers": headers}, **more)

    return {
        "embedding": lambda: one(embeddings()),
        "batch": lambda: many(embeddings()),
        "base64": "Ollama's API knows lists of numbers only",
        "dimensions": lambda: many(embeddings(dimensions=DIMENSIONS)),
        "token-ids": NO_IDS,
        "roles": lambda: both(embeddings(f"{MODEL}:query"), embeddings(f"{MODEL}:document")),
        "rerank": "Ollama's API has no rerank",
        "errors": lambda: one(embeddings(UNKNOWN)),
        "retries": lambda: one(embeddings(FAILING)),
        "wrong-key": lambda: one(embeddings(key=WRONG_KEY)),
        "long-input": lambda: one(embeddings(), LONG),
    }


if __name__ == "__main__":
    base, control, key = driving.arguments()
    for package, cases in {"openai": openai, "cohere": cohere, "community": community, "ollama": ollama}.items():
        driving.drive(control, f"langchain-{package}", version(f"langchain-{package}"), cases(base, key))
