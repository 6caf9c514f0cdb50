"""Haystack against a server: its components for OpenAI, Cohere, Jina and TEI."""

from __future__ import annotations

import os
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
    TOP_N,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereDocumentEmbedder, CohereTextEmbedder
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker

NO_IDS = "it takes texts only"
NUMBERS = "it asks for lists of numbers"

Cases = dict[str, Call | str]


def one(embedder: Any, text: str = TEXTS[0]) -> Result:
    answer = embedder.run(text=text)
    return driving.vectors([answer["embedding"]], answer.get("meta", {}).get("usage", {}).get("prompt_tokens"))


def many(embedder: Any, texts: list[str] = TEXTS) -> Result:
    answer = embedder.run(documents=[Document(content=text) for text in texts])
    rows = (document.embedding for document in answer["documents"])
    return driving.vectors(rows, answer.get("meta", {}).get("usage", {}).get("prompt_tokens"))


def both(query: Any, document: Any) -> Result:
    return driving.vectors([*one(query, QUERY)["vectors"], *many(document, DOCUMENTS)["vectors"]])


def ranked(ranker: Any) -> Result:
    """Every ranker leaves as many as its top_k says; a document is known by its text again."""
    found = ranker.run(query=QUERY, documents=[Document(content=text) for text in DOCUMENTS])["documents"]
    return driving.ranking((DOCUMENTS.index(document.content), document.score) for document in found)


def openai(base: str, right_key: str) -> Cases:
    def asked(model: str = MODEL, key: str = right_key, **more: Any) -> dict[str, Any]:
        return {"api_base_url": f"{base}/v1", "model": model, "api_key": Secret.from_token(key), **more}

    def document(*told: Any, **more: Any) -> OpenAIDocumentEmbedder:
        return OpenAIDocumentEmbedder(**asked(*told, **more), progress_bar=False)

    return {
        "embedding": lambda: one(OpenAITextEmbedder(**asked())),
        "batch": lambda: many(document()),
        "base64": NUMBERS,
        "dimensions": lambda: many(document(dimensions=DIMENSIONS)),
        "token-ids": NO_IDS,
        "roles": lambda: both(OpenAITextEmbedder(**asked(f"{MODEL}:query")), document(f"{MODEL}:document")),
        "rerank": "Haystack has no ranker for OpenAI's API, which has no rerank",
        "errors": lambda: one(OpenAITextEmbedder(**asked(UNKNOWN))),
        "retries": lambda: one(OpenAITextEmbedder(**asked(FAILING))),
        "wrong-key": lambda: one(OpenAITextEmbedder(**asked(key=WRONG_KEY))),
        "long-input": lambda: one(OpenAITextEmbedder(**asked()), LONG),
    }


def cohere(base: str, right_key: str) -> Cases:
    def asked(model: str = MODEL, key: str = right_key) -> dict[str, Any]:
        return {"api_base_url": base, "model": model, "api_key": Secret.from_token(key)}

    def document() -> CohereDocumentEmbedder:
        return CohereDocumentEmbedder(**asked(), progress_bar=False)

    return {
        "embedding": lambda: one(CohereTextEmbedder(**asked())),
        "batch": lambda: many(document()),
        "base64": "it knows the types float, int8, uint8, binary and ubinary",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": lambda: both(CohereTextEmbedder(**asked()), document()),
        "rerank": lambda: ranked(CohereRanker(**asked(RERANKER), top_k=TOP_N)),
        "errors": lambda: one(CohereTextEmbedder(**asked(UNKNOWN))),
        "retries": lambda: one(CohereTextEmbedder(**asked(FAILING))),
        "wrong-key": lambda: one(CohereTextEmbedder(**asked(key=WRONG_KEY))),
        "long-input": lambda: one(CohereTextEmbedder(**asked()), LONG),
    }


def jina(base: str, right_key: str) -> Cases:
    """Of Jina's components the ranker alone takes a URL."""

    def ranker(model: str = RERANKER, key: str = right_key) -> JinaRanker:
        return JinaRanker(model=model, api_key=Secret.from_token(key), base_url=f"{base}/v1/rerank", top_k=TOP_N)

    fixed = "its embedders' URL is fixed"
    return {
        **dict.fromkeys(("embedding", "batch", "base64", "dimensions", "token-ids", "roles", "long-input"), fixed),
        "rerank": lambda: ranked(ranker()),
        "errors": lambda: ranked(ranker(UNKNOWN)),
        "retries": lambda: ranked(ranker(FAILING)),
        "wrong-key": lambda: ranked(ranker(key=WRONG_KEY)),
    }


def tei(base: str, right_key: str) -> Cases:
    def asked(key: str = right_key) -> dict[str, Any]:
        """normalize: it asks for rows as the model leaves them unless told otherwise."""
        told = {"api_type": "text_embeddings_inference", "api_params": {"url": base}}
        return told | {"token": Secret.from_token(key), "normalize": True}

    def document() -> HuggingFaceAPIDocumentEmbedder:
        return HuggingFaceAPIDocumentEmbedder(**asked(), progress_bar=False)

    def ranker() -> HuggingFaceTEIRanker:
        return HuggingFaceTEIRanker(url=base, token=Secret.from_token(right_key), top_k=TOP_N)

    return {
        "embedding": lambda: one(HuggingFaceAPITextEmbedder(**asked())),
        "batch": lambda: many(document()),
        "base64": "TEI's API knows lists of numbers only",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": "it sends no name of a prompt",
        "rerank": lambda: ranked(ranker()),
        "errors": "it sends no name of a model",
        "retries": lambda: ranked(ranker()),  # its embedders try once
        "wrong-key": lambda: one(HuggingFaceAPITextEmbedder(**asked(key=WRONG_KEY))),
        "long-input": lambda: one(HuggingFaceAPITextEmbedder(**asked()), LONG),
    }


PACKAGES = {
    "openai": ("haystack-ai", openai),
    "cohere": ("cohere-haystack", cohere),
    "jina": ("jina-haystack", jina),
    "tei": ("huggingface-api-haystack", tei),
}

if __name__ == "__main__":
    base, control, key = driving.arguments()
    for name, (package, cases) in PACKAGES.items():
        driving.drive(control, f"haystack-{name}", version(package), cases(base, key))
