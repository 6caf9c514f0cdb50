"""take(): the policy, as properties over every queue."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecgate.core import Tokens
from vecgate.engine.waiting import Item, Limits, Ticket, padded, take

PADS = (8, 16, 32, 64, 128, 256, 512)
lengths = st.lists(st.integers(1, 600), min_size=1, max_size=60)
budgets = st.integers(1, 5000)
row_limits = st.integers(1, 40)
pads = st.sampled_from([None, PADS])


def queue(lengths: list[int], owners: list[int], batch_size: int | None = None) -> list[Item]:
    async def build() -> list[Item]:
        tickets = {owner: Ticket([], batch_size) for owner in set(owners)}
        return [
            Item(Tokens(np.zeros(length, np.int32)), tickets[owner], index)
            for index, (length, owner) in enumerate(zip(lengths, owners, strict=True))
        ]

    return asyncio.run(build())


def computed(items: list[Item], limits: Limits) -> int:
    sizes = [len(item) for item in items]
    return limits.computed(max(sizes), sum(sizes), len(sizes))


@given(lengths, budgets, row_limits, pads)
def test_never_over_budget_unless_alone(
    lengths: list[int], tokens: int, rows: int, pad_lengths: tuple[int, ...] | None
) -> None:
    window = queue(lengths, [0] * len(lengths))
    limits = Limits(tokens, rows, pad_lengths)
    chosen = [window[i] for i in take(window, limits)]
    assert len(chosen) <= rows
    assert len(chosen) == 1 or computed(chosen, limits) <= tokens


@given(lengths, budgets, row_limits, pads)
def test_the_oldest_row_is_always_in_and_no_row_twice(
    lengths: list[int], tokens: int, rows: int, pad_lengths: tuple[int, ...] | None
) -> None:
    chosen = take(queue(lengths, [0] * len(lengths)), Limits(tokens, rows, pad_lengths))
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)


@given(lengths, budgets, row_limits, pads)
def test_nothing_is_lost_and_nothing_starves(
    lengths: list[int], tokens: int, rows: int, pad_lengths: tuple[int, ...] | None
) -> None:
    waiting = queue(lengths, [0] * len(lengths))
    served: list[int] = []
    for _ in range(len(lengths)):
        if waiting:
            chosen = set(take(waiting, Limits(tokens, rows, pad_lengths)))
            served += [waiting[i].index for i in chosen]
            waiting = [item for i, item in enumerate(waiting) if i not in chosen]
    assert sorted(served) == list(range(len(lengths)))


@given(lengths, st.integers(1, 4), st.integers(1, 5), pads)
def test_a_call_never_has_more_rows_in_a_batch_than_its_batch_size(
    lengths: list[int], callers: int, batch_size: int, pad_lengths: tuple[int, ...] | None
) -> None:
    owners = [i % callers for i in range(len(lengths))]
    window = queue(lengths, owners, batch_size)
    chosen = take(window, Limits(100_000, 128, pad_lengths))
    assert max(Counter(owners[i] for i in chosen).values()) <= batch_size


@given(lengths, budgets, pads)
def test_rows_come_shortest_first(lengths: list[int], tokens: int, pad_lengths: tuple[int, ...] | None) -> None:
    chosen = take(queue(lengths, [0] * len(lengths)), Limits(tokens, 128, pad_lengths))
    assert [lengths[i] for i in chosen] == sorted(lengths[i] for i in chosen)


def test_neighbours_in_length_join_before_strangers() -> None:
    window = queue([100, 10, 98, 12, 99, 11], [0] * 6)
    assert sorted(take(window, Limits(300, 128, PADS))) == [0, 4]  # two rows padded to 128 each
    assert sorted(take(window, Limits(400, 128, PADS))) == [0, 2, 4]


def test_a_row_over_the_budget_runs_alone() -> None:
    assert take(queue([500, 8, 8], [0, 1, 2]), Limits(64, 128, PADS)) == [0]


def test_packed_rows_cost_their_own_length_only() -> None:
    window = queue([100, 10, 10, 10], [0] * 4)
    assert len(take(window, Limits(130, 128, None))) == 4
    assert len(take(window, Limits(130, 128, PADS))) == 1


@pytest.mark.parametrize(("length", "expected"), [(1, 8), (8, 8), (9, 16), (512, 512), (513, 513)])
def test_padded(length: int, expected: int) -> None:
    assert padded(length, PADS) == expected
