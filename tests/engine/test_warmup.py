"""The warm-up: which rows it tries, and what it learns."""

from __future__ import annotations

import logging

import pytest

from tests.engine.test_batcher import CHECKPOINT, row
from vecgate.backends import fake
from vecgate.core import Tokens
from vecgate.engine import warmup
from vecgate.engine.warmup import warm
from vecgate.errors import BackendFailed


def sample(length: int) -> list[Tokens]:
    return [row(*range(1, length + 1))]


def lengths(script: fake.Script) -> list[int]:
    return [len(batch.rows[0]) for batch in script.batches]


def test_the_usual_lengths_are_tried_and_told(caplog: pytest.LogCaptureFixture) -> None:
    script = fake.Script()
    with caplog.at_level(logging.INFO, "vecgate.engine"):
        rate = warm(fake.load(CHECKPOINT, script=script), sample, 3, 4096)
    assert lengths(script) == [8, 32, 128, 512]
    assert rate > 0
    assert caplog.messages == ["Warmed up with rows of 8, 32, 128, 512 tokens."]


@pytest.mark.parametrize(("least", "most", "expected"), [(3, 100, [8, 32, 100]), (12, 256, [12, 32, 128, 256])])
def test_no_row_is_longer_or_shorter_than_the_model_takes(least: int, most: int, expected: list[int]) -> None:
    script = fake.Script()
    warm(fake.load(CHECKPOINT, script=script), sample, least, most)
    assert lengths(script) == expected


def test_every_padded_length_up_to_the_longest_usual_one_is_tried() -> None:
    script = fake.Script()
    warm(fake.load(CHECKPOINT, script=script, pad_lengths=(16, 32, 64, 128, 256, 512, 1024)), sample, 3, 4096)
    assert lengths(script) == [8, 32, 128, 512, 64, 256]  # 8 is padded to 16


def test_a_slow_model_tries_the_usual_lengths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "SPARE_S", 0.0)
    script = fake.Script()
    warm(fake.load(CHECKPOINT, script=script, pad_lengths=(16, 64, 256, 512)), sample, 3, 4096)
    assert lengths(script) == [8, 32, 128, 512]


def test_rows_that_are_not_finite_are_no_model() -> None:
    backend = fake.load(CHECKPOINT, script=fake.Script(nan_ids=frozenset({100})))
    with pytest.raises(BackendFailed, match="row of 128 tokens is not finite"):
        warm(backend, sample, 3, 512)
