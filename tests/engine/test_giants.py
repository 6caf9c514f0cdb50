"""Slices of a giant, over a slicer of one id a word: exact ids from either end, a pause after each, a bound on all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vecgate.engine.giants import SCAN_CHARS, WHOLE_CHARS, Body, cut_ids, head, longest_whole, tail, words_of

WORDS = [f"{number:07d}" for number in range(100_000)]
TEXT = " ".join(WORDS)
BLANK = " " * (2 * SCAN_CHARS)


def by_words(text: str) -> tuple[list[int], Any]:
    """Words of seven digits have their number for an id, what a cut left of one has -1."""
    ids = [int(word) if len(word) == 7 else -1 for word in text.split()]
    return ids, np.arange(len(ids))


def ended(steps: Iterator[Body | None]) -> tuple[int, Body]:
    """How many pauses there were, and the body that came last."""
    *pauses, body = steps
    assert body is not None
    assert pauses == [None] * len(pauses)
    return len(pauses), body


@pytest.mark.parametrize("room", [1, 254, 9_000])
def test_the_ids_next_to_either_end_are_exact_and_the_rest_is_not_read(room: int) -> None:
    _, first = ended(head(TEXT, room, by_words))
    assert first.ids == [*range(room)]
    _, last = ended(tail(TEXT, room, by_words, [7]))
    assert last.ids == [7, *range(len(WORDS) - room + 1, len(WORDS))]
    for body in (first, last):
        assert room < body.total <= len(WORDS)
        assert (body.exact, body.gave_up) == (False, 0)


def test_slices_grow_with_a_pause_after_each() -> None:
    sizes: list[int] = []

    def seen(text: str) -> tuple[list[int], Any]:
        sizes.append(len(text))
        return by_words(text)

    pauses, body = ended(head(TEXT, 10_000, seen))
    assert sizes == [20_000, 80_000, 320_000]  # two characters a token, then four times as many
    assert (pauses, body.ids) == (2, [*range(10_000)])


def test_a_giant_of_few_ids_is_read_whole_below_the_bound() -> None:
    text = "0000001" + " " * 600_000 + "0000002"
    for steps in (head(text, 254, by_words), tail(text, 254, by_words, [])):
        pauses, body = ended(steps)
        assert body == Body([1, 2], 2)
        assert pauses == 3


def test_reading_ends_at_the_bound_and_says_so() -> None:
    for steps in (head(BLANK + "0000001", 254, by_words), tail("0000001" + BLANK, 254, by_words, [])):
        _, body = ended(steps)
        assert body == Body([], 1, exact=False, gave_up=SCAN_CHARS)


def test_the_bound_grows_with_the_limit() -> None:
    assert longest_whole(1) == WHOLE_CHARS
    _, body = ended(head(BLANK + "0000001", 100_000, by_words))
    assert body.gave_up == longest_whole(100_000) == 1_600_000


def test_a_cut_at_the_start_keeps_what_it_must() -> None:
    assert cut_ids([1, 2, 3, 4, 5], 3, "end") == [1, 2, 3]
    assert cut_ids([1, 2, 3, 4, 5], 3, "start") == [3, 4, 5]
    assert cut_ids([1, 2, 3, 4, 5], 3, "start", keep=2) == [1, 2, 5]
    assert cut_ids([1, 2, 3, 4, 5], 3, "start", keep=9) == [1, 2, 3]
    assert cut_ids([1, 2, 3], 3, "start", keep=1) == [1, 2, 3]


def test_an_id_of_no_word_belongs_to_the_word_before() -> None:
    assert words_of([None, 0, 0, 1, None, 2]).tolist() == [0, 0, 0, 1, 1, 2]
    assert words_of([]).tolist() == []
