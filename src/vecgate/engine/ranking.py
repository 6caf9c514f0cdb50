"""Ranking: which method answers a rerank call, and from raw values to an order with scores in [0, 1].

Pure functions; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecgate.core import Applied, Method, Ranking, Task, Vectors
from vecgate.errors import InvalidRequest

Chosen = Literal["similarity", "cross-encoder", "bi+cross-encoder"]


def choose(method: Method, named: Task | None, *, embeds: bool, reranks: bool, few: bool) -> Chosen:
    """The method that answers: an explicit one, else the named model's own, else the reranker's if one is loaded.

    named: the task of the model the request named. few: fewer results are asked for than there are documents, without
    which a shortlist is pointless and "bi+cross-encoder" is "cross-encoder". Raises InvalidRequest when no loaded
    model can do it.
    """
    if method == "auto":
        task = named or ("rerank" if reranks else "embed")
        return "cross-encoder" if task == "rerank" else "similarity"
    if method == "similarity":
        if not embeds:
            raise InvalidRequest("Method 'similarity' needs an embedding model and none is loaded.", "method")
        return "similarity"
    if not reranks:
        raise InvalidRequest(
            f"Method {method!r} needs a reranker and none is loaded; start the server with --reranker.", "method"
        )
    return "bi+cross-encoder" if method == "bi+cross-encoder" and embeds and few else "cross-encoder"


def shortlist_size(top_n: int) -> int:
    """How many documents the bi-encoder keeps for the cross-encoder."""
    return max(4 * top_n, 32)


def cosines(query: NDArray[np.float32], documents: Vectors) -> NDArray[np.float64]:
    """(N,) cosine of unit rows, clipped to [-1, 1]: rounding must not leave the range."""
    return np.clip(documents.astype(np.float64) @ query.astype(np.float64), -1.0, 1.0)


def scores(raw: NDArray[np.float64], method: Chosen) -> NDArray[np.float64]:
    """(N,) in [0, 1], monotone in `raw`: (1 + cosine) / 2 for similarity, the sigmoid of a logit otherwise."""
    if method == "similarity":
        return (1.0 + raw) / 2.0
    # exp of a non-positive number only: neither branch overflows
    small = np.exp(-np.abs(raw))
    return np.where(raw >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def best(raw: NDArray[np.float64], top_n: int | None) -> NDArray[np.intp]:
    """Indices of the `top_n` highest values, best first; equal values keep their order."""
    order = np.argsort(-raw, kind="stable")
    return order if top_n is None else order[:top_n]


def ranked(
    raw: NDArray[np.float64], kept: Sequence[int], method: Chosen, top_n: int | None, applied: Applied
) -> Ranking:
    """The ranking of the documents `kept`, whose raw values are `raw` (K,)."""
    order = best(raw, top_n)
    return Ranking(
        order=tuple(kept[i] for i in order),
        raw=tuple(raw[order].tolist()),
        scores=tuple(scores(raw, method)[order].tolist()),
        method=method,
        applied=applied,
    )
