"""Ollama's wire protocol, as far as it is about embeddings: embed, the older embeddings, and what there is.

Knows traits.Engine and the site's limits. What it answers to an empty input and which rows have unit length follows
server/routes.go of Ollama (2026).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from vecgate import __version__
from vecgate.core import Cut, ModelCard, Task
from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    Unauthenticated,
    UnsupportedEncoding,
    VecgateError,
    WrongTask,
)
from vecgate.protocols import (
    Answer,
    Ask,
    Route,
    check_count,
    check_some,
    headers_of_error,
    message_of,
    of_type,
    shown,
    timer,
    vectors,
)
from vecgate.protocols.ollama_bodies import (
    OllamaDetails,
    OllamaEmbed,
    OllamaEmbedding,
    OllamaEmbeddings,
    OllamaInfo,
    OllamaLoaded,
    OllamaModel,
    OllamaModels,
    OllamaProcesses,
    OllamaRow,
    OllamaShow,
    OllamaVersion,
)

ERRORS: dict[type[VecgateError], int] = {
    VecgateError: 500,
    InvalidRequest: 400,
    WrongTask: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    MethodNotAllowed: 405,
    BodyTimeout: 408,
    TooLarge: 413,
    UnsupportedEncoding: 415,
    Overloaded: 429,
    BackendFailed: 500,
    NotReady: 503,
    DeadlineExceeded: 504,
}
"""type -> status; a type that is not here is its nearest parent's."""

LATEST = ":latest"
"""What Ollama puts behind a name that has no tag of its own."""
NEVER = "9999-12-31T23:59:59Z"
"""When a loaded model expires."""
LEVELS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """{"error": "..."}: what Ollama's clients raise."""
    return of_type(ERRORS, error), headers_of_error(error), msgspec.json.encode({"error": message_of(error)})


async def embed(ask: Ask) -> Answer:
    elapsed_s = timer()
    body: OllamaEmbed = ask.body
    true = _resolve(ask, body.model, "embed")
    dimensions = body.dimensions or None  # Ollama's own clients in Go can't tell 0 from nothing
    check_count("dimensions", dimensions)
    model = body.model if body.model and body.model.strip() else true
    texts = [body.input] if isinstance(body.input, str) and body.input else list(body.input or ())
    if not texts:  # which loads a model
        return Answer(msgspec.json.encode(OllamaEmbeddings(model=model, embeddings=msgspec.Raw(b"[]"))))
    check_some("input", texts, ask.site.max_inputs, "VECGATE_MAX_INPUTS")
    found = await ask.engine.embed(
        ask.call, body.model, texts, dimensions=dimensions, cut=_cut(body.truncate, ask.site.cut)
    )
    encoding_s = timer()
    rows: Any = await vectors.join(found.vectors, lambda _, part: vectors.encode(part, "float"))
    answer = OllamaEmbeddings(
        model=model,
        embeddings=rows,
        total_duration=_nanoseconds(elapsed_s()),
        load_duration=_nanoseconds(found.applied.tokenize_s + found.applied.queue_s),
        prompt_eval_count=sum(found.applied.tokens),
    )
    return Answer(msgspec.json.encode(answer), found.applied, encode_s=encoding_s())


async def embed_one(ask: Ask) -> Answer:
    """The older form: one text, and the row as the model makes it."""
    body: OllamaEmbedding = ask.body
    _resolve(ask, body.model, "embed")
    if not body.prompt:  # which loads a model
        return Answer(msgspec.json.encode(OllamaRow(embedding=msgspec.Raw(b"[]"))))
    found = await ask.engine.embed(ask.call, body.model, [body.prompt], normalize=False, cut=ask.site.cut)
    encoding_s = timer()
    row = vectors.encode(found.vectors, "float")[0]
    return Answer(msgspec.json.encode(OllamaRow(embedding=row)), found.applied, encode_s=encoding_s())


async def tags(ask: Ask) -> Answer:
    models = [
        OllamaModel(
            name=name,
            model=name,
            modified_at=_moment(card),
            size=card.weight_bytes,
            digest=_digest(card),
            details=_details(card),
        )
        for card in _embedders(ask)
        for name in _tagged(card)
    ]
    return Answer(msgspec.json.encode(OllamaModels(models=models)))


