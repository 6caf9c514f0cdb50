"""The soak's model and its oracle: a vocabulary with words that mean trouble, and the row that each text must get.

Knows the fake backend's functions, no server and no HTTP.
"""

from __future__ import annotations

import random
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tests import small
from vecgate.backends import fake
from vecgate.core import Task, Tokens, Vectors

TROUBLES = ("raise!", "nan!", "zero!", "full!", "hang!", "flaky!")
"""Words that set the scripted backend off, see server.py."""
HARMLESS = ("hang!",)
"""The row is late, and right."""
MAYBE = ("flaky!",)
"""Fails once: whether the request does depends on what it was computed with."""
WORDS = (*TROUBLES, *(f"w{number}" for number in range(400)))
IDS = {word: len(small.SPECIALS) + at for at, word in enumerate(WORDS)}
MAX_TOKENS = 512
DIMENSIONS = 384
SIZES = ((1500, 3, 12), (200, 20, 60), (40, 200, 450), (10, 600, 800))
"""Of the pool: texts, least and most words; the last are over the model's limit."""
PROMPTS = {"query": "query: ", "document": "passage: "}


def folder(path: Path, task: Task = "embed") -> Path:
    """The model's files."""
    return small.folder(path, task, DIMENSIONS, words=WORDS, max_tokens=MAX_TOKENS)


class Oracle:
    """What each text must get, computed by the fake's own functions in this process; `pool` has texts without trouble."""

    def __init__(self, model: Path, seed: int = 0) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._rows: dict[tuple[str, str | None], Vectors] = {}
        rng = random.Random(seed)
        self.pool = [
            " ".join(rng.choices(WORDS[len(TROUBLES) :], k=rng.randint(least, most)))
            for count, least, most in SIZES
            for _ in range(count)
        ]

    @cached_property
    def short(self) -> list[str]:
        """Those of a usual question's length."""
        return self.pool[: SIZES[0][0]]

    def row(self, text: str, role: str | None = None) -> Vectors:
        """(D,) of length 1; raises AssertionError for a text that gets none."""
        key = text, role
        if key not in self._rows:
            ids = self._tokenizer.encode(PROMPTS.get(role or "", "") + text).ids
            kept = np.array([*ids[: MAX_TOKENS - 1], ids[-1]] if len(ids) > MAX_TOKENS else ids, np.int32)
            row = fake.vector(kept, DIMENSIONS).astype(np.float64)
            self._rows[key] = (row / np.linalg.norm(row)).astype(np.float32)
        return self._rows[key]

    def rows(self, texts: list[str], role: str | None = None) -> Vectors:
        return np.stack([self.row(text, role) for text in texts])

    def score(self, query: str, document: str) -> float:
        """The reranker's, 0 to 1, of a pair that needs no cut."""
        pair = self._tokenizer.encode(query, document)
        logit = fake.logit(Tokens(np.array(pair.ids, np.int32), second=pair.type_ids.index(1)))
        return float(1 / (1 + np.exp(-np.float64(logit[0]))))

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


def troubled(text: str, trouble: str) -> str:
    """The text with the word among its first, where no cut takes it away."""
    head, _, rest = text.partition(" ")
    return f"{head} {trouble} {rest}".strip()
