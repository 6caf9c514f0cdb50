"""The wire protocol of Hugging Face's Text Embeddings Inference: embed, similarity, rerank, tokenize, decode, info.

Knows traits.Engine and the site's limits; how a row or a score is computed is none of its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from vecgate import __version__
from vecgate.core import Applied, Cut, Embeddings, ModelCard, Pieces, Ranking
from vecgate.errors import (
    BackendFailed,
    BodyTimeout,
    DeadlineExceeded,
    EmptyInput,
    Forbidden,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    SpaceMismatch,
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
from vecgate.protocols.tei_bodies import (
    DIRECTIONS,
    POOLINGS,
    EmbeddingModel,
    ErrorResponse,
    ErrorType,
    Info,
    ModelType,
    Rank,
    RerankerModel,
    SimilarityParameters,
    SimpleToken,
    TeiDecode,
    TeiEmbed,
    TeiRerank,
    TeiSimilarity,
    TeiTokenize,
    TeiUnoffered,
    Truncation,
)

ERRORS: dict[type[VecgateError], tuple[int, ErrorType]] = {
    VecgateError: (424, "Backend"),
    EmptyInput: (400, "Empty"),
    InvalidRequest: (422, "Validation"),
    SpaceMismatch: (400, "Validation"),
    WrongTask: (424, "Backend"),
    Unauthenticated: (401, "Validation"),
    Forbidden: (403, "Validation"),
    NotFound: (404, "Validation"),
    MethodNotAllowed: (405, "Validation"),
    BodyTimeout: (408, "Validation"),
    TooLarge: (413, "Validation"),
    UnsupportedEncoding: (415, "Validation"),
    BackendFailed: (424, "Backend"),
    Overloaded: (429, "Overloaded"),
    NotReady: (503, "Unhealthy"),
    DeadlineExceeded: (504, "Backend"),
}
"""type -> (status, error_type); a type that is not here is its nearest parent's."""

MOST_LISTED = 2**21
"""Characters of one request to /tokenize, TEI's own limit of a payload: each token is a hundred bytes of the answer."""
SLICE_TOKENS = 4_096
"""Tokens listed between two turns of the loop: about 3 ms."""


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """{"error", "error_type"}; a 401 has no body, as TEI's has none."""
    status, kind = of_type(ERRORS, error)
    body = msgspec.json.encode(ErrorResponse(error=message_of(error), error_type=kind))
    return status, headers_of_error(error), b"" if status == 401 else body


# embed and similarity


async def embed(ask: Ask) -> Answer:
    elapsed_s = timer()
    body: TeiEmbed = ask.body
    inputs = _inputs(ask, body)
    check_count("dimensions", body.dimensions)
    found = await ask.engine.embed(
        ask.call,
        None,
        inputs,
        role=body.prompt_name,
        dimensions=body.dimensions,
        normalize=body.normalize is not False,  # null is "not given"
        cut=_cut(ask, body),
    )
    encoding_s = timer()
    rows = msgspec.json.encode(await vectors.join(found.vectors, lambda _, part: vectors.encode(part, "float")))
    headers = _headers(ask, found.applied, sum(map(len, inputs)), elapsed_s())
    return Answer(rows, found.applied, headers=headers, encode_s=encoding_s())


def _inputs(ask: Ask, body: TeiEmbed) -> Sequence[str | Sequence[int]]:
    """Texts and lists of ids. The ids are the model's own by the protocol: a client has them from /tokenize."""
    given: list[Any] = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    kinds = set(map(type, given))
    if int in kinds:
        if len(kinds) > 1:
            raise InvalidRequest("inputs mixes token ids with texts or lists; put the ids into a list.", "inputs")
        given = [given]
    if ask.site.token_ids == "refuse" and not kinds <= {str}:
        raise InvalidRequest("This server takes no token ids (VECGATE_TOKEN_IDS); send text.", "inputs")
    check_some("inputs", given, ask.site.max_inputs, "VECGATE_MAX_INPUTS")
    return given


async def similarity(ask: Ask) -> Answer:
    """Cosines of the source sentence with each other one, all in the same role."""
    elapsed_s = timer()
    body: TeiSimilarity = ask.body
    check_some("inputs.sentences", body.inputs.sentences, ask.site.max_inputs, "VECGATE_MAX_INPUTS", "text")
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    parameters = body.parameters or SimilarityParameters()
    found = await ask.engine.embed(ask.call, None, texts, role=parameters.prompt_name, cut=_cut(ask, parameters))
    headers = _headers(ask, found.applied, sum(map(len, texts)), elapsed_s())
    return Answer(msgspec.json.encode(_cosines(found)), found.applied, headers=headers)


