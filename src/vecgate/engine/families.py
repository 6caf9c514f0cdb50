"""What the families' cards say where a checkpoint's files are silent: pooling, prompts, ending, the form of a pair.

A conversion to MLX carries weights, config.json and a tokenizer only. Data, one row a family, the first that fits counts;
what a file says always wins. A row is verified where one of our tests holds it against the real files; the others are as
their model cards are remembered. Knows no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vecgate.core import PairTemplate, Pooling, Task

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
"""The instruction of Qwen3-Embedding and Qwen3-Reranker where a caller names no other."""
QUERY_AND_PASSAGE = {"query": "query: ", "document": "passage: "}
NOMIC = {
    "query": "search_query: ",
    "document": "search_document: ",
    "clustering": "clustering: ",
    "classification": "classification: ",
}
GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}
RERANKER_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANKER_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Family:
    """One row.

    types: config.json's model_type. pattern: found in the checkpoint's name, without case (None: no name needed).
    config: keys of config.json that identify the family as well as its name does. implied: keys that its own code, which
    is never run, would add. ending: the token that every row ends with; a causal language model whose tokenizer
    puts it there is of the family where `by_ending`. max_tokens: the card's limit. dense: it has Dense layers, which can't be made up.
    instructed: a reranker that reads pairs in Qwen3-Reranker's form, about the instruction that is its default prompt.
    """

    name: str
    types: tuple[str, ...]
    pattern: str | None
    source: str
    task: Task = "embed"
    pooling: Pooling = "mean"
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    ending: str | None = None
    by_ending: bool = False
    dense: bool = False
    instructed: bool = False
    verified: bool = False


FAMILIES = (
    Family(
        name="Qwen3-Reranker",
        types=("qwen3",),
        pattern=None,
        source="model card of Qwen/Qwen3-Reranker-0.6B, the variant for transformers (single newlines)",
        task="rerank",
        prompts={"query": WEB_SEARCH},
        default_prompt="query",
        max_tokens=8192,
        instructed=True,
    ),
    Family(
        name="jina-embeddings-v5-text",
        types=("qwen3", "eurobert"),
        pattern=r"jina-embeddings-v5-text",
        source="model card of jinaai/jina-embeddings-v5-text-small",
        pooling="last",
        prompts={"query": "Query: ", "document": "Document: "},
    ),
    Family(
        name="Qwen3-Embedding",
        types=("qwen3",),
        pattern=r"qwen3-embedding",
        source="Qwen/Qwen3-Embedding-0.6B: modules.json, 1_Pooling, config_sentence_transformers.json",
        pooling="last",
        prompts={"query": f"Instruct: {WEB_SEARCH}\nQuery:", "document": ""},
        max_tokens=32768,
        ending="<|endoftext|>",
        by_ending=True,
    ),
    Family(
        name="gte-Qwen2-instruct",
        types=("qwen2",),
        pattern=r"gte-qwen2-[\d.]+b-instruct",
        source="Alibaba-NLP/gte-Qwen2-1.5B-instruct: config_sentence_transformers.json, tokenization_qwen.py",
        pooling="last",
        prompts={"query": f"Instruct: {WEB_SEARCH}\nQuery: "},
        implied={"is_causal": False},
        max_tokens=32768,
        ending="<|endoftext|>",
    ),
    Family(
        name="e5-mistral",
        types=("mistral",),
        pattern=r"e5-mistral-7b-instruct",
        source="model card of intfloat/e5-mistral-7b-instruct, its config_sentence_transformers.json (web_search_query)",
        pooling="last",
        prompts={"query": f"Instruct: {WEB_SEARCH}\nQuery: "},
        max_tokens=4096,
        ending="</s>",
    ),
    Family(
        name="EmbeddingGemma",
        types=("gemma3_text",),
        pattern=r"embeddinggemma|embedding-gemma",
        source="google/embeddinggemma-300m: modules.json, config_sentence_transformers.json",
        prompts=GEMMA,
        config={"use_bidirectional_attention": True},
        max_tokens=2048,
        ending="<eos>",
        dense=True,
    ),
    Family(
        name="bge-m3",
        types=("xlm-roberta",),
        pattern=r"bge-m3(?!\w)",
        source="BAAI/bge-m3: 1_Pooling",
        pooling="cls",
        max_tokens=8192,
    ),
    Family(
        name="bge, English",
        types=("bert",),
        pattern=r"bge-(small|base|large)-en",
        source="BAAI/bge-small-en-v1.5: 1_Pooling, README",
        pooling="cls",
        prompts={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
        max_tokens=512,
    ),
    Family(
        name="bge, Chinese",
        types=("bert",),
        pattern=r"bge-(small|base|large)-zh",
        source="BAAI/bge-small-zh-v1.5: 1_Pooling, README",
        pooling="cls",
        prompts={
            "query": "\u4e3a\u8fd9\u4e2a\u53e5\u5b50\u751f\u6210\u8868\u793a\u4ee5\u7528\u4e8e\u68c0\u7d22\u76f8\u5173\u6587\u7ae0\uff1a",
            "document": "",
        },
        max_tokens=512,
    ),
    Family(
        name="mxbai-embed",
        types=("bert",),
        pattern=r"mxbai-embed-large-v1",
        source="mixedbread-ai/mxbai-embed-large-v1: 1_Pooling, config_sentence_transformers.json",
        pooling="cls",
        normalize=False,
        prompts={"query": "Represent this sentence for searching relevant passages: ", "document": ""},
        max_tokens=512,
    ),
    Family(
        name="multilingual-e5-instruct",
        types=("xlm-roberta",),
        pattern=r"multilingual-e5-large-instruct",
        source="model card of intfloat/multilingual-e5-large-instruct",
        prompts={"query": f"Instruct: {WEB_SEARCH}\nQuery: ", "document": ""},
        max_tokens=512,
    ),
    Family(
        name="e5",
        types=("bert", "xlm-roberta"),
        pattern=r"(^|[/_-])(multilingual-)?e5-(small|base|large)",
        source="model cards of intfloat/e5-small-v2 and intfloat/multilingual-e5-small",
        prompts=QUERY_AND_PASSAGE,
        max_tokens=512,
    ),
    Family(
        name="gte-modernbert",
        types=("modernbert",),
        pattern=r"gte-modernbert-base",
        source="Alibaba-NLP/gte-modernbert-base: 1_Pooling, modules.json",
        pooling="cls",
        normalize=False,
        max_tokens=8192,
    ),
    Family(
        name="gte, Chinese",
        types=("bert",),
        pattern=r"gte-(small|base|large)-zh",
        source="thenlper/gte-base-zh: 1_Pooling",
        pooling="cls",
        max_tokens=512,
    ),
    Family(
        name="gte",
        types=("bert",),
        pattern=r"gte-(small|base|large)(?!-en)",
        source="thenlper/gte-base: 1_Pooling, modules.json",
        max_tokens=512,
    ),
    Family(
        name="nomic, ModernBERT",
        types=("modernbert",),
        pattern=r"(nomic.*modernbert-embed|modernbert-embed-(base|large))",
        source="nomic-ai/modernbert-embed-base: 1_Pooling, README",
        prompts=NOMIC,
        max_tokens=8192,
    ),
    Family(
        name="nomic-embed-text",
        types=("nomic_bert",),
        pattern=r"nomic-embed-text-v1",
        source="nomic-ai/nomic-embed-text-v1.5: 1_Pooling, README",
        prompts=NOMIC,
        max_tokens=8192,
    ),
    Family(
        name="all-MiniLM-L6",
        types=("bert",),
        pattern=r"all-minilm-l6-v\d",
        source="sentence-transformers/all-MiniLM-L6-v2: 1_Pooling, modules.json, sentence_bert_config.json",
        max_tokens=256,
        verified=True,
    ),
    Family(
        name="all-MiniLM-L12",
        types=("bert",),
        pattern=r"all-minilm-l12-v\d",
        source="sentence-transformers/all-MiniLM-L12-v2: 1_Pooling, modules.json, sentence_bert_config.json",
        max_tokens=128,
    ),
    Family(
        name="all-mpnet",
        types=("mpnet",),
        pattern=r"all-mpnet-base",
        source="sentence-transformers/all-mpnet-base-v2: 1_Pooling, modules.json",
        max_tokens=384,
    ),
)


def find(config: Mapping[str, Any], name: str, task: Task, ending: str | None = None) -> Family | None:
    """The row of a model_type and a task that the name, the config or the tokenizer's `ending` identifies."""
    return next((row for row in FAMILIES if _fits(row, config, name, task, ending)), None)


def called(config: Mapping[str, Any], name: str) -> Family | None:
    """The row of a model_type that the checkpoint's name alone identifies."""
    rows = (replace(row, by_ending=False, config={}) for row in FAMILIES if row.pattern is not None)
    return next((row for row in rows if _fits(row, config, name, row.task, None)), None)


def pair_form(instruction: str) -> PairTemplate:
    """Qwen3-Reranker's form of a pair."""
    lead = f"<Instruct>: {instruction}\n<Query>: "
    return PairTemplate(RERANKER_PREFIX, lead, "\n<Document>: ", RERANKER_SUFFIX)


def _fits(row: Family, config: Mapping[str, Any], name: str, task: Task, ending: str | None) -> bool:
    if config.get("model_type") not in row.types or row.task != task:
        return False
    if config.get("is_causal", row.implied.get("is_causal", True)) != row.implied.get("is_causal", True):
        return False  # another family's training of the same decoder
    named = row.pattern is None or re.search(row.pattern, name.casefold()) is not None
    shaped = bool(row.config) and all(config.get(key) == value for key, value in row.config.items())
    architectures = config.get("architectures") or [""]
    ends = row.by_ending and ending == row.ending and str(architectures[0]).endswith("ForCausalLM")
    return named or shaped or ends
