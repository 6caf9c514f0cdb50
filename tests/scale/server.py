"""vecgate's command line over a fake device that takes a fixed time: `python -m tests.scale.server serve`.

The time is slept, not computed, so that two servers on one machine have double the capacity of one: SCALE_BATCH_S for a
batch and SCALE_TOKEN_S for each of its tokens. The rows are the fake's own, which tests.soak.texts knows.
"""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import Any

from vecgate import cli
from vecgate.backends import fake
from vecgate.core import Batch, Checkpoint, Vectors

BATCH_S = float(os.environ.get("SCALE_BATCH_S", "0.02"))
TOKEN_S = float(os.environ.get("SCALE_TOKEN_S", "0"))


class Slow(fake.Fake):
    def forward(self, batch: Batch) -> Vectors:
        until_s = monotonic() + BATCH_S + TOKEN_S * sum(len(row.ids) for row in batch.rows)
        rows = super().forward(batch)
        threading.Event().wait(max(0.0, until_s - monotonic()))
        return rows


def load(checkpoint: Checkpoint, **options: Any) -> fake.Fake:
    made = full(checkpoint, **options)
    made.__class__ = Slow
    return made


full = fake.load

if __name__ == "__main__":
    fake.load = load
    raise SystemExit(cli.main())
