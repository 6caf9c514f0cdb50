"""vLLM's /score: how well the second text of each pair answers the first. (Its /rerank is served by cohere.py's routes.)

Knows traits.Engine and the site's limits; how a score is computed is none of its business.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from vecgate.core import Applied, Cut
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
    MOST,
    Answer,
    Ask,
    Expecting,
    Ignored,
    Route,
    check_count,
    check_some,
    headers_of_error,
    message_of,
    of_type,
    shown,
    told_as,
)
from vecgate.protocols.gather import side_by_side, together

SPELLINGS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""What vLLM has called the two sides of a pair."""
SIDES: dict[str, Cut] = {"right": "end", "left": "start"}
MODEL_LIMIT = -1
"""truncate_prompt_tokens that stands for the model's own limit."""

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
KINDS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
"""status -> vLLM's word for it, where that is not HTTP's."""

_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
Texts = Annotated[str | list[str], Meta(extra_json_schema={"anyOf": [{"type": "string"}, _TEXTS]})]


class VllmScore(Expecting, kw_only=True):
    """Two sides under one of vLLM's pairs of names: text_1 and text_2, queries and documents (or items), data_1 and
    data_2; each a text or texts, at most MAX_PASSAGES_PER_RERANK. One first text is paired with every second one, else
    there are as many on both sides. use_activation: false gives logits, or cosines where an embedding model scores,
    instead of scores from 0 to 1. truncate_prompt_tokens: what a longer pair is cut to, -1 for the model's limit (null:
    the server's TRUNCATE at that limit); truncation_side: where it is cut (null: right)."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(extra_json_schema={"minimum": -1, "maximum": MOST})] | None = None
    truncation_side: Annotated[str | None, Meta(extra_json_schema={"enum": [*SIDES, None]})] = None
    user: Ignored = msgspec.field(default_factory=msgspec.Raw)
    priority: Ignored = msgspec.field(default_factory=msgspec.Raw)


class Score(msgspec.Struct, kw_only=True):
    """index: the pair's place."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ScoreList(msgspec.Struct, kw_only=True):
    """data: in the order of the pairs. model: the name asked for, else the true one."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: ScoreUsage


def render(error: VecgateError) -> tuple[int, dict[str, str], bytes]:
    """OpenAI's error object with vLLM's words in it: `code` is the status."""
    status = of_type(ERRORS, error)
    told = {
        "message": message_of(error),
        "type": KINDS.get(status) or HTTPStatus(status).phrase,
        "param": "model" if isinstance(error, ModelNotFound | WrongTask) else getattr(error, "param", None),
        "code": status,
    }
    return status, headers_of_error(error), msgspec.json.encode({"error": told})


async def score(ask: Ask) -> Answer:
    body: VllmScore = ask.body
    first, second = _sides(ask, body)
    cut, max_tokens = _limit(ask, body)
    by_query: dict[str, list[int]] = {}  # each first text once, with the places of its pairs
    for at, text in enumerate(first):
        by_query.setdefault(text, []).append(at)
    one, two = _spelling(body)
    with told_as(query=one, documents=two, max_tokens="truncate_prompt_tokens"):
        done = await side_by_side(
            [
                partial(_scored, ask, text, [second[at] for at in places], cut, max_tokens)
                for text, places in by_query.items()
            ]
        )
    places = [at for group in by_query.values() for at in group]
    order = sorted(range(len(places)), key=places.__getitem__)
    scores = [value for values, _ in done for value in values]
    applied = _ordered(together([applied for _, applied in done]), order)
    tokens = sum(applied.tokens) + applied.query_tokens
    answer = ScoreList(
        id=f"score-{uuid4().hex}",
        created=int(time.time()),
        model=body.model if body.model and body.model.strip() else applied.model,
        data=[Score(index=at, score=scores[i]) for at, i in enumerate(order)],
        usage=ScoreUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return Answer(msgspec.json.encode(answer), applied)


def _sides(ask: Ask, body: VllmScore) -> tuple[list[str], list[str]]:
    """The first and the second text of each pair."""
    one, two = _spelling(body)
    first, second = (_list(getattr(body, name)) for name in (one, two))
    for name, texts in ((one, first), (two, second)):
        check_some(name, texts, ask.site.max_passages_per_rerank, "MAX_PASSAGES_PER_RERANK", "text")
    if len(first) not in (1, len(second)):
        message = (
            f"{one} holds {len(first)} texts and {two} {len(second)}; there must be one in {one} or as many in both."
        )
        raise InvalidRequest(message, one)
    return (first if len(first) == len(second) else first * len(second)), second


def _spelling(body: VllmScore) -> tuple[str, str]:
    """What the request calls the two sides."""
    given = [names for names in SPELLINGS if all(getattr(body, name) is not None for name in names)]
    if len(given) != 1:
        known = ", ".join(f"{one!r} and {two!r}" for one, two in SPELLINGS)
        raise InvalidRequest(f"The body must hold one of these pairs: {known}.")
    return given[0]


def _list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _limit(ask: Ask, body: VllmScore) -> tuple[Cut, int | None]:
    """Where a pair is cut, and to how many tokens (None: the model's limit)."""
    side, most = body.truncation_side, body.truncate_prompt_tokens
    if side is not None and side not in SIDES:
        raise InvalidRequest(
            f"truncation_side does not take {shown(side)}; it takes {', '.join(SIDES)}.", "truncation_side"
        )
    if most is None:
        return ask.site.cut if side is None or ask.site.cut == "refuse" else SIDES[side], None
    if most != MODEL_LIMIT:
        check_count("truncate_prompt_tokens", most)
    return SIDES[side or "right"], None if most == MODEL_LIMIT else most


async def _scored(
    ask: Ask, query: str, documents: Sequence[str], cut: Cut, max_tokens: int | None
) -> tuple[list[float], Applied]:
    """The documents' scores in their own order."""
    ranking = await ask.engine.rerank(ask.call, ask.body.model, query, documents, cut=cut, max_tokens=max_tokens)
    scores = ranking.raw if ask.body.use_activation is False else ranking.scores
    by_index = dict(zip(ranking.order, scores))
    return [by_index[index] for index in range(len(documents))], ranking.applied


def _ordered(applied: Applied, order: Sequence[int]) -> Applied:
    return replace(
        applied,
        tokens=tuple(applied.tokens[i] for i in order),
        original=tuple(applied.original[i] for i in order),
    )


ROUTES = (
    Route(
        "POST",
        ("/v1/score", "/score"),
        score,
        render,
        "Score pairs of texts.",
        body=VllmScore,
        answer=ScoreList,
        example={"text_1": "What barks?", "text_2": ["The sea.", "A dog."]},
    ),
)
