"""LlamaIndex against a server: its embeddings and rerankers for OpenAI, OpenAI-like servers, Cohere, Jina and TEI."""

from __future__ import annotations

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
    RERANKER,
    TEXTS,
    TOP_N,
    UNKNOWN,
    WRONG_KEY,
    Call,
    Result,
)
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.cohere import CohereEmbedding
from llama_index.embeddings.jinaai import JinaEmbedding
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

OPENAI = "text-embedding-3-small"
COHERE = "embed-english-v3.0"
COHERE_UNKNOWN = "embed-multilingual-v3.0"
"""Vendors' names: the classes for them take no others; the server does not know the last one."""
FLOATS = {"encoding_format": "float"}
NO_IDS = "it takes texts only"
NO_RERANK = "the package has no rerank"

Cases = dict[str, Call | str]


def one(embedding: Any, text: str = TEXTS[0]) -> Result:
    return driving.vectors([embedding.get_text_embedding(text)])


def many(embedding: Any) -> Result:
    return driving.vectors(embedding.get_text_embedding_batch(TEXTS))


def both(query: Any, document: Any) -> Result:
    rows = document.get_text_embedding_batch(DOCUMENTS)
    return driving.vectors([query.get_query_embedding(QUERY), *rows])


def ranked(reranker: Any) -> Result:
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(at))) for at, text in enumerate(DOCUMENTS)]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    return driving.ranking((int(each.node.node_id), each.score) for each in found)


def openai_cases(embedding: Callable[..., Any], query: str, document: str) -> Cases:
    """query, document: the names of the model in the roles."""
    return {
        "embedding": lambda: one(embedding(additional_kwargs=FLOATS)),
        "batch": lambda: many(embedding(additional_kwargs=FLOATS)),
        "base64": lambda: many(embedding()),  # the SDK beneath asks for it unless told otherwise
        "dimensions": lambda: many(embedding(dimensions=DIMENSIONS)),
        "token-ids": NO_IDS,
        "roles": lambda: both(embedding(model_name=query), embedding(model_name=document)),
        "rerank": NO_RERANK,
        "errors": lambda: one(embedding(model_name=UNKNOWN)),
        "retries": lambda: one(embedding(model_name=FAILING)),
        "wrong-key": lambda: one(embedding(key=WRONG_KEY)),
        "long-input": lambda: one(embedding(), LONG),
    }


def openai(base: str, right_key: str) -> Cases:
    """`model` takes OpenAI's names only, `model_name` any."""

    def embedding(key: str = right_key, **more: Any) -> OpenAIEmbedding:
        return OpenAIEmbedding(model=OPENAI, api_base=f"{base}/v1", api_key=key, **more)

    return openai_cases(embedding, f"{MODEL}:query", f"{MODEL}:document")


def openai_like(base: str, right_key: str) -> Cases:
    def embedding(model_name: str = MODEL, key: str = right_key, **more: Any) -> OpenAILikeEmbedding:
        return OpenAILikeEmbedding(model_name=model_name, api_base=f"{base}/v1", api_key=key, **more)

    return openai_cases(embedding, f"{MODEL}:query", f"{MODEL}:document")


def cohere(base: str, right_key: str) -> Cases:
    def embedding(model_name: str = COHERE, key: str = right_key) -> CohereEmbedding:
        return CohereEmbedding(model_name=model_name, base_url=base, api_key=key)

    def reranker() -> CohereRerank:
        return CohereRerank(model=RERANKER, base_url=base, api_key=right_key, top_n=TOP_N)

    return {
        "embedding": lambda: one(embedding()),
        "batch": lambda: many(embedding()),
        "base64": "it knows the types float, int8, uint8, binary and ubinary",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": lambda: both(embedding(), embedding()),
        "rerank": lambda: ranked(reranker()),
        "errors": lambda: one(embedding(COHERE_UNKNOWN)),
        "retries": lambda: one(embedding()),
        "wrong-key": lambda: one(embedding(key=WRONG_KEY)),
        "long-input": lambda: one(embedding(), LONG),
    }


def jina(base: str, right_key: str) -> Cases:
    """JinaRerank takes a URL; JinaEmbedding takes none, so what it would call is set in its own caller."""

    def embedding(model: str = MODEL, key: str = right_key, **more: Any) -> JinaEmbedding:
        made = JinaEmbedding(model=model, api_key=key, **more)
        made._api.api_url = f"{base}/v1/embeddings"
        return made

    def reranker() -> JinaRerank:
        return JinaRerank(model=RERANKER, base_url=f"{base}/v1", api_key=right_key, top_n=TOP_N)

    return {
        "embedding": lambda: one(embedding()),
        "batch": lambda: many(embedding()),
        "base64": "it knows the encodings float, binary and ubinary",
        "dimensions": lambda: many(embedding(dimensions=DIMENSIONS)),
        "token-ids": NO_IDS,
        "roles": lambda: both(embedding(f"{MODEL}:query"), embedding(f"{MODEL}:document")),
        "rerank": lambda: ranked(reranker()),
        "errors": lambda: one(embedding(UNKNOWN)),
        "retries": lambda: one(embedding(FAILING)),
        "wrong-key": lambda: one(embedding(key=WRONG_KEY)),
        "long-input": lambda: one(embedding(), LONG),
    }


def tei(base: str, right_key: str) -> Cases:
    """The name of the model stays in the client, which chooses instructions by it; the reranker returns what the server does."""

    def embedding(key: str = right_key) -> TextEmbeddingsInference:
        return TextEmbeddingsInference(model_name=MODEL, base_url=base, auth_token=key)

    def reranker() -> TextEmbeddingInference:
        return TextEmbeddingInference(base_url=base, auth_token=f"Bearer {right_key}", top_n=TOP_N)

    return {
        "embedding": lambda: one(embedding()),
        "batch": lambda: many(embedding()),
        "base64": "TEI's API knows lists of numbers only",
        "dimensions": "it has no such argument",
        "token-ids": NO_IDS,
        "roles": lambda: both(embedding(), embedding()),
        "rerank": lambda: ranked(reranker()),
        "errors": "it sends no name of a model",
        "retries": lambda: one(embedding()),
        "wrong-key": lambda: one(embedding(key=WRONG_KEY)),
        "long-input": lambda: one(embedding(), LONG),
    }


PACKAGES = {
    "openai": ("embeddings-openai", openai),
    "openai-like": ("embeddings-openai-like", openai_like),
    "cohere": ("embeddings-cohere", cohere),
    "jina": ("embeddings-jinaai", jina),
    "tei": ("embeddings-text-embeddings-inference", tei),
}

if __name__ == "__main__":
    base, control, key = driving.arguments()
    for name, (package, cases) in PACKAGES.items():
        driving.drive(control, f"llama-index-{name}", version(f"llama-index-{package}"), cases(base, key))
