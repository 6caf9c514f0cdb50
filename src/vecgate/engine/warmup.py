"""The forwards before the first request: real shapes, so that nobody pays for first-use work, and rows known to be finite.

Runs on the device thread; knows one backend and how to make a row for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from vecgate.core import Batch, Tokens
from vecgate.engine.waiting import padded
from vecgate.errors import BackendFailed
from vecgate.traits import Backend

log = logging.getLogger("vecgate.engine")

LENGTHS = (8, 32, 128, 512)
"""Row lengths that are always tried, up to the model's limit."""
SPARE_S = 1.0
"""How long the other lengths that short rows are padded to may take together: all of them for a small model."""


def warm(backend: Backend, sample: Callable[[int], Sequence[Tokens]], least: int, most: int) -> float:
    """One row of each usual length, then of each other length that rows up to the longest of those are padded to while
    there is time; the most tokens a second that one row had. Raises BackendFailed.

    least, most: tokens of the shortest and the longest row there is.
    """
    usual = sorted({min(max(length, least), most) for length in LENGTHS})
    tried = {length: _rate(backend, sample(length), length) for length in usual}
    pads = backend.card.pad_lengths or ()
    done = {padded(length, pads) for length in usual}
    start_s = perf_counter()
    for length in pads:
        if least <= length < usual[-1] and length not in done and perf_counter() - start_s < SPARE_S:
            tried[length] = _rate(backend, sample(length), length)
    log.info("Warmed up with rows of %s tokens.", ", ".join(map(str, sorted(tried))))
    return max(tried.values())


def _rate(backend: Backend, rows: Sequence[Tokens], length: int) -> float:
    start_s = perf_counter()
    finite = np.isfinite(backend.forward(Batch(tuple(rows)))).all()
    if not finite:
        raise BackendFailed(f"The warm-up row of {length} tokens is not finite; the weights may be damaged.")
    return sum(map(len, rows)) / max(perf_counter() - start_s, 1e-6)
