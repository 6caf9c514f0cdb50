"""What is made of many measured values: percentiles of one round, the median and range of several.

Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import median

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """The same figure of several rounds. low, high: the least and the greatest of them."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    return Spread(median(values), min(values), max(values)) if values else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of the ascending values that a `share` (0 to 1) of them does not exceed: always one that was measured."""
    if not ordered:
        raise ValueError("no value has no percentile")
    return ordered[min(len(ordered), max(1, ceil(share * len(ordered)))) - 1]


def overlap(begin_s: float, end_s: float, window_begin_s: float, window_end_s: float) -> float:
    """The share of [begin, end] that lies in the window: what a request counts for in it.

    A request over the window's edge would else count as a whole or not at all, which is most of the error where few fit.
    """
    if end_s <= begin_s:
        return float(window_begin_s <= begin_s < window_end_s)
    return max(0.0, min(end_s, window_end_s) - max(begin_s, window_begin_s)) / (end_s - begin_s)
