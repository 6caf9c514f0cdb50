"""Which budget of tokens a batch should have: the least with which the device is about as fast as with any.

Found on real work: while enough waits to fill every batch, budgets take turns, and the tokens a second of each are
compared. So it costs no start and no idle time; what was found is remembered, so that the next start begins with it.
Knows seconds and tokens, neither threads nor models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from vecgate.core import BackendCard
from vecgate.engine import remembered

SHARES = (8, 4, 2, 1)
"""The budgets tried: the device's own over each of these."""
LEAST = 256
"""Tokens of the smallest that is tried: below, what a batch costs beside its forward begins to count."""
ROUNDS = 6
"""Batches of each budget, after one that is not counted: its shapes are new."""
ENOUGH = 0.97
"""Of the best rate: a smaller batch lets a single query wait for less."""
MEMORY = "budgets.json"


class Probe:
    """One model's trial: `budget` for the next batch, `learn` with how long it took, until that gives the answer, which
    `on_found` is told."""

    def __init__(self, most: int, on_found: Callable[[int], None] = lambda _: None) -> None:
        self.most, self.on_found = most, on_found
        self.budgets = sorted({max(min(LEAST, most), most // share) for share in SHARES})
        self._rates: dict[int, list[float]] = {budget: [] for budget in self.budgets}
        self._turn = 0

    @property
    def budget(self) -> int:
        return self.budgets[self._turn % len(self.budgets)]

    def learn(self, tokens: int, took_s: float) -> int | None:
        """A full batch of the present budget took so long; the budget found, once there is one."""
        self._rates[self.budget].append(tokens / max(took_s, 1e-6))
        self._turn += 1
        if self._turn < len(self.budgets) * (1 + ROUNDS):
            return None
        rates = {budget: median(rates[1:]) for budget, rates in self._rates.items()}
        return next(budget for budget in self.budgets if rates[budget] >= ENOUGH * max(rates.values()))


def begin(
    asked: int | None, config: Mapping[str, Any], card: BackendCard, cache: Path | None
) -> tuple[int, Probe | None]:
    """The tokens of a batch: those asked for, what an earlier run found, or the device's with a probe for better."""
    if asked or not card.tries_budgets:
        return asked or card.batch_tokens, None
    key = key_of(config, card)
    if (found := recall(key, cache)) is not None:
        return min(found, card.batch_tokens), None
    return card.batch_tokens, Probe(card.batch_tokens, partial(remember, key, cache=cache))


def key_of(config: Mapping[str, Any], card: BackendCard) -> str:
    """Of what the answer depends on: the model's shape, and what computes it."""
    about = (config, card.backend, card.device, card.dtype, card.batch_tokens, os.cpu_count(), ENOUGH)
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def recall(key: str, cache: Path | None) -> int | None:
    """The budget found by an earlier run, if any."""
    match remembered.read(cache, MEMORY).get(key):
        case int(found) if found > 0:
            return found
    return None


def remember(key: str, budget: int, cache: Path | None) -> None:
    remembered.write(cache, MEMORY, {**remembered.read(cache, MEMORY), key: budget})
