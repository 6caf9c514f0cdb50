"""One call's work inside the engine: what a rerank asks, what its rows took, two works as one.

Knows no queue and no thread: engine/local.py makes the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from vecgate.core import Applied, Cut, Tokens, Vectors
from vecgate.engine.model import Model
from vecgate.engine.waiting import Ticket


@dataclass(frozen=True, slots=True)
class Question:
    """What a rerank call asks, whichever model answers. limit: most ids of a document before it is paired."""

    query: str
    documents: Sequence[str]
    top_n: int | None
    limit: int | None
    cut: Cut
    max_tokens: int | None = None

    def most(self, model: Model) -> int:
        """Ids of one row, specials included."""
        return min(model.checkpoint.max_tokens, self.max_tokens or model.checkpoint.max_tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """What one call's rows took. rows: as tokenised, in input order; vectors (N, D) as the model gave them. places: where
    each row's like is among those that were computed (None: each is its own)."""

    model: Model
    rows: Sequence[Tokens]
    ticket: Ticket
    tokenize_s: float
    places: Sequence[int] | None = None

    @property
    def vectors(self) -> Vectors:
        assert self.ticket.vectors is not None
        return self.ticket.vectors if self.places is None else self.ticket.vectors[list(self.places)]

    def applied(self, role: str | None = None, *, queries: int = 0, dimensions: int | None = None) -> Applied:
        """The report; the first `queries` rows are a rerank query embedded on its own."""
        return Applied(
            model=self.model.name,
            role=role,
            tokens=tuple(len(row) for row in self.rows[queries:]),
            original=tuple(row.original for row in self.rows[queries:]),
            queue_s=self.ticket.queue_s,
            tokenize_s=self.tokenize_s,
            forward_s=self.ticket.forward_s,
            query_tokens=sum(len(row) for row in self.rows[:queries]),
            cut_queries=tuple((row.original, len(row)) for row in self.rows[:queries] if row.original > len(row)),
            space=self.model.space.text,
            dimensions=dimensions,
        )


def distinct(rows: Sequence[Tokens]) -> tuple[list[Tokens], list[int]]:
    """The rows without repetitions, and for each of them all the place of its like."""
    known: dict[tuple[bytes, int | None, int], int] = {}
    places = [known.setdefault((row.ids.tobytes(), row.second, row.prompt), len(known)) for row in rows]
    first = dict(zip(reversed(places), reversed(rows)))
    return [first[place] for place in range(len(known))], places


def both(bi: Applied, cross: Applied, kept: Sequence[int]) -> Applied:
    """The shortlist's and the cross-encoder's work as one, per document of the request: as the cross-encoder read the
    documents `kept`, as the bi-encoder read the others; what the bi-encoder read of those kept counts with the query."""
    tokens, original = list(bi.tokens), list(bi.original)
    for position, document in enumerate(kept):
        tokens[document], original[document] = cross.tokens[position], cross.original[position]
    return replace(
        cross,
        tokens=tuple(tokens),
        original=tuple(original),
        query_tokens=bi.query_tokens + sum(bi.tokens[document] for document in kept),
        cut_queries=bi.cut_queries,
        queue_s=bi.queue_s + cross.queue_s,
        tokenize_s=bi.tokenize_s + cross.tokenize_s,
        forward_s=bi.forward_s + cross.forward_s,
    )
