"""The native routes: /api/v1/embed, /api/v1/rerank, their short forms /embed and /rerank, and /api/v1/rerank/batch.

Knows traits.Engine and the site's limits; how a row is computed is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET

from vecgate.core import Applied, Embeddings, Method, ModelCard, Ranking
from vecgate.errors import InvalidRequest
from vecgate.protocols import (
    NDJSON,
    Answer,
    Ask,
    Route,
    check_count,
    check_some,
    expecting,
    native_batch,
    shown,
    timer,
    told_as,
    vectors,
)
from vecgate.protocols.native_bodies import (
    METHODS,
    BatchResult,
    EmbedAnswer,
    EmbedBody,
    EmbedUsage,
    FailedQuery,
    RerankAnswer,
    RerankBatchAnswer,
    RerankBatchBody,
    RerankBody,
    RerankChoices,
    RerankUsage,
    Result,
    ShortEmbedAnswer,
    ShortRerankAnswer,
)
from vecgate.protocols.plain import render


async def embed(ask: Ask) -> Answer:
    elapsed_s = timer()
    found = await _embed(ask)
    applied, card = found.applied, _card(ask.engine.status().models, found.applied)
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
    card = _card(ask.engine.status().models, found.applied)
    encoding_s = timer()
    answer = ShortEmbedAnswer(
        vectors=await _rows(found),
        dim=found.vectors.shape[1],
        backend=_with_model(card),
        device=card.device or "unknown",
    )
    return Answer(msgspec.json.encode(answer), found.applied, encode_s=encoding_s())


async def rerank(ask: Ask) -> Answer:
    answer, applied = await _answer(ask, ask.body, ask.engine.status().models)
    return Answer(msgspec.json.encode(answer), applied)


async def rerank_short(ask: Ask) -> Answer:
    models = ask.engine.status().models
    ranking = await _rerank(ask, ask.body, models)
    card = _card(models, ranking.applied)
    answer = ShortRerankAnswer(
        results=_results(ask.body, ranking),
        backend=_with_model(card),
        device=card.device or "unknown",
        method=ranking.method,
    )
    return Answer(msgspec.json.encode(answer), ranking.applied)


async def rerank_batch(ask: Ask) -> Answer:
    """One JSON answer, which one failing query fails; or for who accepts NDJSON a line a query, as each is ready."""
    elapsed_s = timer()
    _check_choices(ask.body)
    queries, models = native_batch.queries(ask), ask.engine.status().models
    outcomes = native_batch.outcomes(queries, partial(_check, ask), partial(_answer, ask, models=models))
    if native_batch.takes_lines(ask.accept):
        body = native_batch.lines(outcomes)
        return Answer(body, media_type=NDJSON, headers={"x-accel-buffering": "no"})  # nginx would hold the lines back
    answer, applied = await native_batch.whole(outcomes, elapsed_s)
    return Answer(msgspec.json.encode(answer), applied)


async def _embed(ask: Ask) -> Embeddings:
    body: EmbedBody = ask.body
    texts = [body.texts] if isinstance(body.texts, str) else body.texts
    check_some("texts", texts, ask.site.max_texts_per_request, "MAX_TEXTS_PER_REQUEST", "text")
    with told_as(input="texts"):
        return await ask.engine.embed(
            ask.call,
            body.model,
            texts,
            normalize=_normalize(ask),
            cut=ask.site.cut,
            batch_size=_batch_size(ask),
        )


async def _rows(found: Embeddings) -> Any:
    return await vectors.join(found.vectors, lambda _, part: vectors.encode(part, "float"))


async def _answer(ask: Ask, body: RerankBody, models: Sequence[ModelCard]) -> tuple[RerankAnswer, Applied]:
    elapsed_s = timer()
    ranking = await _rerank(ask, body, models)
    card = _card(models, ranking.applied)
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
            top_k=min(body.top_k or len(body.passages), len(body.passages)),
            query_length=len(body.query),
        ),
    )
    return answer, ranking.applied


async def _rerank(ask: Ask, body: RerankBody, models: Sequence[ModelCard]) -> Ranking:
    _check(ask, body)
    with told_as(documents="passages", top_n="top_k"):
        return await ask.engine.rerank(
            expecting(ask.call, body.space),  # of a batch, each query may say its own
            body.model,
            body.query,
            body.passages,
            method=_method(body, models),
            top_n=body.top_k,
            cut=ask.site.cut,
        )


def _check(ask: Ask, body: RerankBody) -> None:
    """Raises what can be said of a query without the engine."""
    check_some("passages", body.passages, ask.site.max_passages_per_rerank, "MAX_PASSAGES_PER_RERANK", "text")
    _check_choices(body)


def _check_choices(body: RerankChoices) -> None:
    check_count("top_k", body.top_k)
    if body.method is not None:
        _named(body.method)


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
    raise InvalidRequest(f"method is {shown(name)}; it must be one of {', '.join(METHODS)}.", "method")


def _results(body: RerankBody, ranking: Ranking) -> list[Result]:
    scores = ranking.raw if ranking.method == "similarity" else ranking.scores
    text: Callable[[int], Any] = (lambda _: UNSET) if body.return_text is False else body.passages.__getitem__
    return [Result(text=text(index), score=score, index=index) for index, score in zip(ranking.order, scores)]


def _card(models: Sequence[ModelCard], applied: Applied) -> ModelCard:
    return next(card for card in models if card.name == applied.model)


def _with_model(card: ModelCard) -> str:
    return f"{card.backend or 'unknown'}:{card.name}"


def _batch_size(ask: Ask) -> int:
    asked: int | None = ask.body.batch_size
    check_count("batch_size", asked)
    return min(ask.site.batch_size if asked is None else asked, ask.site.max_batch_size)


def _normalize(ask: Ask) -> bool:
    return ask.body.normalize is not False  # null is "not given"


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
BATCH_EXAMPLE = {
    "queries": [
        RERANK_EXAMPLE,
        {"query": "a pet for a family", "passages": ["Dogs are friendly pets", "Stocks fell"], "top_k": 1},
    ]
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
        paths=("/api/v1/rerank/batch",),
        handle=rerank_batch,
        render=render,
        summary="Order passages for many queries at once; as a stream of lines, each sent once its query is ready.",
        body=RerankBatchBody,
        key="queries",
        answer=RerankBatchAnswer,
        lines=(BatchResult, FailedQuery),
        example=BATCH_EXAMPLE,
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
        # The versioned two are Cohere's, of which a client may have typed one as the server's base.
        paths=("/rerank", "/v1/rerank", "/v2/rerank"),
        handle=rerank_short,
        render=render,
        summary="Order passages by how well they answer a query.",
        body=RerankBody,
        key="passages",
        answer=ShortRerankAnswer,
        example=RERANK_EXAMPLE,
    ),
)
