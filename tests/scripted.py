"""vecgate's command line over a fake backend that misbehaves as HOW says: `HOW=stuck python -m tests.scripted serve`.

Texts with the word "poison" (of tests/small.py) set it off; a load that never ends needs none.
"""

from __future__ import annotations

import os
import threading
from functools import partial

from tests.small import SPECIALS
from vecgate import cli
from vecgate.backends import fake
from vecgate.core import Checkpoint, Tokens
from vecgate.errors import DeviceLost
from vecgate.traits import Backend

POISON = SPECIALS.index("poison")
LONG_S = 600.0


def slow(_row: Tokens) -> None:
    threading.Event().wait(2.0)


def stuck(_row: Tokens) -> None:
    threading.Event().wait(LONG_S)


def lost(_row: Tokens) -> None:
    raise DeviceLost("The device fell off the bus.")


def only_poison(row: Tokens) -> Exception | None:
    return HOW[os.environ["HOW"]](row) if POISON in row.ids else None


def never(_checkpoint: Checkpoint, **_options: object) -> Backend:
    threading.Event().wait(LONG_S)
    raise AssertionError("nobody waits this long")


HOW = {"slow": slow, "stuck": stuck, "lost": lost}

if __name__ == "__main__":
    poisoned = partial(fake.load, script=fake.Script(failure=only_poison))
    fake.load = never if os.environ["HOW"] == "loading" else poisoned  # type: ignore[assignment]
    raise SystemExit(cli.main())
