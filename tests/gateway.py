"""vecgate's command line over a backend that computes nothing: what the gateway itself costs.

`python -m tests.gateway serve --backend fake --model minilm`, and `vecgate bench` of it: texts are parsed, tokenised, handed
to the device thread and back, rows are encoded; every row is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vecgate import cli
from vecgate.backends import fake
from vecgate.core import Batch, Checkpoint, Vectors


class Idle(fake.Fake):
    def forward(self, batch: Batch) -> Vectors:
        return np.full((len(batch.rows), self.card.dimensions), self.card.dimensions**-0.5, np.float32)


def load(checkpoint: Checkpoint, **options: Any) -> fake.Fake:
    made = full(checkpoint, **options)
    made.__class__ = Idle
    return made


full = fake.load

if __name__ == "__main__":
    fake.load = load
    raise SystemExit(cli.main())
