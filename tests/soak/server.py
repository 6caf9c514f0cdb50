"""vecgate's command line over the fake backend, which fails by script: `python -m tests.soak.server serve`.

What goes wrong is asked for by words in the texts (texts.py), so that the client knows which requests may fail; now and
then the device also has less room than the engine believes, which nobody may notice.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import Any

from tests.soak.texts import IDS
from vecgate import cli
from vecgate.backends import fake
from vecgate.core import Tokens
from vecgate.errors import OutOfMemory

HANG_S = 0.3
TIGHT_TOKENS = 700
"""What the device has room for while it has little: a third of a batch, more than any row."""
TIGHT_S = 4.0
"""How long there is little room, and then enough again."""


class Faults:
    """The exception for a row, or None; `flaky!` fails every second time it is computed."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, row: Tokens) -> Exception | None:
        ids = set(row.ids.tolist())
        if IDS["hang!"] in ids:
            threading.Event().wait(HANG_S)
        if IDS["raise!"] in ids:
            return RuntimeError("scripted")
        if IDS["full!"] in ids:
            return OutOfMemory("scripted")
        if IDS["flaky!"] in ids:
            self._seen += 1
            return OutOfMemory("scripted") if self._seen % 2 else None
        return None


def script() -> fake.Script:
    """Without the record of batches, which would grow with the soak."""
    record: Any = deque(maxlen=1)
    return fake.Script(
        failure=Faults(),
        nan_ids=frozenset([IDS["nan!"]]),
        zero_ids=frozenset([IDS["zero!"]]),
        batches=record,
        threads=record,
    )


def tighten(told: fake.Script) -> None:
    """For ever: little room, then enough."""
    while True:
        threading.Event().wait(TIGHT_S)
        told.most_tokens = None if told.most_tokens else TIGHT_TOKENS


if __name__ == "__main__":
    scripted = script()
    fake.load = partial(fake.load, script=scripted)
    threading.Thread(target=tighten, args=(scripted,), daemon=True).start()
    raise SystemExit(cli.main())