def _cosines(found: Embeddings) -> list[float]:
    """Of unit rows; rounding must not leave the range."""
    rows = found.vectors.astype(np.float64)
    cosines: list[float] = np.clip(rows[1:] @ rows[0], -1.0, 1.0).tolist()
    return cosines


# rerank


async def rerank(ask: Ask) -> Answer:
    elapsed_s = timer()
    body: TeiRerank = ask.body
    check_some("texts", body.texts, ask.site.max_passages_per_rerank, "MAX_PASSAGES_PER_RERANK", "text")
    check_count("top_n", body.top_n)
    ranking = await ask.engine.rerank(ask.call, None, body.query, body.texts, top_n=body.top_n, cut=_cut(ask, body))
    characters = len(body.query) * len(body.texts) + sum(map(len, body.texts))
    headers = _headers(ask, ranking.applied, characters, elapsed_s())
    return Answer(msgspec.json.encode(_ranks(body, ranking)), ranking.applied, headers=headers)


def _ranks(body: TeiRerank, ranking: Ranking) -> list[Rank]:
    scores = ranking.raw if body.raw_scores else ranking.scores
    return [
        Rank(index=index, text=body.texts[index] if body.return_text else UNSET, score=score)
        for index, score in zip(ranking.order, scores)
    ]


# tokens


async def tokenize(ask: Ask) -> Answer:
    body: TeiTokenize = ask.body
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    check_some("inputs", texts, ask.site.max_inputs, "VECGATE_MAX_INPUTS", "text")
    prompt = ask.engine.prompt(None, body.prompt_name)
    characters = sum(map(len, texts)) + len(prompt) * len(texts)
    if characters > MOST_LISTED:
        message = (
            f"inputs holds {characters} characters, prompts included; the limit for listing tokens is {MOST_LISTED}."
        )
        raise InvalidRequest(message, "inputs")
    listed = []
    for text in texts:
        (pieces,) = await ask.engine.tokenize(None, [prompt + text], specials=body.add_special_tokens is not False)
        listed.append(await _tokens(prompt + text, pieces))
    return Answer(b"[%b]" % b",".join(listed))


async def _tokens(text: str, pieces: Pieces) -> bytes:
    """The JSON list of a text's tokens; the loop turns between slices."""
    parts = []
    for start in range(0, len(pieces.ids), SLICE_TOKENS):
        await asyncio.sleep(0)
        span = range(start, min(start + SLICE_TOKENS, len(pieces.ids)))
        parts.append(msgspec.json.encode([_token(text, pieces, at) for at in span])[1:-1])
    return b"[%b]" % b",".join(parts)


def _token(text: str, pieces: Pieces, at: int) -> SimpleToken:
    """A special token by its name, any other as it stands in the text."""
    if pieces.special[at]:
        return SimpleToken(id=pieces.ids[at], text=pieces.texts[at], special=True, start=None, stop=None)
    start, stop = pieces.starts[at], pieces.stops[at]
    return SimpleToken(id=pieces.ids[at], text=text[start:stop], special=False, start=start, stop=stop)


async def decode(ask: Ask) -> Answer:
    body: TeiDecode = ask.body
    given: list[Any] = body.ids
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise InvalidRequest("ids mixes token ids with lists of them; send one kind only.", "ids")
    lists = [given] if kinds == {int} else given
    check_some("ids", lists, ask.site.max_inputs, "VECGATE_MAX_INPUTS", "list")
    if not all(lists):
        raise InvalidRequest(f"ids[{lists.index([])}] is an empty list of token ids.", "ids")
    texts = await ask.engine.decode(None, lists, skip_specials=body.skip_special_tokens is not False)
    return Answer(msgspec.json.encode(texts))


# what is served


async def info(ask: Ask) -> Answer:
    cards = ask.engine.status().models
    card = next((card for card in cards if card.task == "embed"), cards[0])
    if card.dtype is None or card.batch_tokens is None:
        retry_after_s = None if card.state == "failed" else 5
        raise NotReady(f"Model {card.name!r} is {card.state}; it has no number type and no batches yet.", retry_after_s)
    site = ask.site
    answer = Info(
        model_id=card.name,
        model_sha=card.revision,
        model_dtype=card.dtype,
        served_model_name=card.name,
        model_type=_model_type(card),
        max_concurrent_requests=site.max_in_flight,
        max_input_length=card.max_tokens,
        max_batch_tokens=card.batch_tokens,
        max_batch_requests=site.max_batch_size,
        max_client_batch_size=site.max_inputs if card.task == "embed" else site.max_passages_per_rerank,
        auto_truncate=site.cut != "refuse",
        tokenization_workers=site.tokenize_threads,
        version=__version__,
        space=card.space,
    )
    return Answer(msgspec.json.encode(answer))


