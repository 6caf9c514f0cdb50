"""The native routes: /api/v1/embed, /api/v1/rerank and their short forms /embed and /rerank.

Knows core.Engine and the site's limits; how a row is computed is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from vecgate.core import Applied, Embeddings, Method, ModelCard, Ranking
from vecgate.errors import InvalidRequest
from vecgate.protocols import Answer, Ask, Route, timer, vectors
from vecgate.protocols.plain import render

MOST = 2**31 - 1
"""The largest count a body may hold; more is a mistake or an attack, not a wish."""

# The bounds below only document: `_count` and `_some` refuse with sentences that name the value.
Count = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST})]
Texts = Annotated[list[str], Meta(extra_json_schema={"minItems": 1})]
MethodName = Annotated[str, Meta(extra_json_schema={"enum": list(get_args(Method))})]
Rows = Annotated[
    msgspec.Raw,
    Meta(extra_json_schema={"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
]


class EmbedBody(msgspec.Struct, kw_only=True):
    """texts: one or many, at most MAX_TEXTS_PER_REQUEST. batch_size: most of them in one pass over the model (null:
    BATCH_SIZE). normalize: false leaves the rows as long as the model makes them. model: null is the default one."""

    texts: str | Texts
    batch_size: Count | None = None
    normalize: bool | None = True
    model: str | None = None


class RerankBody(msgspec.Struct, kw_only=True):
    """passages: at most MAX_PASSAGES_PER_RERANK. top_k: how many results (null: all). use_cross_encoder: false asks for
    the cosine, true for the reranker. method: says it by name and wins. return_text: false leaves the texts out."""

    query: str
    passages: Texts
    top_k: Count | None = None
    use_cross_encoder: bool | None = None
    method: MethodName | None = None
    return_text: bool | None = True
    model: str | None = None


class EmbedUsage(msgspec.Struct, kw_only=True):
    """total_tokens: computed, special tokens and prompt included, after the cut. batch_size, normalize: as applied."""

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


async def embed(ask: Ask) -> Answer:
    elapsed_s = timer()
    found = await _embed(ask)
    applied, card = found.applied, _card(ask, found.applied)
    encoding_s = timer()
    rows = await _rows(found)
    time_s = elapsed_s()
    answer = EmbedAnswer(
        vectors=rows,
        dim=found.vectors.shape[1],
        processing_time=round(time_s, 6),
        device=card.device or "unknown",
        model_info=applied.model,
        usage=EmbedUsage(
            total_texts=len(applied.tokens),
            total_tokens=sum(applied.tokens),
            processing_time_ms=round(time_s * 1e3, 3),
            backend=card.backend or "unknown",
            batch_size=_batch_size(ask),
            normalize=_normalize(ask),
        ),
    )
    return Answer(msgspec.json.encode(answer), applied, encode_s=encoding_s())


async def embed_short(ask: Ask) -> Answer:
    found = await _embed(ask)
    card = _card(ask, found.applied)
    encoding_s = timer()
    answer = ShortEmbedAnswer(
        vectors=await _rows(found),
        dim=found.vectors.shape[1],
        backend=_with_model(card),
        device=card.device or "unknown",
    )
    return Answer(msgspec.json.encode(answer), found.applied, encode_s=encoding_s())


async def rerank(ask: Ask) -> Answer:
    elapsed_s = timer()
    body: RerankBody = ask.body
    ranking = await _rerank(ask)
    card = _card(ask, ranking.applied)
    time_s = elapsed_s()
    answer = RerankAnswer(
        results=_results(body, ranking),
        query=body.query,
        backend=card.backend or "unknown",
        device=card.device or "unknown",
        method=ranking.method,
        processing_time=round(time_s, 6),
        usage=RerankUsage(
            total_passages=len(body.passages),
            returned_passages=len(ranking.order),
            total_tokens=sum(ranking.applied.tokens) + ranking.applied.query_tokens,
            processing_time_ms=round(time_s * 1e3, 3),
            backend=card.backend or "unknown",
            top_k=body.top_k or len(body.passages),
            query_length=len(body.query),
        ),
    )
    return Answer(msgspec.json.encode(answer), ranking.applied)


async def rerank_short(ask: Ask) -> Answer:
    ranking = await _rerank(ask)
    card = _card(ask, ranking.applied)
    answer = ShortRerankAnswer(
        results=_results(ask.body, ranking),
        backend=_with_model(card),
        device=card.device or "unknown",
        method=ranking.method,
    )
    return Answer(msgspec.json.encode(answer), ranking.applied)


async def _embed(ask: Ask) -> Embeddings:
    body: EmbedBody = ask.body
    texts = [body.texts] if isinstance(body.texts, str) else body.texts
    _some("texts", texts, ask.site.max_texts_per_request, "MAX_TEXTS_PER_REQUEST")
    return await ask.engine.embed(
        ask.call,
        body.model,
        texts,
        normalize=_normalize(ask),
        cut=ask.site.cut,
        batch_size=_batch_size(ask),
    )


async def _rows(found: Embeddings) -> msgspec.Raw:
    return msgspec.Raw(await vectors.join(found.vectors, lambda _, part: vectors.encode(part, "float")))


async def _rerank(ask: Ask) -> Ranking:
    body: RerankBody = ask.body
    _some("passages", body.passages, ask.site.max_passages_per_rerank, "MAX_PASSAGES_PER_RERANK")
    _count("top_k", body.top_k)
    return await ask.engine.rerank(
        ask.call,
        body.model,
        body.query,
        body.passages,
        method=_method(body, ask.engine.status().models),
        top_n=body.top_k,
        cut=ask.site.cut,
    )


def _method(body: RerankBody, models: Sequence[ModelCard]) -> Method:
    """`method` wins over `use_cross_encoder`; a shortlist needs an embedding model and something to leave out."""
    if body.method is not None:
        return _named(body.method)
    if body.use_cross_encoder is None:
        return "auto"
    if not body.use_cross_encoder:
        return "similarity"
    fewer = body.top_k is not None and body.top_k < len(body.passages)
    return "bi+cross-encoder" if fewer and any(card.task == "embed" for card in models) else "cross-encoder"


def _named(name: str) -> Method:
    for method in METHODS:
        if method == name:
            return method
    shown = name if len(name) <= 40 else f"{name[:40]}..."
    raise InvalidRequest(f"method is {shown!r}; it must be one of {', '.join(METHODS)}.", "method")


def _results(body: RerankBody, ranking: Ranking) -> list[Result]:
    scores = ranking.raw if ranking.method == "similarity" else ranking.scores
    text: Callable[[int], Any] = (lambda _: UNSET) if body.return_text is False else body.passages.__getitem__
    return [Result(text=text(index), score=score, index=index) for index, score in zip(ranking.order, scores)]


def _card(ask: Ask, applied: Applied) -> ModelCard:
    return next(card for card in ask.engine.status().models if card.name == applied.model)


def _with_model(card: ModelCard) -> str:
    return f"{card.backend or 'unknown'}:{card.name}"


def _batch_size(ask: Ask) -> int:
    asked: int | None = ask.body.batch_size
    _count("batch_size", asked)
    return ask.site.batch_size if asked is None else asked


def _normalize(ask: Ask) -> bool:
    return ask.body.normalize is not False  # null is "not given"


def _some(name: str, texts: Sequence[str], limit: int, setting: str) -> None:
    if not texts:
        raise InvalidRequest(f"{name} is empty; give at least one text.", name)
    if len(texts) > limit:
        raise InvalidRequest(f"{name} holds {len(texts)} texts; the limit is {limit} a request ({setting}).", name)


def _count(name: str, value: int | None) -> None:
    if value is not None and not 1 <= value <= MOST:
        # An int of more than 4,300 digits can't be printed.
        shown = str(value) if abs(value) < 10**20 else "far out of range"
        raise InvalidRequest(f"{name} is {shown}; it must be from 1 to {MOST}.", name)


METHODS: tuple[Method, ...] = get_args(Method)
EMBED_EXAMPLE = {"texts": ["Hello world", "This is a test"], "batch_size": 32, "normalize": True}
RERANK_EXAMPLE = {
    "query": "machine learning technology",
    "passages": [
        "AI and machine learning are transforming industries",
        "Dogs are friendly pets",
        "Deep learning neural networks enable pattern recognition",
    ],
    "top_k": 3,
}
ROUTES = (
    Route(
        method="POST",
        paths=("/api/v1/embed",),
        handle=embed,
        render=render,
        summary="Embed texts, with timing and usage.",
        body=EmbedBody,
        key="texts",
        answer=EmbedAnswer,
        example=EMBED_EXAMPLE,
    ),
    Route(
        method="POST",
        paths=("/api/v1/rerank",),
        handle=rerank,
        render=render,
        summary="Order passages by how well they answer a query, with timing and usage.",
        body=RerankBody,
        key="passages",
        answer=RerankAnswer,
        example=RERANK_EXAMPLE,
    ),
    Route(
        method="POST",
        paths=("/embed",),
        handle=embed_short,
        render=render,
        summary="Embed texts.",
        body=EmbedBody,
        key="texts",
        answer=ShortEmbedAnswer,
        example={"texts": ["What is RAG?", "Qdrant is a vector database"], "batch_size": 32},
    ),
    Route(
        method="POST",
        paths=("/rerank",),
        handle=rerank_short,
        render=render,
        summary="Order passages by how well they answer a query.",
        body=RerankBody,
        key="passages",
        answer=ShortRerankAnswer,
        example=RERANK_EXAMPLE,
    ),
)
