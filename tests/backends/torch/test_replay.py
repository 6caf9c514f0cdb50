"""Recorded forwards: bit for bit the model's, without its Python, and never a value of another row."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from tests.backends.contract import made_rows
from vecgate.backends.torch import load, replay
from vecgate.backends.torch.replay import LONGEST, Compute, Replays
from vecgate.core import Batch
from vecgate.engine.checkpoint import read

WIDTH = 4


class Toy:
    """What models are made of: a table, a product, a list of tensors, several results of one call, a change in place."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.table, self.weight = torch.randn(90, WIDTH), torch.randn(2 * WIDTH, WIDTH)
        self.calls = 0

    def __call__(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = torch.nn.functional.embedding(ids, self.table) + places[..., None] / 7
        left, right = (hidden @ self.weight.T).chunk(2, dim=-1)
        turned = torch.cat([-right, torch.ones_like(left), left], dim=-1)
        turned.mul_(2.0).add_(1)
        return torch.nn.functional.scaled_dot_product_attention(turned, turned, turned, scale=0.3)[0]


def row(length: int, seed: int) -> list[torch.Tensor]:
    ids = np.random.default_rng(seed).integers(0, 90, (1, length))
    return [torch.from_numpy(ids), torch.arange(length)[None]]


def computed(compute: Compute, rows: Sequence[Sequence[torch.Tensor]]) -> Replays:
    """Each row through the recordings, the same as without them."""
    replays = Replays()
    with torch.inference_mode():
        for one in rows:
            assert torch.equal(replays(compute, one), compute(*one))
    return replays


def test_from_the_fourth_row_of_a_length_on_the_model_is_not_called() -> None:
    toy = Toy()
    replays = computed(toy, [row(9, seed) for seed in range(3)])
    with torch.inference_mode():
        wanted = [toy(*row(9, seed)) for seed in range(20)]
        before = toy.calls
        got = [replays(toy, row(9, seed)) for seed in range(20)]
    assert toy.calls == before
    assert all(map(torch.equal, got, wanted))


def test_each_length_has_its_own() -> None:
    toy = Toy()
    replays = computed(toy, [row(length, seed) for seed in range(3) for length in (3, 9, 1)])
    before = toy.calls
    for length in (9, 1, 3):
        replays(toy, row(length, 7))
    assert toy.calls == before
    replays(toy, row(4, 7))
    assert toy.calls == before + 1


def test_a_place_that_several_values_follow_in_holds_the_right_one() -> None:
    """Values that die together, one that nothing needs, some changed in place, and one that is needed to the end."""

    def compute(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        first, _ = ids + 1, ids * 7
        second = first * places
        third = second - first
        third.add_(second)
        third[:, 4:].mul_(5)
        low, high = torch.split(third * 2, [2, 7], dim=-1)
        return torch.cat([high * first[:, 2:], low, torch.stack([ids, third])[0]], dim=-1)[0]

    replays = computed(compute, [row(9, seed) for seed in range(9)])
    assert list(replays._proven) == [9]


def test_the_same_ids_again_prove_nothing() -> None:
    toy = Toy()
    replays = computed(toy, [row(9, 1)] * 10)
    before = toy.calls
    replays(toy, row(9, 2))
    replays(toy, row(9, 3))
    assert toy.calls == before + 1


def test_long_rows_are_the_model_s() -> None:
    toy = Toy()
    computed(toy, [row(LONGEST + 1, seed) for seed in range(9)])
    assert toy.calls == 2 * 9


def unseen(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A value that leaves torch and comes back."""
    return places[0] * torch.from_numpy(ids.numpy() + 0)[0]


def read_out(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return places[0] * int(ids[0, 0].item())


def compared(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return places[0] * 2 if torch.equal(ids, places) else places[0] * 3


def some(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return places[ids > 40]


def places_of(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return torch.where(ids[0] > 40)[0]


def baked(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """A recording of it fails where a row has more of these ids."""
    several = ids.numpy()[0] > 40
    return places[0].expand(2, -1)[:, : several.sum()].reshape(2 * several.sum(), 1)


@pytest.mark.parametrize("compute", [unseen, read_out, compared, some, places_of, baked])
def test_what_depends_on_more_than_the_length_is_never_recorded(
    compute: Compute, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "vecgate.torch"):
        computed(compute, [row(9, seed) for seed in range(9)])
    assert len([one for one in caplog.messages if one.startswith("Short rows are computed by the whole model")]) == 1


def test_what_can_t_be_recorded_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    """An operation that fails under a recorder alone, and a result that no operation made."""
    recorded = torch.utils._python_dispatch._get_current_dispatch_mode

    def picky(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        if recorded() is not None:
            raise NotImplementedError("not under a mode")
        return places[0] * 2

    for compute in (picky, lambda ids, places: ids):
        with caplog.at_level(logging.DEBUG, "vecgate.torch"):
            computed(compute, [row(9, seed) for seed in range(9)])
    assert len(caplog.messages) == 2


def test_recordings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_CALLS", 1)
    toy = Toy()
    replays = computed(toy, [row(length, seed) for length in (3, 9) for seed in range(4)])
    before = toy.calls
    replays(toy, row(3, 9))
    assert toy.calls == before
    replays(toy, row(9, 9))
    assert toy.calls == before + 1


def test_a_forward_that_is_recorded_keeps_no_value_longer() -> None:
    alive: list[int] = []
    made: list[weakref.ref[torch.Tensor]] = []

    def compute(ids: torch.Tensor) -> torch.Tensor:
        made.clear()
        hidden = ids + 0
        for _ in range(20):
            hidden = hidden * 2 % 7
            made.append(weakref.ref(hidden))
            alive.append(sum(one() is not None for one in made))
        return hidden

    computed(compute, [row(9, seed)[:1] for seed in range(3)])
    assert max(alive) == 1


def test_no_weight_and_no_value_is_held_once_cleared() -> None:
    toy = Toy()
    replays = computed(toy, [row(9, seed) for seed in range(5)])
    held = weakref.ref(toy.weight)
    del toy
    gc.collect()
    assert held() is not None
    replays.clear()
    gc.collect()
    assert held() is None


def test_a_recording_keeps_no_row_s_values() -> None:
    counted = count()
    made: list[weakref.ref[torch.Tensor]] = []

    def compute(ids: torch.Tensor) -> torch.Tensor:
        next(counted)
        made.append(weakref.ref(hidden := ids * 2))
        return hidden + 1

    replays = computed(compute, [row(9, seed)[:1] for seed in range(4)])
    gc.collect()
    assert next(counted) == 3 + 4  # both ways: three, then only what the test compares with
    assert [one() for one in made] == [None] * len(made)
    assert torch.equal(replays(compute, [torch.ones(1, 9)]), torch.full((1, 9), 3.0))


FAMILIES = "bert xlmr modernbert nomic_bert distilbert qwen3 gemma3 llama bge bert-reranker instructor".split()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_s_rows_are_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read(tiny.build(kind, tmp_path / kind))
    backend = load(checkpoint, device="cpu")
    [first] = made_rows((9,), checkpoint.config["vocab_size"], task=checkpoint.task)
    orders = [np.random.default_rng(seed).permutation(first.ids) for seed in range(6)]
    batches = [
        Batch((replace(first, ids=ids, prompt=seed % 3, second=first.second and 3 + seed % 4),))
        for seed, ids in enumerate(orders)
    ]
    for batch in batches[:3]:
        backend.forward(batch)
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_model", lambda **_: pytest.fail("The model was called."))
        recorded = [backend.forward(batch) for batch in batches]
    monkeypatch.setattr(Replays, "__call__", lambda self, compute, inputs: compute(*inputs))
    assert all(np.array_equal(backend.forward(batch), rows) for batch, rows in zip(batches, recorded, strict=True))
    assert len({rows.tobytes() for rows in recorded}) == len(recorded)
