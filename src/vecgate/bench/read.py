"""Whether an answer is right: as many rows as texts, in their order, finite, of length 1, the same as ever for one text.

A server that answers fast and wrong must not look fast. Knows bodies, no connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vecgate.bench.plan import Ask
from vecgate.core import Vectors

LEAST_COSINE = 0.999
"""Between two rows of one text, asked alone or beside others: bfloat16 in other batches stays above 0.9998 (measured)."""
NORM_TOLERANCE = 1e-2
"""bfloat16 and float16 answers round the length too."""
SCORE_TOLERANCE = 0.05
"""Between two scores of one pair, on the scale of its ranking's range: room for bfloat16, none for another document's."""
Wrong = Literal["unreadable", "count", "order", "not finite", "norm", "width"]


class _Row(msgspec.Struct):
    index: int
    embedding: bytes | list[float]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Rows(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


class _Result(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Ranking(msgspec.Struct):
    results: list[_Result]


_rows = msgspec.json.Decoder(_Rows)
_ranking = msgspec.json.Decoder(_Ranking)


class Reader:
    """Answers to one mix on one server; remembers the first row of each text and holds every later one against it."""

    def __init__(self) -> None:
        self._known: dict[str, Vectors] = {}
        self._scores: dict[tuple[str, str], float] = {}
        self.width: int | None = None

    def read(self, ask: Ask, body: bytes) -> tuple[Wrong | None, int]:
        """What is wrong with it (None: nothing), and the tokens that the server says it counted."""
        try:
            if ask.query is not None:
                return self._ranked(ask, ask.query, _ranking.decode(body).results), 0
            answer = _rows.decode(body)
        except msgspec.DecodeError:
            return "unreadable", 0
        return self._embedded(ask.texts, answer.data), answer.usage.prompt_tokens if answer.usage else 0

    def _embedded(self, texts: Sequence[str], data: list[_Row]) -> Wrong | None:
        if len(data) != len(texts):
            return "count"
        if [row.index for row in data] != list(range(len(texts))):
            return "order"
        rows = [_numbers(row.embedding) for row in data]
        if any(row is None for row in rows):
            return "unreadable"
        self.width = self.width or len(rows[0] if rows[0] is not None else ())
        if any(row is None or len(row) != self.width for row in rows):
            return "width"
        return self._compared(texts, np.stack([row for row in rows if row is not None]))

    def _compared(self, texts: Sequence[str], matrix: Vectors) -> Wrong | None:
        if not np.isfinite(matrix).all():
            return "not finite"
        if (np.abs(np.linalg.norm(matrix, axis=1) - 1.0) > NORM_TOLERANCE).any():
            return "norm"
        known = np.stack([self._known.setdefault(text, row.copy()) for text, row in zip(texts, matrix)])
        cosines = np.einsum("nd,nd->n", matrix, known) / np.linalg.norm(known, axis=1)
        return "order" if (cosines < LEAST_COSINE).any() else None

    def _ranked(self, ask: Ask, query: str, results: list[_Result]) -> Wrong | None:
        scores = [one.relevance_score if one.relevance_score is not None else one.score for one in results]
        if len(results) != len(ask.texts):
            return "count"
        if sorted(one.index for one in results) != list(range(len(results))) or None in scores:
            return "unreadable" if None in scores else "order"
        found = np.array(scores, np.float64)
        if not np.isfinite(found).all():
            return "not finite"
        known = [
            self._scores.setdefault((query, ask.texts[one.index]), score) for one, score in zip(results, found.tolist())
        ]
        most = SCORE_TOLERANCE * max(float(np.ptp(found)), 1e-3)
        falls = (np.diff(found) <= most).all()
        return None if falls and (np.abs(found - np.array(known)) <= most).all() else "order"


def _numbers(embedding: bytes | list[float]) -> NDArray[np.float32] | None:
    """A row as base64 or as a list; None where it is neither."""
    if isinstance(embedding, bytes):
        return np.frombuffer(embedding, "<f4").astype(np.float32) if embedding and len(embedding) % 4 == 0 else None
    return np.asarray(embedding, np.float32) if embedding else None
