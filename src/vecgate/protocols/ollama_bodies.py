"""What goes over the wire in Ollama's protocol: the bodies of its requests and answers.

Belongs to ollama.py alone, which decides what they mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecgate.protocols import MOST, Expecting, Ignored

# The bounds below only document: ollama.py refuses with sentences that name the value.
Width = Annotated[int, Meta(extra_json_schema={"minimum": 0, "maximum": MOST})]
Name = Annotated[str | None, Meta(description="A name of GET /api/tags, with or without :latest; null: the default.")]
Rows = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
]
Row = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "array", "items": {"type": "number"}})]
Nanoseconds = int


class OllamaEmbed(Expecting, kw_only=True):
    """input: one text or many, at most VECGATE_MAX_INPUTS; an empty one, or none, gives no rows. truncate: false refuses
    a text over the model's limit, null is the server's TRUNCATE. dimensions: numbers kept of each row, which is then
    renormalised; 0 and null are all of them."""

    model: Name = None
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Width | None = None
    options: Ignored = msgspec.field(default_factory=msgspec.Raw)
    keep_alive: Ignored = msgspec.field(default_factory=msgspec.Raw)


class OllamaEmbedding(Expecting, kw_only=True):
    """prompt: one text; an empty one, or none, gives an empty row."""

    model: Name = None
    prompt: str | None = None
    options: Ignored = msgspec.field(default_factory=msgspec.Raw)
    keep_alive: Ignored = msgspec.field(default_factory=msgspec.Raw)


class OllamaShow(msgspec.Struct, kw_only=True):
    """model, or name as it was once called; neither: the default one."""

    model: str | None = None
    name: str | None = None
    verbose: Ignored = msgspec.field(default_factory=msgspec.Raw)
    system: Ignored = msgspec.field(default_factory=msgspec.Raw)
    template: Ignored = msgspec.field(default_factory=msgspec.Raw)
    options: Ignored = msgspec.field(default_factory=msgspec.Raw)


class OllamaEmbeddings(msgspec.Struct, kw_only=True):
    """embeddings: one row of unit length a text, in order. total_duration: nanoseconds from the decoded body to the
    rows' text; load_duration: those of them before the model began. prompt_eval_count: tokens computed, special tokens
    and prompt included, after the cut. The three are left out where nothing was computed."""

    model: str
    embeddings: Rows
    total_duration: Nanoseconds | UnsetType = UNSET
    load_duration: Nanoseconds | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET


class OllamaRow(msgspec.Struct, kw_only=True):
    """embedding: the row as long as the model makes it."""

    embedding: Row


class OllamaDetails(msgspec.Struct, kw_only=True):
    parent_model: str = ""
    format: Literal["safetensors"] = "safetensors"
    family: str
    families: list[str]
    parameter_size: str = ""
    quantization_level: str


class OllamaModel(msgspec.Struct, kw_only=True):
    """name, model: the same. size: the weights' bytes. digest: stands for the model and its revision."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: OllamaDetails


class OllamaModels(msgspec.Struct, kw_only=True):
    """The embedding models by every name they answer to, with their roles as tags."""

    models: list[OllamaModel]


class OllamaLoaded(msgspec.Struct, kw_only=True):
    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    expires_at: str
    size_vram: int
    context_length: int


class OllamaProcesses(msgspec.Struct, kw_only=True):
    """The embedding models that are loaded; they stay."""

    models: list[OllamaLoaded]


class OllamaInfo(msgspec.Struct, kw_only=True):
    """model_info: architecture, and under its name context_length, embedding_length and pooling."""

    modelfile: str
    parameters: str
    template: str
    license: str
    modified_at: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]


class OllamaVersion(msgspec.Struct, kw_only=True):
    version: str
