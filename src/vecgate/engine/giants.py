"""The first or the last ids of a text too long to be tokenised whole; knows no tokenizer, only a function over slices.

Both `head` and `tail` yield None after each slice, a place to stop or to let others go first, and the Body last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecgate.core import Cut

CHARS_PER_TOKEN = 16
"""A text of more than this many characters per token of the limit is a giant: it is tokenised slice by slice."""
WHOLE_CHARS = 16_384
"""Texts up to this length are tokenised whole, however small the limit is."""
FIRST_CHARS_PER_TOKEN = 2
"""The first slice of a giant, per token of the limit; each next one has four times as many characters."""
WORD_CHARS = 1 << 16
"""A slice this long need no longer end between words: some texts and some tokenizers have none."""
SCAN_CHARS = 1 << 20
"""The most characters of one text that are looked at, where the limit asks for no more. A text with fewer tokens than
the limit in as many characters (a million spaces, one word of that length) is cut there; without the bound 32 MB of
blanks cost 20 s and 2 GB."""
MARGIN_WORDS, MARGIN_TOKENS = 16, 256
"""What lies this close to a slice's end may be tokenised differently in the whole text."""
GAP = re.compile(r"(?<=\S)\s")

Slice = Callable[[str], tuple[list[int], NDArray[np.int64]]]
"""A part of a text -> its ids, and for each the number of the word it belongs to, ascending."""


@dataclass(frozen=True, slots=True)
class Body:
    """The ids of one text without specials, already cut to what can be used; `total` counts them before the cut.

    exact: False when the far end was never tokenised, so that `total` is a lower bound. gave_up: the characters after
    which reading ended although there was room for more ids (0: never); the ids next to there are the best guess.
    """

    ids: list[int]
    total: int
    exact: bool = True
    gave_up: int = 0


def longest_whole(room: int) -> int:
    """The most characters of a text that is no giant where `room` ids are used."""
    return max(WHOLE_CHARS, CHARS_PER_TOKEN * room)


def head(text: str, room: int, slice_: Slice) -> Iterator[Body | None]:
    """The first ids of a giant, the same as those of the whole text."""
    chars, most = _sizes(room)
    while chars < len(text):
        ids, words = slice_(text[:chars])
        settled = int(np.searchsorted(words, words[-1] - MARGIN_WORDS)) if len(words) else 0
        if chars >= WORD_CHARS:
            settled = max(settled, len(ids) - MARGIN_TOKENS)
        if settled >= room or chars >= most:
            total = max(settled, min(len(ids), room)) + 1
            yield Body(ids[:room], total, exact=False, gave_up=0 if settled >= room else chars)
            return
        yield None
        chars = min(chars * 4, most)
    ids, _ = slice_(text)
    yield Body(ids[:room], len(ids))


def tail(text: str, room: int, slice_: Slice, lead: Sequence[int]) -> Iterator[Body | None]:
    """The prompt's ids and the last ids of a giant, the latter the same as those of the whole text."""
    chars, most = _sizes(room)
    needed = max(room - len(lead), 0)
    while chars < len(text):
        gap = GAP.search(text, len(text) - chars, len(text) - chars // 2)
        ids, words = slice_(text[gap.start() if gap else len(text) - chars :])
        loose = int(np.searchsorted(words, words[0] + MARGIN_WORDS)) if len(words) and gap else len(ids)
        if chars >= WORD_CHARS:
            loose = min(loose, MARGIN_TOKENS)
        settled = len(ids) - loose
        if settled >= needed or chars >= most:
            total = len(lead) + max(settled, min(len(ids), needed)) + 1
            kept = cut_ids([*lead, *ids], room, "start", len(lead))
            yield Body(kept, total, exact=False, gave_up=0 if settled >= needed else chars)
            return
        yield None
        chars = min(chars * 4, most)
    ids, _ = slice_(text)
    yield Body(cut_ids(ids, room, "start", len(lead)), len(ids))


def cut_ids(ids: list[int], room: int, cut: Cut, keep: int = 0) -> list[int]:
    """At most `room` ids; a cut at the start spares the first `keep`."""
    if len(ids) <= room:
        return ids
    if cut != "start":
        return ids[:room]
    keep = min(keep, room)
    return ids[:keep] + ids[len(ids) - (room - keep) :]


def words_of(word_ids: Sequence[int | None]) -> NDArray[np.int64]:
    """The number of each id's word, ascending; an id of no word belongs to the one before."""
    return np.maximum.accumulate(np.array([word or 0 for word in word_ids], dtype=np.int64))


def _sizes(room: int) -> tuple[int, int]:
    """Characters of the first slice and of the longest."""
    return max(WHOLE_CHARS, FIRST_CHARS_PER_TOKEN * room), max(SCAN_CHARS, longest_whole(room))
