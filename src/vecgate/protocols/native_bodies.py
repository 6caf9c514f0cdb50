"""What goes over the wire on the native routes: the bodies of their requests and answers, and the names in them.

Belongs to native.py alone, which decides what they mean.
"""

from __future__ import annotations

from typing import Annotated, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecgate.core import Method
from vecgate.protocols import MOST, Expecting

METHODS: tuple[Method, ...] = get_args(Method)

# The bounds below only document: native.py refuses with sentences that name the value.
Count = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST})]
Texts = Annotated[list[str], Meta(extra_json_schema={"minItems": 1})]
MethodName = Annotated[str, Meta(extra_json_schema={"enum": list(METHODS)})]
Rows = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
]


class EmbedBody(Expecting, kw_only=True):
    """texts: one or many, at most MAX_TEXTS_PER_REQUEST. batch_size: most of them in one pass over the model (null:
    BATCH_SIZE). normalize: false leaves the rows as long as the model makes them. model: null is the default one."""

    texts: str | Texts
    batch_size: Count | None = None
    normalize: bool | None = True
    model: str | None = None


class RerankChoices(Expecting, kw_only=True):
    """top_k: how many results (null: all). use_cross_encoder: false asks for the cosine, true for the reranker. method:
    says it by name and wins. return_text: false leaves the texts out. model: null is the default one."""

    top_k: Count | None = None
    use_cross_encoder: bool | None = None
    method: MethodName | None = None
    return_text: bool | None = None
    model: str | None = None


class RerankBody(RerankChoices, kw_only=True):
    """passages: at most MAX_PASSAGES_PER_RERANK. top_k: how many results (null: all). use_cross_encoder: false asks for
    the cosine, true for the reranker. method: says it by name and wins. return_text: false leaves the texts out."""

    query: str
    passages: Texts


class RerankBatchBody(RerankChoices, kw_only=True):
    """queries: each as a body of /api/v1/rerank, with at most MAX_PASSAGES_PER_RERANK passages in all of them together.
    The other fields are for the queries that do not say it themselves."""

    queries: Annotated[list[RerankBody], Meta(extra_json_schema={"minItems": 1})]


class EmbedUsage(msgspec.Struct, kw_only=True):
    """total_tokens: computed, special tokens and prompt included, after the cut. batch_size (at most MAX_BATCH_SIZE),
    normalize: as applied."""

    total_texts: int
    total_tokens: int
    processing_time_ms: float
    backend: str
    batch_size: int
    normalize: bool


class EmbedAnswer(msgspec.Struct, kw_only=True):
    """vectors: one row of `dim` float32 numbers a text, in order. processing_time: seconds."""

    vectors: Rows
    dim: int
    processing_time: float
    device: str
    model_info: str
    usage: EmbedUsage


class ShortEmbedAnswer(msgspec.Struct, kw_only=True):
    """vectors: one row of `dim` float32 numbers a text, in order. backend: its name, a colon, the model's name."""

    vectors: Rows
    dim: int
    backend: str
    device: str


class Result(msgspec.Struct, kw_only=True):
    """score: the cosine where method is similarity, else 0 to 1. index: the passage's place in the request."""

    text: str | UnsetType = UNSET
    score: float
    index: int


class RerankUsage(msgspec.Struct, kw_only=True):
    """top_k: as applied. query_length: in characters."""

    total_passages: int
    returned_passages: int
    total_tokens: int
    processing_time_ms: float
    backend: str
    top_k: int
    query_length: int


class RerankAnswer(msgspec.Struct, kw_only=True):
    """results: best first. method: how they were scored. processing_time: seconds."""

    results: list[Result]
    query: str
    backend: str
    device: str
    method: MethodName
    processing_time: float
    usage: RerankUsage


class ShortRerankAnswer(msgspec.Struct, kw_only=True):
    """results: best first. backend: its name, a colon, the model's name. method: how they were scored."""

    results: list[Result]
    backend: str
    device: str
    method: MethodName


class BatchResult(RerankAnswer, kw_only=True):
    """What /api/v1/rerank answers to one query. index: the query's place in the request."""

    index: int


class BatchUsage(msgspec.Struct, kw_only=True):
    """Totals over all queries."""

    total_queries: int
    total_passages: int
    returned_passages: int
    total_tokens: int
    processing_time_ms: float


class RerankBatchAnswer(msgspec.Struct, kw_only=True):
    """results: one a query, in the order of the queries. processing_time: seconds for all of them."""

    results: list[BatchResult]
    processing_time: float
    usage: BatchUsage


class QueryError(msgspec.Struct, kw_only=True):
    """param: the field of the query that must change. code: one word for programs."""

    message: str
    type: str
    param: str | None
    code: str


class FailedQuery(msgspec.Struct, kw_only=True):
    """The line of a query that could not be answered. index: the query's place in the request."""

    index: int
    error: QueryError
