"""The probe of a batch's budget: the least that is about as fast as any, found on full batches, remembered for the next start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import small
from vecgate.backends import fake
from vecgate.core import BackendCard, Call, Checkpoint, Status, Tokens
from vecgate.engine import probe, remembered
from vecgate.engine.model import Model
from vecgate.engine.probe import ROUNDS, Probe
from vecgate.engine.waiting import Lane, Limits, Ticket

CARD = BackendCard("torch", "cpu", "float32", 8, None, 2048, 1, tries_budgets=True)


def tried(rate: Callable[[int, int], float], most: int = 2048) -> int:
    """What a probe finds where a batch of this budget has so many tokens a second in this round of turns."""
    one, found, turn = Probe(most), None, 0
    while found is None:
        budget = one.budget
        found = one.learn(budget, budget / rate(budget, turn // len(one.budgets)))
        turn += 1
    assert turn == len(one.budgets) * (ROUNDS + 1)
    return found


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ({256: 100.0, 512: 100.0, 1024: 100.0, 2048: 100.0}, 256),
        ({256: 50.0, 512: 80.0, 1024: 98.0, 2048: 100.0}, 1024),
        ({256: 50.0, 512: 60.0, 1024: 96.0, 2048: 100.0}, 2048),
        ({256: 50.0, 512: 100.0, 1024: 70.0, 2048: 60.0}, 512),
    ],
)
def test_the_least_that_is_about_as_fast_as_any(rates: dict[int, float], found: int) -> None:
    assert tried(lambda budget, _: rates[budget]) == found


def test_first_uses_and_single_slow_batches_decide_nothing() -> None:
    def rate(budget: int, turn: int) -> float:
        if turn == 0:
            return 1.0 if budget == 1024 else 1000.0
        return 5.0 if turn == 3 else {256: 10.0, 512: 10.0}.get(budget, 100.0)

    assert tried(rate) == 1024


def test_no_budget_is_tried_twice_or_below_what_pays() -> None:
    assert Probe(2048).budgets == [256, 512, 1024, 2048]
    assert Probe(16384).budgets == [2048, 4096, 8192, 16384]
    assert Probe(400).budgets == [256, 400]
    assert Probe(100).budgets == [100]


def test_another_shape_device_or_machine_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 2}
    known = probe.key_of(config, CARD)
    assert probe.key_of(dict(reversed(config.items())), CARD) == known
    others = [
        probe.key_of(config | {"hidden_size": 16}, CARD),
        probe.key_of(config, replace(CARD, device="cuda:0 H")),
        probe.key_of(config, replace(CARD, dtype="bfloat16")),
        probe.key_of(config, replace(CARD, backend="mlx")),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 17)
        others.append(probe.key_of(config, CARD))
    monkeypatch.setattr(probe, "ENOUGH", 0.9)
    others.append(probe.key_of(config, CARD))
    assert len({known, *others}) == 7


def test_it_is_remembered_beside_others_and_in_vain_where_nothing_can_be(tmp_path: Path) -> None:
    probe.remember("a", 512, tmp_path / "deep")
    probe.remember("b", 1024, tmp_path / "deep")
    assert [probe.recall(key, tmp_path / "deep") for key in "abc"] == [512, 1024, None]
    (tmp_path / "file").write_text("")
    for nowhere in (None, tmp_path / "file"):
        probe.remember("a", 512, nowhere)
        assert probe.recall("a", nowhere) is None
    for odd in ('{"a": "512"}', '{"a": -1}', "[1]", "{"):
        (tmp_path / probe.MEMORY).write_text(odd)
        assert probe.recall("a", tmp_path) is None


def ids(length: int) -> Tokens:
    return Tokens(np.zeros(length, np.int32), original=length)


def with_lane(use: Callable[[Lane], None], rows: int) -> None:
    """A lane with a probe, before which so many rows of 64 tokens wait."""

    async def run() -> None:
        lane = Lane("m", fake.Fake.__new__(fake.Fake), Limits(2048, 128), Probe(2048))
        lane.add(Ticket([ids(64)] * rows))
        use(lane)

    asyncio.run(run())


def test_budgets_take_turns_while_enough_waits_and_only_then() -> None:
    def use(lane: Lane) -> None:
        sizes = []
        while lane.calls:
            items = lane.next()
            sizes.append(sum(map(len, items)))
            assert lane.tried(items, 1.0) is None
        full = [256, 512, 1024, 2048]
        assert sizes[:8] == full * 2
        assert len(sizes) == 9
        assert sizes[8] == 1984  # less than the largest budget waits, so it is the device's own, and the last

    with_lane(use, rows=(2 * 3840 + 2047) // 64)


def test_what_was_found_is_the_budget_from_then_on() -> None:
    def use(lane: Lane) -> None:
        found = None
        while found is None:
            items = lane.next()
            total = sum(map(len, items))
            found = lane.tried(items, total / (100.0 if total >= 512 else 50.0))
        assert found == lane.most_tokens == lane.limits.tokens == 512
        assert lane.probe is None
        assert {sum(map(len, lane.next())) for _ in range(5)} == {512}

    with_lane(use, rows=1000)


def test_a_device_without_room_ends_the_trial() -> None:
    def use(lane: Lane) -> None:
        lane.next()
        lane.shrink(1024)
        assert lane.probe is None
        assert sum(map(len, lane.next())) == lane.limits.tokens <= 512
        assert lane.most_tokens == 2048

    with_lane(use, rows=1000)


def tries(read: Checkpoint, **named: Any) -> fake.Fake:
    """The fake as a device whose speed counts."""
    made = fake.load(read, script=fake.Script(), **named)
    made.card = replace(made.card, tries_budgets=True)
    return made


def test_an_engine_finds_it_at_work_and_the_next_one_begins_with_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    async def served(texts: int, **options: Any) -> Status:
        read = small.checkpoint(tmp_path)
        model = Model(read, partial(tries, read), "fake", "asked for")
        with small.Served(model, cache=cache, **options) as engine:
            await engine.settled()
            await engine.embed(Call("test"), None, ["a cat dogs bark"] * texts)
            return engine.status()

    def told(status: Status) -> tuple[int | None, int | None]:
        return status.models[0].batch_tokens, status.models[0].batch_tokens_now

    assert told(asyncio.run(served(1))) == (2048, 2048)
    found, now = told(asyncio.run(served(12_000)))
    assert found == now
    assert found in Probe(2048).budgets
    assert list(remembered.read(cache, probe.MEMORY).values()) == [found]
    remembered.write(cache, probe.MEMORY, dict.fromkeys(remembered.read(cache, probe.MEMORY), 512))
    assert told(asyncio.run(served(1))) == (512, 512)
    assert told(asyncio.run(served(1, batch_tokens=700))) == (700, 700)
