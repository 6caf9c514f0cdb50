from typing import Any

import msgspec
import numpy as np
import pytest

from tests.bench.stub import embeddings, ranking, row
from vecgate.bench.plan import Ask
from vecgate.bench.read import Reader

TEXTS = ["one", "two", "three"]
ASK = Ask(tuple(TEXTS))


def read(answer: Any, ask: Ask = ASK, reader: Reader | None = None) -> str | None:
    return (reader or Reader()).read(ask, msgspec.json.encode(answer))[0]


def test_a_right_answer_has_nothing_wrong_and_tells_its_tokens() -> None:
    assert Reader().read(ASK, msgspec.json.encode(embeddings(TEXTS))) == (None, 9)


def test_floats_are_read_as_well_as_base64() -> None:
    answer = {"data": [{"index": at, "embedding": row(text).tolist()} for at, text in enumerate(TEXTS)]}
    assert read(answer) is None


def test_rows_that_are_not_finite_or_not_of_length_one_are_wrong() -> None:
    rows = [row(text) for text in TEXTS]
    rows[1] = np.full_like(rows[1], np.nan)
    assert read(embeddings(TEXTS, rows)) == "not finite"
    rows[1] = 2 * row("two")
    assert read(embeddings(TEXTS, rows)) == "norm"
    rows[1] = np.zeros_like(rows[1])
    assert read(embeddings(TEXTS, rows)) == "norm"


def test_another_count_width_or_index_is_wrong() -> None:
    assert read(embeddings(TEXTS[:2])) == "count"
    rows = [row(text) for text in TEXTS]
    short = rows[0][:4] / np.linalg.norm(rows[0][:4])
    assert read(embeddings(TEXTS, [*rows[:2], short])) == "width"
    answer = embeddings(TEXTS)
    answer["data"].reverse()
    assert read(answer) == "order"


@pytest.mark.parametrize("answer", [[], {"data": 1}, {"data": [{"index": 0, "embedding": "AAA"}]}, {"error": "busy"}])
def test_what_is_no_answer_is_unreadable(answer: Any) -> None:
    assert read(answer, Ask(("one",))) == "unreadable"


def test_rows_in_another_order_are_seen_once_a_text_was_asked_alone() -> None:
    reader = Reader()
    assert read(embeddings(["two"]), Ask(("two",)), reader) is None
    swapped = [row("two"), row("one"), row("three")]
    assert read(embeddings(TEXTS, swapped), ASK, reader) == "order"


def test_small_differences_of_arithmetic_are_none_in_order() -> None:
    reader = Reader()
    assert read(embeddings(TEXTS), ASK, reader) is None
    noisy = [one + np.float32(1e-3) * row(f"noise {at}") for at, one in enumerate(map(row, TEXTS))]
    assert read(embeddings(TEXTS, noisy), ASK, reader) is None


RANK = Ask(tuple(TEXTS), "which?")


def test_a_ranking_has_every_document_once_best_first() -> None:
    good = ranking("which?", TEXTS)
    assert read(good, RANK) is None
    assert read({"results": good["results"][:2]}, RANK) == "count"
    assert read({"results": good["results"][::-1]}, RANK) == "order"
    assert read({"results": [good["results"][0]] * 3}, RANK) == "order"
    assert read({"results": [{"index": at} for at in range(3)]}, RANK) == "unreadable"


def test_scores_that_move_with_the_documents_places_are_wrong() -> None:
    reader = Reader()
    assert read(ranking("which?", TEXTS[::-1]), Ask(tuple(TEXTS[::-1]), "which?"), reader) is None
    assert read(ranking("which?", TEXTS), RANK, reader) is None
    moved = ranking("which?", TEXTS[::-1])  # the scores of the documents the other way round
    assert read(moved, RANK, reader) == "order"
