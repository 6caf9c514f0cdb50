"""What is asked of each kind of tests/tiny, as data: the texts, the roles, the recipe the reference follows.

Knows neither a backend nor an engine: tests/test_families.py asks both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny.decoders import WEB_SEARCH
from tests.tiny.rerankers import INSTRUCTION, PREFIX, SUFFIX
from tests.tiny.words import WORDS, id_of, qwen
from vecgate.core import Task

TOLERANCE: dict[Task, float] = {"embed": 5e-6, "rerank": 1e-4}
"""max |difference| of unit rows, and of logits, in float32."""
LONG = " ".join(WORDS[at * at % 17] for at in range(40))
LONGER = " ".join(WORDS[60 + at * at % 43] for at in range(300))
TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "Paris is the capital of France.",
    "How many people live in Berlin?",
    "hello world",
    "1984",
    "你好，世界",
    "Привет, мир! αβγ",
    "def now(it):\n    return 1 + it",
    "literal [CLS] and [SEP] or <s> </s> <pad>[PAD] <|endoftext|> <|im_end|> <bos> <eos> <mask> in a text",
    "cafe\u0301 against café, and ﬁne",
    LONG,
    LONGER,
    "  more  spaces\t\n they made ",
    "no way",
    "",
    "深東京の首都です。",
    "YES and NO; don't!",
    "x = [1, 2, 3]; y = x ** 2",
    "cat",
    "one more word than that",
)
"""LONG is over every local window, LONGER over every limit."""
FEW = (TEXTS[1], TEXTS[3], "")
"""Asked in every role; LONGER in the first, where the prompt takes of the text's room."""
QUERY = "what is the capital of france?"
TELLING = (0, 1, 8, 9, 10, 11)
"""Texts of every sort: what a mistake changes, it changes in one of them."""
PAIRS = (
    (LONGER, TEXTS[1]),
    (LONGER, LONGER[::-1]),
    ("", TEXTS[0]),
    (LONG, "yes"),
    *((QUERY, TEXTS[at]) for at in TELLING),
    *((QUERY, text) for at, text in enumerate(TEXTS) if at not in TELLING),
)
BODY = f"<Instruct>: {INSTRUCTION}\n<Query>: {{query}}\n<Document>: {{document}}"
JUDGED: dict[str, Any] = {"template": [PREFIX, BODY, SUFFIX], "max_tokens": 256}
SAID = {word: id_of(qwen(end=False), word) for word in ("yes", "no")}
"""Where a causal language model's own head has the two answers."""


@dataclass(frozen=True, slots=True)
class Case:
    """kind: of tests/tiny. roles: asked of FEW texts besides the plain call. how, more: the reference's recipe. twin: the
    kind whose folder the reference reads, where it can't read this one's. name: what it is served as, where the name is
    all that tells of the family. most: pairs, where each is slow."""

    kind: str
    task: Task = "embed"
    roles: tuple[str, ...] = ()
    how: str = "encode"
    more: dict[str, Any] = field(default_factory=dict)
    twin: str | None = None
    name: str | None = None
    most: int = len(PAIRS)

    @property
    def asked(self) -> list[tuple[str | None, str]]:
        """(role, text) of an embedder."""
        cut = [(role, LONGER) for role in self.roles[:1]]
        return [*((None, text) for text in TEXTS), *((role, text) for role in self.roles for text in FEW), *cut]

    @property
    def telling(self) -> list[int]:
        """Places of few inputs of every sort."""
        if self.task == "rerank":
            return [*range(10)]
        return [*TELLING, *(at for at in range(len(TEXTS), len(self.asked)) if self.asked[at][1])]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(query, document) of a reranker."""
        return [*PAIRS[: self.most]]

    def told(self, folder: Path) -> dict[str, Any]:
        """As engine/reference.py takes it."""
        asked = self.asked if self.task == "embed" else self.pairs
        return {"name": self.kind, "folder": str(folder), "how": self.how, "asked": asked, **self.more}


# llama: sentence-transformers documents that encode_document takes the prompt "passage", but 6.2 finds an empty "document".
E5_MISTRAL = {"tail": [2], "max_tokens": 96, "prompts": {"web_search_query": f"{WEB_SEARCH} "}}
CASES = (
    Case("bert", roles=("query", "document")),
    Case("bge", roles=("query", "document")),
    Case("roberta", roles=("question", "query")),
    Case("xlmr", roles=("query", "document")),
    Case("modernbert"),
    Case("modernbert-mean", roles=("query", "document")),
    Case("nomic_bert", roles=("query", "document", "clustering"), twin="nomic_bert-native"),
    Case("nomic_bert-native", roles=("query", "clustering")),
    Case("mpnet"),
    Case("distilbert"),
    Case("distiluse"),
    Case("pooled"),
    Case("pooled-old"),
    Case("instructor", roles=("query", "document")),
    Case("qwen3", roles=("query", "document")),
    Case("qwen3-untied", roles=("query",)),
    Case("gemma3", roles=("query", "document", "STS")),
    Case("mistral", roles=("web_search_query",), how="last", more=E5_MISTRAL),
    Case("qwen2", roles=("query",)),
    Case("llama", roles=("query", "document"), more={"prompts": {"document": "passage: "}}),
    Case("bert-reranker", "rerank", how="predict"),
    Case("xlmr-reranker", "rerank", how="predict"),
    Case("modernbert-reranker", "rerank", how="predict"),
    Case("modernbert-reranker-cls", "rerank", how="predict"),
    Case("qwen3-reranker", "rerank", how="judge", more=JUDGED | SAID, most=14),
    Case("qwen3-classifier", "rerank", how="judge", more=JUDGED, most=14),
    Case("qwen3-logit", "rerank", how="predict", most=14),
    Case("zerank", "rerank", how="predict"),
)
CONVERTED = (
    Case("qwen3-4bit", roles=("query",), twin="qwen3-4bit-twin", name="Qwen3-Embedding-0.6B-4bit-DWQ"),
    Case("qwen3-mixed", roles=("query",), twin="qwen3-mixed-twin", name="Qwen3-Embedding-0.6B-mixed-4-6-bit"),
    Case("qwen3-mxfp4", twin="qwen3-mxfp4-twin", name="Qwen3-Embedding-8B-mxfp4"),
    Case("qwen3-bf16", roles=("query",), twin="qwen3-bf16-twin", name="Qwen3-Embedding-0.6B-bf16"),
    Case(
        "qwen3-reranker-4bit",
        "rerank",
        how="judge",
        more=JUDGED | SAID,
        twin="qwen3-reranker-4bit-twin",
        name="Qwen3-Reranker-0.6B-4bit",
        most=8,
    ),
    Case("gemma3-8bit", roles=("query", "STS"), twin="gemma3-8bit-twin", name="embeddinggemma-300m-8bit"),
    Case("bert-8bit", twin="bert-8bit-twin", name="all-MiniLM-L6-v2-8bit"),
    Case("xlmr-8bit", twin="xlmr-8bit-twin", name="bge-m3-8bit"),
)
"""For MLX alone."""
CASE = {case.kind: case for case in (*CASES, *CONVERTED)}
