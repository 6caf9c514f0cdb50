"""What goes over the wire in Cohere's protocol: the bodies of its requests and answers, and the names in them.

Belongs to cohere.py alone, which decides what they mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecgate.core import Cut
from vecgate.protocols import MOST, Expecting, Ignored, vectors

Version = Literal["1", "2"]
CUTS: dict[str, Cut] = {"NONE": "refuse", "START": "start", "END": "end"}
ROLES = {"search_document": "document", "search_query": "query"}
INPUT_TYPES = (*ROLES, "classification", "clustering")
"""The latter two are roles only of checkpoints that have a prompt of that name."""

# The bounds and choices below only document: cohere.py refuses with sentences that name the value.
Count = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST})]
Document = Annotated[
    dict[str, Any],
    Meta(extra_json_schema={"properties": {"text": {"type": "string"}}, "required": ["text"]}),
]


class CohereRerank(Expecting, kw_only=True):
    """documents: texts, or objects of which `rank_fields` (null: text) are read one after the other; at most
    MAX_PASSAGES_PER_RERANK. top_n: how many results (null: all). max_tokens_per_doc: what a longer document is cut to
    (null: 4096). return_documents: true puts each result's document into it."""

    query: str
    documents: Annotated[list[str | dict[str, msgspec.Raw]], Meta(extra_json_schema={"minItems": 1})]
    model: str | None = None
    top_n: Count | None = None
    rank_fields: Annotated[list[str], Meta(extra_json_schema={"minItems": 1})] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Count | None = None
    max_chunks_per_doc: Ignored = msgspec.field(default_factory=msgspec.Raw)
    priority: Ignored = msgspec.field(default_factory=msgspec.Raw)


class Part(msgspec.Struct, kw_only=True):
    """A part of one input; `type` must be text."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]
    text: str | None = None


class Content(msgspec.Struct, kw_only=True):
    """One input; its parts are read one after the other."""

    content: Annotated[list[Part], Meta(extra_json_schema={"minItems": 1})]


class CohereEmbed(Expecting, kw_only=True):
    """texts or inputs: one of the two, at most VECGATE_MAX_INPUTS. input_type: search_query and search_document put the
    model's prompt for it before each text, the others where the model has one. embedding_types: null is float; int8 is
    round(127 x / max|x|) of each row, uint8 that plus 128, ubinary one bit a number (set above 0), binary that minus
    128, base64 little-endian float32. truncate: what an input over the limit loses; NONE refuses it, null is the
    server's TRUNCATE. output_dimension: numbers kept of each row, which is then renormalised. max_tokens: a lower limit
    than the model's, special tokens included."""

    texts: Annotated[list[str], Meta(extra_json_schema={"minItems": 1})] | None = None
    inputs: Annotated[list[Content], Meta(extra_json_schema={"minItems": 1})] | None = None
    images: Annotated[Any, Meta(description="Refused: text only.", extra_json_schema={"enum": [None, []]})] = None
    model: str | None = None
    input_type: Annotated[str | None, Meta(extra_json_schema={"enum": [*INPUT_TYPES, None]})] = None
    embedding_types: list[Annotated[str, Meta(extra_json_schema={"enum": list(vectors.ENCODINGS)})]] | None = None
    truncate: Annotated[str | None, Meta(extra_json_schema={"enum": [*CUTS, None]})] = None
    output_dimension: Count | None = None
    max_tokens: Count | None = None
    priority: Ignored = msgspec.field(default_factory=msgspec.Raw)


class ApiVersion(msgspec.Struct, kw_only=True):
    version: Version


class BilledUnits(msgspec.Struct, kw_only=True):
    """input_tokens: computed, special tokens and prompt included, after the cut. search_units: one for every 100
    documents or part of that."""

    input_tokens: int | UnsetType = UNSET
    search_units: int | UnsetType = UNSET


class ApiMeta(msgspec.Struct, kw_only=True):
    api_version: ApiVersion
    billed_units: BilledUnits


class RerankedDocument(msgspec.Struct, kw_only=True):
    """index: the document's place in the request. relevance_score: 0 to 1."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class TokenUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class CohereRanking(msgspec.Struct, kw_only=True):
    """results: best first. model: the name asked for, else the true one."""

    id: str
    results: list[RerankedDocument]
    meta: ApiMeta
    model: str
    usage: TokenUsage


class EmbeddingsByType(msgspec.Struct, kw_only=True):
    """The types asked for and no other; one row a text, in order."""

    float_: list[list[float]] | UnsetType = msgspec.field(name="float", default=UNSET)
    int8: list[list[int]] | UnsetType = UNSET
    uint8: list[list[int]] | UnsetType = UNSET
    binary: list[list[int]] | UnsetType = UNSET
    ubinary: list[list[int]] | UnsetType = UNSET
    base64: list[str] | UnsetType = UNSET


class EmbedByType(msgspec.Struct, kw_only=True, tag="embeddings_by_type", tag_field="response_type"):
    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: ApiMeta


class EmbedFloats(msgspec.Struct, kw_only=True, tag="embeddings_floats", tag_field="response_type"):
    """What version 1 answers when no embedding_types are asked for."""

    id: str
    embeddings: list[list[float]]
    texts: list[str]
    meta: ApiMeta
