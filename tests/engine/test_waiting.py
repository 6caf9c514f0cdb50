"""take(): the policy, as properties over every queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecgate.core import Tokens
from vecgate.engine.probe import ROUNDS, Probe
from vecgate.engine.waiting import (
    FAR_SHARE,
    GUESS,
    OLDEST_SHARE,
    RECOVER_BATCHES,
    WINDOW_ROWS,
    Item,
    Lane,
    Limits,
    Ticket,
    padded,
    take,
)

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


def lane(limits: Limits, calls: Sequence[Sequence[int]]) -> Lane:
    """A queue that these calls (the lengths of their rows) came into, in their order."""
    backend: Any = None  # a queue never asks it
    made = Lane("m", backend, limits)
    for lengths in calls:
        join(made, lengths)
    return made


def join(lane: Lane, lengths: Sequence[int], batch_size: int | None = None) -> Ticket:
    async def build() -> Ticket:
        return Ticket([Tokens(np.zeros(length, np.int32)) for length in lengths], batch_size)

    ticket = asyncio.run(build())
    lane.add(ticket)
    return ticket


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


# the queue: who goes first, and that everybody goes

BUDGET = Limits(tokens=1000, rows=64)
LARGE = [100] * 50  # five batches
calls = st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=20), min_size=1, max_size=12)


def emptied(lane: Lane) -> list[list[Item]]:
    """All batches until nothing waits."""
    batches = []
    while lane.calls:
        batches.append(lane.next())
    return batches


@settings(max_examples=40)
@given(calls, st.integers(1, 1500), row_limits, pads)
def test_every_row_leaves_the_queue_once_and_no_batch_is_over_budget(
    lengths: list[list[int]], tokens: int, rows: int, pad_lengths: tuple[int, ...] | None
) -> None:
    limits = Limits(tokens, rows, pad_lengths)
    made = lane(limits, lengths)
    batches = emptied(made)
    assert all(len(batch) == 1 or computed(batch, limits) <= tokens for batch in batches)
    assert max(map(len, batches)) <= rows
    left = Counter(len(item) for batch in batches for item in batch)
    assert left == Counter(length for call in lengths for length in call)
    assert (made.rows, made.tokens, made.small_tokens, made.ranks) == (0, 0, 0, {})


@pytest.mark.parametrize("pad_lengths", [None, PADS])
def test_small_calls_are_in_the_next_batch_however_much_waits(pad_lengths: tuple[int, ...] | None) -> None:
    made = lane(Limits(4096, 64, pad_lengths), [[256] * (5 * WINDOW_ROWS), [200] * 300])
    made.next()
    small = [join(made, [length]) for length in (20, 120, 7)]
    batch = made.next()
    assert {item.ticket for item in batch} >= set(small)
    assert len(batch) > len(small)  # and what is left of it is not wasted


def test_a_query_with_every_batch_leaves_a_large_call_its_share_of_each() -> None:
    alone = len(emptied(lane(BUDGET, [[20] * 4000])))
    made = lane(BUDGET, [[20] * 4000])
    count = 0
    while len(made.calls) > 0:
        query = join(made, [10])
        assert query in {item.ticket for item in made.next()}
        count += 1
    assert 0.9 * alone / FAR_SHARE <= count <= 1.05 * alone / FAR_SHARE


@pytest.mark.parametrize("pad_lengths", [None, PADS])
@pytest.mark.parametrize(
    ("behind", "filled"), [([128] * 2, 1.0), ([128] * 7, 1.0), ([64] * 16, FAR_SHARE), ([64] * 80, FAR_SHARE)]
)
def test_only_calls_a_little_larger_fill_up_a_small_one_s_batch(
    behind: list[int], filled: float, pad_lengths: tuple[int, ...] | None
) -> None:
    budget = 1024
    made = lane(Limits(budget, 64, pad_lengths), [behind] * 8 + [[100]])
    batch = made.next()
    assert 100 in map(len, batch)
    assert filled * budget - 128 <= computed(batch, made.limits) <= filled * budget + 128


def test_a_row_of_more_than_the_share_joins_too() -> None:
    made = lane(Limits(512, 64), [[400] * 40, [20]])
    assert [len(item) for item in made.next()] == [20, 400]


def test_a_queue_learns_of_its_device_though_a_query_rides_in_every_batch() -> None:
    made = lane(Limits(2048, 64), [[100] * 2000])
    made.probe = Probe(2048)
    made.shrink(512)
    for _ in range(4 * RECOVER_BATCHES):
        join(made, [10])
        batch = made.next()
        made.measure(batch, 1.0)
        made.recover(batch)
    assert made.sure
    assert made.limits.tokens > 256


def test_budgets_are_tried_full_though_a_query_rides_in_every_batch() -> None:
    made = lane(Limits(2048, 64), [[100] * 2000])
    made.probe = Probe(2048)
    found = None
    for _ in range(4 * (1 + ROUNDS)):
        join(made, [10])
        batch = made.next()
        assert computed(batch, made.limits) > 0.5 * made.limits.tokens + 100 or made.limits.tokens < 300
        found = made.tried(batch, 1.0) or found
    assert found == 2048  # where every batch takes a second


def test_a_large_call_that_is_owed_a_batch_fills_it_after_one_of_small_calls() -> None:
    made = lane(BUDGET, [LARGE])
    large = next(iter(made.calls))
    made.owed = 3.0
    for _ in range(4):
        for _ in range(60):
            join(made, [10])
        assert large not in {item.ticket for item in made.next()}
        batch = made.next()
        assert sum(len(item) for item in batch if item.ticket is large) > 0.9 * BUDGET.tokens
        made.owed = 3.0


def test_large_calls_side_by_side_are_owed_nothing_for_long() -> None:
    """Rows of like length join, whosever they are, so that the oldest call gets a part of each batch only."""
    numbers = np.random.default_rng(4)
    made = lane(Limits(2048, 512), [numbers.integers(100, 256, 32).tolist() for _ in range(8)])
    for turn in range(60):
        query = join(made, [20]) if turn % 2 else None
        batch = made.next()
        assert query is None or (query in {item.ticket for item in batch} and sum(map(len, batch)) < 0.4 * 2048)
        assert made.owed < 2
        for _ in range(8 - sum(call.count > 1 for call in made.calls)):
            join(made, numbers.integers(100, 256, 32).tolist())


def test_a_large_call_ends_though_small_ones_never_stop_coming() -> None:
    made = lane(BUDGET, [LARGE])
    large = next(iter(made.calls))
    for _ in range(int(5 / OLDEST_SHARE) + 4):
        for _ in range(30):
            join(made, [100])  # three batches' worth for each batch
        made.next()
    assert large not in made.calls


def test_of_large_calls_the_smaller_goes_first_and_among_alike_the_older() -> None:
    made = lane(BUDGET, [[100] * 200, [100] * 20, [100] * 21])
    largest, older, newer = made.calls
    order = [item.ticket for batch in emptied(made) for item in batch]
    ends = [len(order) - order[::-1].index(ticket) for ticket in (older, newer, largest)]
    assert ends == sorted(ends)
    assert ends[0] <= 20 / (1 - OLDEST_SHARE) + 20


def test_the_last_of_many_small_calls_waits_for_those_before_it_only() -> None:
    made = lane(BUDGET, [[10]] * 640)
    order = [item.ticket for batch in emptied(made) for item in batch]
    assert order == list(dict.fromkeys(order))
    assert len(order) == 640


def test_a_call_shows_some_of_its_own_batches_only() -> None:
    made = lane(Limits(100_000, 64), [])
    join(made, [10] * 2000, batch_size=8)
    assert len(made.next()) == 8


# what a queue knows of its device


def measured(lengths: Sequence[Sequence[int]], tokens_per_s: float = 1000.0) -> Lane:
    made = lane(BUDGET, [[100] * 10])
    made.measure(made.next(), 1000 / tokens_per_s)
    for one in lengths:
        join(made, one)
    return made


def test_the_wait_is_what_is_here_over_the_rate() -> None:
    made = measured([[100] * 80, [100]])
    made.coming_tokens = 900
    assert made.wait_s == pytest.approx(9.0)
    assert made.ahead_s(10_000) == pytest.approx(9.0)


def test_a_small_call_waits_for_small_ones_only() -> None:
    assert measured([LARGE]).ahead_s(10) == 0.0
    assert measured([LARGE, [100]]).ahead_s(10) == pytest.approx(0.1 / (1 - OLDEST_SHARE))


def test_nobody_waits_in_an_empty_queue_whatever_it_asks() -> None:
    assert measured([]).ahead_s(10**9) == 0.0


def test_a_batch_of_one_short_row_says_nothing_of_the_wait() -> None:
    made = lane(BUDGET, [[10]])
    made.measure(made.next(), 1.0)
    join(made, LARGE)
    assert (made.tokens_per_s, made.wait_s) == (None, 0.0)
    made.tokens_per_s = 50.0
    made.measure([join(made, [10]).waiting[0]], 1.0)
    assert made.tokens_per_s == 50.0
    made.measure([join(made, [10]).waiting[0]], 0.1)
    assert made.tokens_per_s == 100.0
    assert made.wait_s == pytest.approx(made.tokens / 100.0 / GUESS)


def test_the_rate_follows_well_filled_batches() -> None:
    made = measured([[100] * 1000])
    for _ in range(40):
        made.measure(made.next(), 4.0)
    assert made.tokens_per_s == pytest.approx(250.0, rel=0.01)
    made.measure(made.next(), 0.5)
    assert made.tokens_per_s == pytest.approx(1125.0, rel=0.01)  # half-way up at once


def test_a_budget_without_room_is_halved_and_comes_back_slowly() -> None:
    made = lane(BUDGET, [[100] * 5000])
    made.shrink(computed=1000)
    assert made.limits.tokens == 500
    seen = []
    while made.limits.tokens < 1000:
        before = made.limits.tokens
        for _ in range(RECOVER_BATCHES):
            made.recover(made.next())
        assert before < made.limits.tokens <= before * 1.1
        seen.append(made.limits.tokens)
    assert seen[-1] == 1000
    assert len(seen) == 8


def test_batches_that_are_far_from_full_bring_no_budget_back() -> None:
    made = lane(BUDGET, [])
    made.shrink(computed=1000)
    for _ in range(3 * RECOVER_BATCHES):
        join(made, [100])
        made.recover(made.next())
    assert made.limits.tokens == 500


def test_a_budget_is_one_token_at_least_and_still_gives_a_row() -> None:
    made = lane(BUDGET, [[100] * 3])
    made.shrink(computed=1)
    assert made.limits.tokens == 1
    assert len(made.next()) == 1