async def processes(ask: Ask) -> Answer:
    models = [
        OllamaLoaded(
            name=card.name + LATEST,
            model=card.name + LATEST,
            size=card.weight_bytes,
            digest=_digest(card),
            details=_details(card),
            expires_at=NEVER,
            size_vram=0 if card.device == "cpu" else card.weight_bytes,
            context_length=card.max_tokens,
        )
        for card in _embedders(ask)
        if card.state == "ready"
    ]
    return Answer(msgspec.json.encode(OllamaProcesses(models=models)))


async def show(ask: Ask) -> Answer:
    body: OllamaShow = ask.body
    name = _resolve(ask, body.model or body.name)
    card = next(card for card in ask.engine.status().models if card.name == name)
    answer = OllamaInfo(
        modelfile=f"FROM {card.name}",
        parameters="",
        template="{{ .Prompt }}",
        license="",
        modified_at=_moment(card),
        details=_details(card),
        model_info={
            "general.architecture": card.family,
            "general.basename": card.name,
            f"{card.family}.context_length": card.max_tokens,
            f"{card.family}.embedding_length": card.dimensions,
            f"{card.family}.pooling": list(card.pooling),
        },
        capabilities=["embedding"] if card.task == "embed" else [],
    )
    return Answer(msgspec.json.encode(answer))


async def version(_ask: Ask) -> Answer:
    return Answer(msgspec.json.encode(OllamaVersion(version=__version__)))


def _resolve(ask: Ask, asked: str | None, task: Task | None = None) -> str:
    """The true name; where there is none, in words that Ollama's clients look for."""
    try:
        return ask.engine.resolve(asked, task)
    except ModelNotFound as error:
        raise ModelNotFound(f"model {shown(asked or '')} not found. {error}") from error


def _cut(truncate: bool | None, default: Cut) -> Cut:
    if truncate is None:
        return default
    return ("end" if default == "refuse" else default) if truncate else "refuse"


def _embedders(ask: Ask) -> Iterator[ModelCard]:
    """Ollama has no rerankers: a client that found one in a list would embed with it."""
    return (card for card in ask.engine.status().models if card.task == "embed")


def _tagged(card: ModelCard) -> list[str]:
    """Every name with a tag, as Ollama lists them: clients look for the tag, or for what they were told before it."""
    names = dict.fromkeys((card.name, *card.aliases, *(one.name for one in card.virtual)))
    return [name if ":" in name else name + LATEST for name in names]


def _details(card: ModelCard) -> OllamaDetails:
    level = LEVELS.get(card.dtype or "", card.dtype or "")
    return OllamaDetails(family=card.family, families=[card.family], quantization_level=level)


def _digest(card: ModelCard) -> str:
    return hashlib.sha256(f"{card.name}@{card.revision}".encode()).hexdigest()


def _moment(card: ModelCard) -> str:
    return datetime.fromtimestamp(card.created, UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        ("/api/embed",),
        embed,
        render,
        "Embed texts.",
        body=OllamaEmbed,
        answer=OllamaEmbeddings,
        example={"input": ["Why is the sky blue?", "Why is the grass green?"]},
    ),
    Route(
        "POST",
        ("/api/embeddings",),
        embed_one,
        render,
        "Embed one text, in the older form.",
        body=OllamaEmbedding,
        answer=OllamaRow,
        example={"prompt": "Why is the sky blue?"},
    ),
    Route(
        "POST",
        ("/api/show",),
        show,
        render,
        "Tell of a model.",
        body=OllamaShow,
        answer=OllamaInfo,
        example={"model": None},
    ),
    Route("GET", ("/api/tags",), tags, render, "List the embedding models.", answer=OllamaModels),
    Route("GET", ("/api/ps",), processes, render, "List the embedding models that are loaded.", answer=OllamaProcesses),
    Route("GET", ("/api/version",), version, render, "The version of this server.", answer=OllamaVersion),
)
