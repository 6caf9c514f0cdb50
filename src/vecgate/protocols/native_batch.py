"""Many queries in one call of the native rerank: all of them at once in the engine, answered together or line by line.

Belongs to native.py alone, which says how one query is answered.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from copy import copy

import msgspec

from vecgate.core import Applied
from vecgate.errors import InvalidRequest, NotReady, VecgateError
from vecgate.protocols import NDJSON, Ask, Part
from vecgate.protocols.gather import AT_ONCE, together
from vecgate.protocols.native_bodies import (
    BatchResult,
    BatchUsage,
    FailedQuery,
    QueryError,
    RerankAnswer,
    RerankBatchAnswer,
    RerankBatchBody,
    RerankBody,
    RerankChoices,
)
from vecgate.protocols.plain import render

Answered = tuple[RerankAnswer, Applied]
Outcomes = AsyncGenerator[tuple[int, Answered | VecgateError], None]


def queries(ask: Ask) -> list[RerankBody]:
    """The batch's queries, each with the batch's choices where it makes none itself."""
    body: RerankBatchBody = ask.body
    if not body.queries:
        raise InvalidRequest("queries is empty; give at least one query.", "queries")
    limit = ask.site.max_passages_per_rerank
    if len(body.queries) > limit:  # each with no passage is no passage too many
        message = (
            f"queries holds {len(body.queries)} queries; the limit is {limit} a request (MAX_PASSAGES_PER_RERANK)."
        )
        raise InvalidRequest(message, "queries")
    total = sum(len(query.passages) for query in body.queries)
    if total > limit:
        message = f"queries hold {total} passages together; the limit is {limit} a request (MAX_PASSAGES_PER_RERANK)."
        raise InvalidRequest(message, "queries")
    if body.model is not None:
        ask.engine.resolve(body.model)  # an unknown one is the whole request's mistake
    return [_with_choices(query, body) for query in body.queries]


def _with_choices(query: RerankBody, common: RerankChoices) -> RerankBody:
    said = {"method"} if query.use_cross_encoder is not None else set()  # the same choice in other words
    for name in RerankChoices.__struct_fields__:
        if getattr(query, name) is None and name not in said:
            setattr(query, name, getattr(common, name))
    return query


async def outcomes(
    queries: Sequence[RerankBody],
    check: Callable[[RerankBody], None],
    answer: Callable[[RerankBody], Awaitable[Answered]],
) -> Outcomes:
    """Each query's index with its answer or error, in the order they are ready; closing it cancels the rest.

    check: raises what is wrong with a query in itself; that comes first, before any query has cost work.
    """
    sound: list[tuple[int, RerankBody]] = []
    for index, query in enumerate(queries):
        try:
            check(query)
        except VecgateError as error:
            yield index, error
        else:
            sound.append((index, query))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, query: RerankBody) -> tuple[int, Answered | VecgateError]:
        try:
            async with gate:
                return index, await answer(query)
        except VecgateError as error:
            return index, error

    tasks = [asyncio.create_task(one(index, query)) for index, query in sound]
    try:
        for ready in asyncio.as_completed(tasks):
            yield await ready
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(outcomes: Outcomes, elapsed_s: Callable[[], float]) -> tuple[RerankBatchAnswer, Applied]:
    """All queries in their order. The first error ends it, named after its query."""
    found: dict[int, Answered] = {}
    async with aclosing(outcomes):
        async for index, outcome in outcomes:
            if isinstance(outcome, VecgateError):
                raise _of_query(index, outcome) from outcome
            found[index] = outcome
    answers = [found[index][0] for index in range(len(found))]
    time_s = elapsed_s()
    answer = RerankBatchAnswer(
        results=[_numbered(index, one) for index, one in enumerate(answers)],
        processing_time=round(time_s, 6),
        usage=BatchUsage(
            total_queries=len(answers),
            total_passages=sum(one.usage.total_passages for one in answers),
            returned_passages=sum(one.usage.returned_passages for one in answers),
            total_tokens=sum(one.usage.total_tokens for one in answers),
            processing_time_ms=round(time_s * 1e3, 3),
        ),
    )
    return answer, together([found[index][1] for index in range(len(found))])


async def lines(outcomes: Outcomes) -> AsyncGenerator[Part, None]:
    """One line a query, with its answer or its error. Raises NotReady where that is what the first one says."""
    begun = False
    async with aclosing(outcomes):
        async for index, outcome in outcomes:
            if isinstance(outcome, NotReady) and not begun:
                raise outcome  # nothing is sent yet, so the status can say when to come back
            begun = True
            yield _line(index, outcome)


def _line(index: int, outcome: Answered | VecgateError) -> Part:
    if isinstance(outcome, VecgateError):
        told = msgspec.convert(msgspec.json.decode(render(outcome)[2])["error"], QueryError)
        return Part(msgspec.json.encode(FailedQuery(index=index, error=told)) + b"\n")
    answer, applied = outcome
    return Part(msgspec.json.encode(_numbered(index, answer)) + b"\n", applied)


def _numbered(index: int, answer: RerankAnswer) -> BatchResult:
    return BatchResult(index=index, **msgspec.structs.asdict(answer))


def _of_query(index: int, error: VecgateError) -> VecgateError:
    """The error as the whole batch's: it names the query. A copy: the engine may have raised it in several calls."""
    told = copy(error)
    told.args = (f"queries[{index}]: {error}",)
    if isinstance(told, InvalidRequest):
        told.param = f"queries[{index}]" + (f".{told.param}" if told.param else "")
    return told


def takes_lines(accept: str) -> bool:
    """Whether an Accept header names NDJSON and does not prefer JSON to it."""
    weights: dict[str, float] = {}
    for one in accept.lower().split(","):
        kind, _, parameters = one.partition(";")
        weight = re.search(r"(?:^|;)\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", parameters)
        weights[kind.strip()] = float(weight[1]) if weight else 1.0
    return weights.get(NDJSON, 0.0) > 0.0 and weights[NDJSON] >= weights.get("application/json", 0.0)
