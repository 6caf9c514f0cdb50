"""What goes over the wire in the protocol of Text Embeddings Inference: bodies of requests and answers, and their names.

Belongs to tei.py alone, which decides what they mean. The schema is the one that TEI publishes (its docs/openapi.json).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecgate.core import Cut
from vecgate.protocols import MOST, Expecting, Ignored

DIRECTIONS: dict[str, Cut] = {"right": "end", "left": "start"}
"""Which side of an input is cut, in any case: the server's own clients write Left, huggingface_hub writes left."""
POOLINGS = {"last": "last_token"}
"""TEI's word for a pooling where it is not ours."""
ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Empty"]

# The bounds and choices below only document: tei.py refuses with sentences that name the value.
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": MOST}
_ONE = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TOKEN_ID, "minItems": 1}]}
INPUTS_SCHEMA = {"anyOf": [*_ONE["anyOf"], {"type": "array", "items": _ONE, "minItems": 1}]}
"""One text, one list of token ids, or a list of either; msgspec's own types can't tell ids beside texts from a list."""
IDS_SCHEMA = {
    "anyOf": [
        {"type": "array", "items": _TOKEN_ID, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": _TOKEN_ID, "minItems": 1}, "minItems": 1},
    ]
}
TokenId = Annotated[int, Meta(ge=0, le=MOST)]
Inputs = Annotated[str | list[str | TokenId | list[TokenId]], Meta(extra_json_schema=INPUTS_SCHEMA)]
Ids = Annotated[list[TokenId | list[TokenId]], Meta(extra_json_schema=IDS_SCHEMA)]
_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
Texts = Annotated[list[str], Meta(extra_json_schema={"minItems": 1})]
Count = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST})]
Direction = Annotated[str, Meta(extra_json_schema={"enum": ["Left", "Right", "left", "right"]})]


class Truncation(Expecting, kw_only=True):
    """truncate: true cuts an input over the limit, false refuses it, null is the server's TRUNCATE. truncation_direction:
    the side that is cut off (null: Right)."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None


class TeiEmbed(Truncation, kw_only=True):
    """inputs: a text, the model's token ids, or a list of either, at most VECGATE_MAX_INPUTS; ids may come with the
    model's special tokens or without them. normalize: false leaves rows as the model gives them (null: true).
    prompt_name: the name of one of the model's prompts (null: its default one, if it has one). dimensions: numbers kept
    of each row."""

    inputs: Inputs
    normalize: bool | None = None
    prompt_name: str | None = None
    dimensions: Count | None = None


class Sentences(msgspec.Struct, kw_only=True):
    source_sentence: str
    sentences: Texts


class SimilarityParameters(msgspec.Struct, kw_only=True):
    """truncate, truncation_direction, prompt_name: as in /embed."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class TeiSimilarity(Expecting, kw_only=True):
    """sentences: at most VECGATE_MAX_INPUTS. In x-vecgate-truncated the source sentence is 0, the sentences follow."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class TeiRerank(Truncation, kw_only=True):
    """texts: at most MAX_PASSAGES_PER_RERANK. raw_scores: true gives logits, or cosines where an embedding model ranks,
    instead of scores from 0 to 1. return_text: true puts each text into its rank. top_n: how many ranks (null: all), which
    TEI itself does not know, but LiteLLM sends."""

    query: str
    texts: Texts
    raw_scores: bool | None = None
    return_text: bool | None = None
    top_n: Annotated[int, Meta(extra_json_schema={"minimum": 1})] | None = None


class TeiTokenize(msgspec.Struct, kw_only=True):
    """inputs: a text or texts, at most VECGATE_MAX_INPUTS. add_special_tokens: null is true. prompt_name: as in /embed;
    the prompt is part of the text then, and of its tokens."""

    inputs: Annotated[str | list[str], Meta(extra_json_schema={"anyOf": [{"type": "string"}, _TEXTS]})]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class TeiDecode(msgspec.Struct, kw_only=True):
    """ids: the model's token ids, or lists of them, at most VECGATE_MAX_INPUTS. skip_special_tokens: null is true."""

    ids: Ids
    skip_special_tokens: bool | None = None


class TeiUnoffered(msgspec.Struct, kw_only=True):
    """What a classifier, a sparse model or one without pooling would take; this server has none of them."""

    inputs: Ignored = msgspec.field(default_factory=msgspec.Raw)


class Rank(msgspec.Struct, kw_only=True):
    """index: the text's place in the request."""

    index: int
    text: str | UnsetType = UNSET
    score: float


class SimpleToken(msgspec.Struct, kw_only=True):
    """start, stop: characters of the text, its prompt included; null for a special token."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class EmbeddingModel(msgspec.Struct, kw_only=True):
    pooling: str


class RerankerModel(msgspec.Struct, kw_only=True):
    id2label: dict[str, str] = msgspec.field(default_factory=lambda: {"0": "LABEL_0"})
    label2id: dict[str, int] = msgspec.field(default_factory=lambda: {"LABEL_0": 0})


class ModelType(msgspec.Struct, kw_only=True):
    """One of the two, by the server's main model: the embedding model where there is one."""

    embedding: EmbeddingModel | UnsetType = UNSET
    reranker: RerankerModel | UnsetType = UNSET


class Info(msgspec.Struct, kw_only=True):
    """The server's own limits. max_input_length: tokens of one input, specials included. max_client_batch_size: inputs of
    one request, or texts where only a reranker is served. max_batch_tokens, max_batch_requests: of one batch on the
    device. space: the fingerprint of the main model's vector space, null until it is known."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    space: str | None
    sha: str | None = None
    docker_label: str | None = None


class ErrorResponse(msgspec.Struct, kw_only=True):
    error: str
    error_type: ErrorType
