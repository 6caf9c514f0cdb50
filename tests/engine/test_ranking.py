"""Which method answers, and from raw values to scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecgate.core import Method, Task
from vecgate.engine import ranking
from vecgate.errors import InvalidRequest


@pytest.mark.parametrize(
    ("method", "named", "embeds", "reranks", "few", "expected"),
    [
        ("auto", None, True, False, True, "similarity"),
        ("auto", None, True, True, True, "cross-encoder"),
        ("auto", None, False, True, True, "cross-encoder"),
        ("auto", "embed", True, True, True, "similarity"),
        ("auto", "rerank", True, True, True, "cross-encoder"),
        ("similarity", None, True, True, True, "similarity"),
        ("similarity", "rerank", True, True, True, "similarity"),
        ("cross-encoder", "embed", True, True, True, "cross-encoder"),
        ("bi+cross-encoder", None, True, True, True, "bi+cross-encoder"),
        ("bi+cross-encoder", None, True, True, False, "cross-encoder"),
        ("bi+cross-encoder", None, False, True, True, "cross-encoder"),
    ],
)
def test_choose(method: Method, named: Task | None, embeds: bool, reranks: bool, few: bool, expected: str) -> None:
    assert ranking.choose(method, named, embeds=embeds, reranks=reranks, few=few) == expected


@pytest.mark.parametrize("method", ["cross-encoder", "bi+cross-encoder"])
def test_a_reranker_that_is_not_loaded_is_refused_not_replaced(method: Method) -> None:
    with pytest.raises(InvalidRequest, match="reranker"):
        ranking.choose(method, None, embeds=True, reranks=False, few=True)


def test_similarity_without_an_embedding_model_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="embedding model"):
        ranking.choose("similarity", None, embeds=False, reranks=True, few=True)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=50))
def test_sigmoid_scores_stay_in_range_and_keep_the_order(logits: list[float]) -> None:
    raw = np.array(logits)
    score = ranking.scores(raw, "cross-encoder")
    assert ((score >= 0) & (score <= 1)).all()
    assert (np.diff(score[np.argsort(raw)]) >= 0).all()


def test_scores_are_the_declared_formulas() -> None:
    raw = np.array([-1.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(ranking.scores(raw, "similarity"), [0, 0.5, 0.75, 1])
    np.testing.assert_allclose(ranking.scores(raw, "cross-encoder"), 1 / (1 + np.exp(-raw)))


def test_best_keeps_the_order_of_equals_and_allows_more_than_there_are() -> None:
    raw = np.array([0.5, 0.9, 0.5])
    assert ranking.best(raw, None).tolist() == [1, 0, 2]
    assert ranking.best(raw, 2).tolist() == [1, 0]
    assert ranking.best(raw, 10).tolist() == [1, 0, 2]


def test_cosines_of_unit_rows_never_leave_the_range() -> None:
    row = np.full(3, 1 / np.sqrt(3), np.float32)
    assert (np.abs(ranking.cosines(row, np.stack([row, -row]))) <= 1.0).all()