def _model_type(card: ModelCard) -> ModelType:
    if card.task == "rerank":
        return ModelType(reranker=RerankerModel())
    return ModelType(embedding=EmbeddingModel(pooling="+".join(POOLINGS.get(one, one) for one in card.pooling)))


async def unoffered(ask: Ask) -> Answer:
    names = ", ".join(card.name for card in ask.engine.status().models)
    raise WrongTask(f"No model here offers this; served: {names}, by /embed, /similarity and /rerank.")


# all


def _cut(ask: Ask, body: Truncation | SimilarityParameters) -> Cut:
    direction = body.truncation_direction
    if direction is not None and direction.casefold() not in DIRECTIONS:
        message = f"truncation_direction does not take {shown(direction)}; it takes Left and Right."
        raise InvalidRequest(message, "truncation_direction")
    refuses = ask.site.cut == "refuse" if body.truncate is None else not body.truncate
    if direction is None:
        return "refuse" if refuses else "start" if ask.site.cut == "start" else "end"
    return "refuse" if refuses else DIRECTIONS[direction.casefold()]


def _headers(ask: Ask, applied: Applied, characters: int, total_s: float) -> dict[str, str]:
    """TEI's account of the work, times in whole milliseconds."""
    device = next((card.device for card in ask.engine.status().models if card.name == applied.model), None)
    times_s = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-tokenization-time": applied.tokenize_s,
        "x-queue-time": applied.queue_s,
        "x-inference-time": applied.forward_s,
    }
    return {
        "x-compute-type": device or "unknown",
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(sum(applied.tokens) + applied.query_tokens),
        **{name: str(round(seconds * 1e3)) for name, seconds in times_s.items()},
    }


def _post(paths: tuple[str, ...], handle: Any, summary: str, body: type[msgspec.Struct], **more: Any) -> Route:
    return Route("POST", paths, handle, render, summary, body=body, **more)


EMBED_EXAMPLE = {"inputs": ["What is RAG?", "Qdrant is a vector database"], "normalize": True, "truncate": True}
SIMILARITY_EXAMPLE = {"inputs": {"source_sentence": "What barks?", "sentences": ["A dog.", "The sea."]}}
RERANK_EXAMPLE = {"query": "What barks?", "texts": ["The sea.", "A dog."], "return_text": True}
EMBED = "Embed texts; the answer is a bare list."
SIMILARITY = "Cosines of one text with others."
RERANK = "Order texts by how well they answer a query; the answer is a bare list."
ROUTES = (
    _post(
        ("/embed",),
        embed,
        EMBED,
        TeiEmbed,
        key="inputs",
        answer=list[list[float]],
        example=EMBED_EXAMPLE,
        neither=True,
    ),
    _post(
        ("/similarity",),
        similarity,
        SIMILARITY,
        TeiSimilarity,
        answer=list[float],
        example=SIMILARITY_EXAMPLE,
    ),
    _post(
        ("/rerank", "/v1/rerank", "/v2/rerank"),
        rerank,
        RERANK,
        TeiRerank,
        key="texts",
        answer=list[Rank],
        example=RERANK_EXAMPLE,
    ),
    # What huggingface_hub and Haystack call: the base URL itself.
    _post(
        ("/",),
        similarity,
        SIMILARITY,
        TeiSimilarity,
        key="inputs.source_sentence",
        answer=list[float],
        example=SIMILARITY_EXAMPLE,
    ),
    _post(("/",), embed, EMBED, TeiEmbed, key="inputs", answer=list[list[float]], example=EMBED_EXAMPLE),
    _post(("/",), rerank, RERANK, TeiRerank, key="texts", answer=list[Rank], example=RERANK_EXAMPLE),
    _post(
        ("/tokenize",),
        tokenize,
        "The tokens of texts.",
        TeiTokenize,
        answer=list[list[SimpleToken]],
        example={"inputs": ["What is RAG?"]},
    ),
    _post(
        ("/decode",),
        decode,
        "The texts of token ids.",
        TeiDecode,
        answer=list[str],
        example={"ids": [[1000, 1001]]},
    ),
    _post(
        ("/predict", "/embed_all", "/embed_sparse"),
        unoffered,
        "Not offered: classes, rows of every token, sparse rows.",
        TeiUnoffered,
        example={"inputs": "What is RAG?"},
        offered=False,
    ),
    Route("GET", ("/info",), info, render, "The main model and the server's limits.", answer=Info),
)
