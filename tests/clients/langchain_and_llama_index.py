"""LangChain and LlamaIndex as people use them, against a live server; run in an environment of their own.

    python langchain_and_llama_index.py BASE_URL PAGE... < ["text", ...] > {"case": result, ...}

A PAGE, or an example, is a case of its own: what its Python prints.

Imports nothing of vecgate: what comes back is judged by the test that runs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pages
from langchain_cohere import CohereEmbeddings, CohereRerank
from langchain_core.documents import Document
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.postprocessor.cohere_rerank import CohereRerank as LlamaCohereRerank

MODEL = "all-MiniLM-L6-v2"
QUERY = "What is the capital of France?"
DOCUMENTS = ["Dogs bark at night.", "Paris is the capital of France.", "Rust is a programming language."]


def cases(base: str, texts: list[str]) -> dict[str, Callable[[], Any]]:
    openai: dict[str, Any] = {"model": MODEL, "base_url": f"{base}/v1", "api_key": "unused", "max_retries": 0}
    cohere: dict[str, Any] = {"base_url": base, "cohere_api_key": "unused", "model": MODEL}
    llama = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{base}/v1", api_key="unused", max_retries=0)
    return {
        "langchain-openai, its default (token ids)": lambda: OpenAIEmbeddings(**openai).embed_documents(texts),
        "langchain-openai, texts": lambda: OpenAIEmbeddings(**openai, check_embedding_ctx_length=False).embed_documents(
            texts
        ),
        "langchain-openai, a query": lambda: [
            OpenAIEmbeddings(**openai, check_embedding_ctx_length=False).embed_query(text) for text in texts
        ],
        "langchain-ollama": lambda: OllamaEmbeddings(
            model="minilm", base_url=base, validate_model_on_init=True
        ).embed_documents(texts),
        "langchain-cohere": lambda: CohereEmbeddings(**cohere).embed_documents(texts),
        "llama-index, OpenAILike": lambda: llama.get_text_embedding_batch(texts),
        "langchain-cohere, rerank": lambda: CohereRerank(**cohere, top_n=3).rerank(DOCUMENTS, QUERY),
        "langchain-cohere, compress": lambda: [
            document.page_content
            for document in CohereRerank(**cohere, top_n=1).compress_documents(
                [Document(text) for text in DOCUMENTS], QUERY
            )
        ],
        "llama-index, rerank": lambda: [
            node.node.get_content()
            for node in LlamaCohereRerank(api_key="unused", base_url=base, model=MODEL, top_n=2).postprocess_nodes(
                [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS], query_str=QUERY
            )
        ],
    }


if __name__ == "__main__":
    base, *files = sys.argv[1:]
    calls = cases(base, json.load(sys.stdin)) | {file: partial(pages.run, file, base) for file in files}
    print(json.dumps({name: call() for name, call in calls.items()}))
