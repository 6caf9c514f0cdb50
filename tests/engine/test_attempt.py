"""One batch on the device: whatever it does, each row gets its own row or its own error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.engine.test_batcher import CHECKPOINT, LIMITS, row
from vecgate.backends import fake
from vecgate.core import Batch, Vectors
from vecgate.engine.attempt import Attempt, Unusable
from vecgate.engine.waiting import Item, Ticket
from vecgate.errors import BackendFailed, OutOfMemory


def items_of(*rows: Sequence[int]) -> list[Item]:
    """Each row of a call of its own."""

    async def build() -> list[Item]:
        return [Ticket([row(*ids)]).waiting[0] for ids in rows]

    return asyncio.run(build())


class Device:
    """A fake whose forwards are counted; `change` turns the rows of the given forward into others."""

    def __init__(self, script: fake.Script, change: Callable[[int, Vectors], Vectors] = lambda _, rows: rows) -> None:
        self.script = script
        self.fake = fake.load(CHECKPOINT, script=script)
        self.change = change

    def attempt(self, items: Sequence[Item]) -> Attempt:
        made = Attempt(self.fake, LIMITS)
        forward = self.fake.forward

        def changed(batch: Batch) -> Vectors:
            rows = forward(batch)
            return self.change(len(self.script.batches), rows)

        self.fake.forward = changed  # type: ignore[method-assign]
        made.run(items)
        return made

    @property
    def sizes(self) -> list[int]:
        return [len(batch.rows) for batch in self.script.batches]


def right(items: Sequence[Item], attempt: Attempt) -> list[bool]:
    """For each item whether it got its own row."""
    return [np.array_equal(attempt.outcomes[item], fake.vector(item.tokens.ids, 8)) for item in items]  # type: ignore[arg-type]


# rows that are not usable


@pytest.mark.parametrize("kind", ["nan_ids", "zero_ids"])
def test_a_row_that_is_not_usable_is_tried_once_more_alone_then_an_error(kind: str) -> None:
    script = fake.Script()
    setattr(script, kind, frozenset({13}))
    device = Device(script)
    items = items_of([12], [13], [14])
    attempt = device.attempt(items)
    assert device.sizes == [3, 1]
    assert [ids.ids.tolist() for ids in script.batches[1].rows] == [[13]]
    assert right(items, attempt) == [True, False, True]
    assert isinstance(attempt.outcomes[items[1]], Unusable)
    assert attempt.nonfinite == 1


def test_a_row_that_is_usable_alone_is_an_answer_and_still_counted() -> None:
    def first_is_bad(count: int, rows: Vectors) -> Vectors:
        return np.full_like(rows, np.inf) if count == 1 else rows

    device = Device(fake.Script(), first_is_bad)
    items = items_of([1], [2])
    attempt = device.attempt(items)
    assert device.sizes == [2, 1, 1]
    assert right(items, attempt) == [True, True]
    assert (attempt.nonfinite, attempt.again) == (2, True)


def test_a_row_that_was_alone_is_tried_once_more_too() -> None:
    device = Device(fake.Script(nan_ids=frozenset({13})))
    attempt = device.attempt(items_of([13]))
    assert (device.sizes, attempt.nonfinite) == ([1, 1], 1)


def test_nothing_is_tried_again_for_a_call_that_has_left() -> None:
    device = Device(fake.Script(nan_ids=frozenset({13})))
    items = items_of([12], [13])
    items[1].ticket.gone = True
    attempt = device.attempt(items)
    assert device.sizes == [2]
    assert attempt.outcomes[items[1]] is None


def test_a_second_try_that_fails_is_that_rows_error() -> None:
    def fails_later(count: int, rows: Vectors) -> Vectors:
        if count > 1:
            raise RuntimeError("the device")
        rows[1] = np.nan
        return rows

    device = Device(fake.Script(), fails_later)
    items = items_of([12], [13])
    attempt = device.attempt(items)
    assert right(items, attempt) == [True, False]
    assert isinstance(attempt.outcomes[items[1]], BackendFailed)


# no room


def test_a_batch_without_room_is_run_in_halves_until_they_fit() -> None:
    device = Device(fake.Script(most_tokens=20))
    items = items_of(*([n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8, n + 9] for n in range(8)))
    attempt = device.attempt(items)
    assert device.sizes == [8, 4, 2, 2, 4, 2, 2]
    assert right(items, attempt) == [True] * 8
    assert attempt.no_room == 40  # the smallest batch that failed
    assert device.script.trims == 3


def test_a_row_alone_without_room_fails_alone_after_one_more_try() -> None:
    device = Device(fake.Script(most_tokens=4))
    items = items_of([1], [2], [3, 4], list(range(5, 15)))
    attempt = device.attempt(items)
    assert device.sizes == [4, 2, 2, 1, 1, 1]
    assert right(items, attempt) == [True, True, True, False]
    assert isinstance(attempt.outcomes[items[3]], OutOfMemory)


def test_a_single_row_without_room_says_nothing_of_the_budget() -> None:
    device = Device(fake.Script(once=[OutOfMemory("no room")]))
    items = items_of([1, 2, 3])
    attempt = device.attempt(items)
    assert right(items, attempt) == [True]
    assert (attempt.no_room, device.script.trims) == (None, 1)


# other failures


def test_a_batch_that_fails_is_run_again_row_by_row() -> None:
    device = Device(fake.Script(failure=lambda tokens: RuntimeError("secret") if 13 in tokens.ids else None))
    items = items_of([12], [13], [14])
    attempt = device.attempt(items)
    assert device.sizes == [3, 1, 1, 1]
    assert right(items, attempt) == [True, False, True]
    assert str(attempt.outcomes[items[1]]) == "The model failed on this input."
    assert attempt.nonfinite == 0


def test_rows_that_are_run_again_get_their_own_second_try() -> None:
    failing = [RuntimeError("once")]
    device = Device(fake.Script(once=list(failing), nan_ids=frozenset({13})))
    items = items_of([12], [13])
    attempt = device.attempt(items)
    assert device.sizes == [2, 1, 1, 1]
    assert right(items, attempt) == [True, False]
    assert attempt.nonfinite == 1
