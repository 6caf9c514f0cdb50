"""The bodies of OpenAI's protocol as they go over the wire, and the words a request may hold; its own document in code.

Knows no engine; openai.py answers them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from vecgate.core import Task
from vecgate.protocols import Expecting, Ignored, vectors

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Items = Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
INPUT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": _TOKEN_ID, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": _TOKEN_ID, "minItems": 1}, "minItems": 1},
    ]
}
"""The four shapes of `input`; msgspec's own types can't tell a list of one kind from a mixed one."""

PURPOSES = {
    "search_query": "query",
    "query": "query",
    "search_document": "document",
    "document": "document",
    "passage": "document",
    "classification": "classification",
    "clustering": "clustering",
}
"""input_type -> role, as Cohere, Voyage and NVIDIA spell it; the last two are roles only where there is such a prompt."""
TASKS = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    **{name: name for name in ("text-matching", "classification", "clustering", "separation")},
}
"""Jina's task -> role; all but the first two are roles only where there is such a prompt."""
PACKED: tuple[vectors.Encoding, ...] = ("binary", "ubinary")
"""What Jina's embedding_type offers beside OpenAI's two: eight numbers a byte."""


class CreateEmbeddings(Expecting, kw_only=True):
    input: Annotated[
        str | Items,
        Meta(description="One text, texts, token ids, or arrays of token ids.", extra_json_schema=INPUT_SCHEMA),
    ]
    model: Annotated[
        str | None, Meta(description="A name or alias of GET /v1/models; absent or null: the default.")
    ] = None
    encoding_format: Annotated[
        str | None, Meta(description="float or base64.", extra_json_schema={"enum": ["float", "base64", None]})
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None,
        Meta(description="Numbers kept of each vector, which is then renormalised."),
    ] = None
    output_dimension: Annotated[int | None, Meta(description="The same, as Infinity's clients call it.")] = None
    input_type: Annotated[
        str | None,
        Meta(description=f"Whose prompt stands before each text: {', '.join(PURPOSES)}, or a prompt of the model."),
    ] = None
    task: Annotated[
        str | None,
        Meta(description=f"The same, as Jina's clients say it: {', '.join(TASKS)}, or a prompt of the model."),
    ] = None
    embedding_type: Annotated[
        str | list[str] | None,
        Meta(description="As Jina's clients say encoding_format: float, base64, binary or ubinary; one of them."),
    ] = None
    encoding_type: Annotated[str | None, Meta(description="The same, as LlamaIndex calls it.")] = None
    late_chunking: Annotated[bool | None, Meta(description="Not offered: true is refused.")] = None
    user: Ignored = msgspec.field(default_factory=msgspec.Raw)


class Embedding(msgspec.Struct, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[
        list[float] | str,
        Meta(description="A string (base64 of little-endian float32) or packed bits (integers) if asked for."),
    ]


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Verified(msgspec.Struct, kw_only=True):
    """How the check before readiness came out: passed, deviates or failed; at: seconds since the epoch. /health has more."""

    form: str
    verdict: str
    at: int


class Model(msgspec.Struct, kw_only=True):
    """OpenAI's four fields, and ours. root: the true name. role, dimensions: what the id stands for beside the model;
    no role: what the checkpoint says. dimensions: null for a reranker. space: the fingerprint of the vector space, null
    until it is known. verification: null before it was made, or where VECGATE_VERIFY is off."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vecgate"
    root: str
    role: str | None
    aliases: tuple[str, ...]
    task: Task
    state: str
    max_tokens: int
    dimensions: int | None
    space: str | None
    verification: Verified | None


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, kw_only=True):
    error: ErrorDetail
