"""Cohere's wire protocol, versions 1 and 2: rerank and embed; rerank clients of Jina, vLLM and LiteLLM are served too.

Knows traits.Engine and the site's limits; how a row or a score is computed is none of its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from vecgate.core import ModelCard, Ranking, Vectors
from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
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
from vecgate.protocols.cohere_bodies import (
    CUTS,
    INPUT_TYPES,
    ROLES,
    ApiMeta,
    ApiVersion,
    BilledUnits,
    CohereEmbed,
    CohereRanking,
    CohereRerank,
    Content,
    EmbedByType,
    EmbedFloats,
    RerankedDocument,
    TokenUsage,
    Version,
)

TOKENS_PER_DOCUMENT = 4_096
"""Cohere's default of max_tokens_per_doc."""
DOCUMENTS_PER_UNIT = 100
"""Cohere bills one search unit for a query with up to this many documents."""

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

OneOf = TypeVar("OneOf", bound=str)


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """{"message"}: what Cohere's SDKs turn into their exceptions."""
    return of_type(ERRORS, error), headers_of_error(error), msgspec.json.encode({"message": message_of(error)})


def render_jina(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """The same and "detail", for the paths that Jina's clients share: they look for it alone, and fail without it."""
    told = message_of(error)
    return of_type(ERRORS, error), headers_of_error(error), msgspec.json.encode({"message": told, "detail": told})


async def rerank_v1(ask: Ask) -> Answer:
    return await _rerank(ask, "1")


async def rerank_v2(ask: Ask) -> Answer:
    return await _rerank(ask, "2")


async def embed_v1(ask: Ask) -> Answer:
    return await _embed(ask, "1")


async def embed_v2(ask: Ask) -> Answer:
    return await _embed(ask, "2")


# rerank


async def _rerank(ask: Ask, version: Version) -> Answer:
    body: CohereRerank = ask.body
    check_some("documents", body.documents, ask.site.max_passages_per_rerank, "MAX_PASSAGES_PER_RERANK")
    check_count("top_n", body.top_n)
    check_count("max_tokens_per_doc", body.max_tokens_per_doc)
    texts = _documents(body)
    ranking = await ask.engine.rerank(
        ask.call,
        body.model,
        body.query,
        texts,
        top_n=body.top_n,
        max_tokens_per_document=body.max_tokens_per_doc or TOKENS_PER_DOCUMENT,
        cut=ask.site.cut,
    )
    encoding_s = timer()
    tokens = sum(ranking.applied.tokens) + ranking.applied.query_tokens
    answer = CohereRanking(
        id=str(uuid4()),
        results=_results(body, texts, ranking),
        meta=_meta(version, BilledUnits(search_units=ceil(len(texts) / DOCUMENTS_PER_UNIT))),
        model=body.model if body.model and body.model.strip() else ranking.applied.model,
        usage=TokenUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return Answer(msgspec.json.encode(answer), ranking.applied, encode_s=encoding_s())


def _documents(body: CohereRerank) -> list[str]:
    """What is ranked of each document."""
    if body.rank_fields is not None and not body.rank_fields:
        raise InvalidRequest("rank_fields is empty; name a field, or leave it out for 'text'.", "rank_fields")
    fields = dict.fromkeys(body.rank_fields or ["text"])  # each once, so that texts are never longer than the body
    return [
        one if isinstance(one, str) else " ".join(_field(index, one, name) for name in fields)
        for index, one in enumerate(body.documents)
    ]


def _field(index: int, document: Mapping[str, msgspec.Raw], name: str) -> str:
    """A field's text; a number is read as it was written."""
    if name not in document:
        raise InvalidRequest(f"documents[{index}] has no field {name[:100]!r} to rank by.", "documents")
    raw = document[name]
    try:
        value = msgspec.json.decode(raw, type=str | float)
    except msgspec.DecodeError as error:
        message = f"documents[{index}] has no text in field {name[:100]!r}, which it is to be ranked by."
        raise InvalidRequest(message, "documents") from error
    return value if isinstance(value, str) else bytes(raw).decode()


def _results(body: CohereRerank, texts: Sequence[str], ranking: Ranking) -> list[RerankedDocument]:
    def document(index: int) -> dict[str, Any] | UnsetType:
        if not body.return_documents:
            return UNSET
        sent = body.documents[index]
        return {"text": sent} if isinstance(sent, str) else {"text": texts[index], **sent}

    return [
        RerankedDocument(index=index, relevance_score=score, document=document(index))
        for index, score in zip(ranking.order, ranking.scores)
    ]


# embed


async def _embed(ask: Ask, version: Version) -> Answer:
    body: CohereEmbed = ask.body
    card = _card(ask, body.model)
    texts = _texts(body)
    check_some("texts" if body.inputs is None else "inputs", texts, ask.site.max_inputs, "VECGATE_MAX_INPUTS")
    check_count("max_tokens", body.max_tokens)
    types = _types(body)
    _check_width(body, card, types)
    found = await ask.engine.embed(
        ask.call,
        body.model,
        texts,
        role=_role(body.input_type, card),
        dimensions=body.output_dimension,
        cut=ask.site.cut if body.truncate is None else CUTS[_chosen("truncate", body.truncate, CUTS)],
        max_tokens=body.max_tokens,
    )
    vectors.check_packs(found.vectors.shape[1], types, "embedding_types")  # an alias may have a width of its own
    encoding_s = timer()
    as_list = version == "1" and not types
    rows = {kind: await _rows(found.vectors, kind) for kind in types or ("float",)}
    answer = {
        "id": str(uuid4()),
        "response_type": "embeddings_floats" if as_list else "embeddings_by_type",
        "embeddings": rows["float"] if as_list else rows,
        "texts": texts,
        "meta": _meta(version, BilledUnits(input_tokens=sum(found.applied.tokens))),
    }
    return Answer(msgspec.json.encode(answer), found.applied, encode_s=encoding_s())


def _card(ask: Ask, model: str | None) -> ModelCard:
    name = ask.engine.resolve(model, "embed")
    return next(card for card in ask.engine.status().models if card.name == name)


def _texts(body: CohereEmbed) -> list[str]:
    if body.images is not None and body.images != []:
        raise InvalidRequest("images can't be embedded: this server embeds text only.", "images")
    if (body.texts is None) == (body.inputs is None):
        raise InvalidRequest("The body must hold either 'texts' or 'inputs'.", "texts")
    return body.texts if body.texts is not None else [_text(index, one) for index, one in enumerate(body.inputs or ())]


def _text(index: int, one: Content) -> str:
    if not one.content:
        raise InvalidRequest(f"inputs[{index}] has no content; give at least one part.", "inputs")
    texts = []
    for part in one.content:
        if part.type != "text":
            message = f"inputs[{index}] holds a part of type {part.type[:40]!r}: this server embeds text only."
            raise InvalidRequest(message, "inputs")
        if part.text is None:
            raise InvalidRequest(f"inputs[{index}] holds a part without text.", "inputs")
        texts.append(part.text)
    return " ".join(texts)


def _types(body: CohereEmbed) -> tuple[vectors.Encoding, ...]:
    """The encodings asked for, each once."""
    asked = body.embedding_types or ()
    return tuple(dict.fromkeys(_chosen("embedding_types", name, vectors.ENCODINGS) for name in asked))


def _check_width(body: CohereEmbed, card: ModelCard, types: Collection[vectors.Encoding]) -> None:
    """Before anything is computed. A model that is not loaded has no width yet; the engine will say so."""
    check_count("output_dimension", body.output_dimension)
    if card.dimensions is None:
        return
    width = body.output_dimension or card.dimensions
    if width > card.dimensions:
        message = f"output_dimension is {width}; {card.name!r} allows 1 to {card.dimensions}."
        raise InvalidRequest(message, "output_dimension")
    vectors.check_packs(width, types, "embedding_types")


def _role(asked: str | None, card: ModelCard) -> str | None:
    """None, the checkpoint's default, also for a purpose it has no prompt for. Prompts are named in any case."""
    if asked is None:
        return None
    purpose = _chosen("input_type", asked, INPUT_TYPES)
    if purpose in ROLES:
        return ROLES[purpose]
    return next((name for name in card.prompts if name.casefold() == purpose), None)


async def _rows(rows: Vectors, kind: vectors.Encoding) -> Any:
    await asyncio.sleep(0)  # a turn of the loop between types, as `join` gives one between slices
    return await vectors.join(rows, lambda _, part: vectors.encode(part, kind))


# both


def _meta(version: Version, billed: BilledUnits) -> ApiMeta:
    return ApiMeta(api_version=ApiVersion(version=version), billed_units=billed)


def _chosen(name: str, asked: str, allowed: Collection[OneOf]) -> OneOf:
    for one in allowed:
        if one == asked:
            return one
    raise InvalidRequest(f"{name} does not take {shown(asked)}; it takes {', '.join(allowed)}.", name)


RERANK_EXAMPLE = {
    "query": "What is the capital of France?",
    "documents": ["Berlin is the capital of Germany.", "Paris is the capital of France."],
    "top_n": 1,
    "return_documents": True,
}
EMBED_V1_EXAMPLE = {"texts": ["What is RAG?"], "input_type": "search_query"}
EMBED_EXAMPLE = {**EMBED_V1_EXAMPLE, "embedding_types": ["float", "int8"]}
RERANK = "Order documents by how well they answer a query."
EMBED = "Embed texts, in any of six number types."
RERANK_PATHS = (("/v1/rerank", rerank_v1), ("/v2/rerank", rerank_v2), ("/rerank", rerank_v2))
ROUTES: tuple[Route, ...] = (
    *(
        Route(
            "POST",
            (path,),
            handle,
            render if path == "/v2/rerank" else render_jina,
            RERANK,
            body=CohereRerank,
            key="documents",
            answer=CohereRanking,
            example=RERANK_EXAMPLE,
        )
        for path, handle in RERANK_PATHS
    ),
    Route(
        "POST",
        ("/v1/embed",),
        embed_v1,
        render,
        EMBED,
        body=CohereEmbed,
        answer=EmbedFloats | EmbedByType,
        example=EMBED_V1_EXAMPLE,
    ),
    Route("POST", ("/v2/embed",), embed_v2, render, EMBED, body=CohereEmbed, answer=EmbedByType, example=EMBED_EXAMPLE),
)
