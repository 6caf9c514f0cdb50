"""The fake: the contract, rows that mean something, and the script that tests of the engine rely on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.backends.contract import Contract, made_rows
from vecgate.backends import open_backend
from vecgate.backends.fake import Fake, Script, load
from vecgate.core import Batch, Checkpoint, Task, Tokens
from vecgate.errors import BackendFailed, ConfigError, OutOfMemory
from vecgate.traits import Backend


def checkpoint(task: Task = "embed", **config: int) -> Checkpoint:
    return Checkpoint(
        name="fake",
        folder=Path("nowhere"),
        family="bert",
        task=task,
        config=dict(config),
        weights=(),
        max_tokens=128,
        pad_id=0,
        stored_dtype="float32",
        weight_bytes=1000,
    )


def tokens(*ids: int, second: int | None = None) -> Tokens:
    return Tokens(np.array(ids, np.int32), second=second)


class TestContract(Contract):
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        opened = open_backend("fake", checkpoint(), pad_lengths=(16, 64, 128))
        yield opened
        opened.close()

    @pytest.fixture
    def rows(self) -> tuple[Tokens, ...]:
        return made_rows((2, 3, 9, 17, 17, 40, 90, 128), 30_000)


class TestContractOfAReranker(Contract):
    task: Task = "rerank"

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        opened = open_backend("fake", checkpoint("rerank"))
        yield opened
        opened.close()

    @pytest.fixture
    def rows(self) -> tuple[Tokens, ...]:
        """Rows 1 to 7 share one more id with their document each."""
        query = range(10, 17)
        shared = [tokens(2, *query, 3, *query[:n], *range(20, 27 - n), 3, second=9) for n in range(6)]
        longest = tokens(2, *query, 3, *query, *range(200, 311), 3, second=9)
        return tokens(2, 3, 3, second=2), *shared, longest


def test_the_width_is_told_or_read_or_eight() -> None:
    assert load(checkpoint()).card.dimensions == 8
    assert load(checkpoint(hidden_size=384)).card.dimensions == 384
    assert load(checkpoint(hidden_size=384), dimensions=5).card.dimensions == 5
    assert load(checkpoint("rerank", hidden_size=384), dimensions=5).card.dimensions == 1


def test_rows_are_the_same_in_every_process() -> None:
    row = load(checkpoint()).forward(Batch((tokens(101, 7592, 102),)))[0]
    np.testing.assert_allclose(row[:3], RECORDED, rtol=0, atol=1e-7)


RECORDED = (-0.40693432, -0.40453383, 0.057079)


def test_shared_ids_mean_a_higher_cosine_and_order_matters() -> None:
    fake = load(checkpoint(), dimensions=64)
    one, near, far, turned = fake.forward(
        Batch((tokens(1, 2, 3, 4), tokens(1, 2, 3, 9), tokens(1, 7, 8, 9), tokens(4, 3, 2, 1)))
    )
    cosine = [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for other in (near, far)]
    assert cosine[0] > cosine[1]
    assert np.abs(one - turned).max() > 1e-3


def test_more_shared_ids_mean_a_higher_logit_whatever_the_length() -> None:
    query = (2, 10, 11, 12, 13, 3)
    documents = [(90, 91, 3), (10, 3), (10, 11, *range(50, 90), 3), (10, 11, 12, 3), (13, 12, 11, 10, 3)]
    rows = tuple(tokens(*query, *document, second=len(query)) for document in documents)
    logits = load(checkpoint("rerank")).forward(Batch(rows))[:, 0]
    assert list(np.argsort(logits)) == [0, 1, 2, 3, 4]


def test_a_held_forward_waits_for_the_event() -> None:
    script = Script(hold=threading.Event())
    fake, got = load(checkpoint(), script=script), []
    thread = threading.Thread(target=lambda: got.append(fake.forward(Batch((tokens(1, 2),)))))
    thread.start()
    assert script.entered.wait(10)
    assert (script.rows, got) == (0, [])
    assert script.hold is not None
    script.hold.set()
    thread.join(10)
    assert (script.rows, len(got)) == (1, 1)
    assert script.threads == [thread.ident]


def test_the_script_fails_the_rows_it_chooses() -> None:
    def failure(row: Tokens) -> Exception | None:
        return BackendFailed("bad row") if 66 in row.ids else None

    fake = load(checkpoint(), script=Script(failure=failure))
    with pytest.raises(BackendFailed, match="bad row"):
        fake.forward(Batch((tokens(1, 2), tokens(1, 66))))
    assert fake.forward(Batch((tokens(1, 2),))).shape == (1, 8)
    assert (fake.script.rows, len(fake.script.batches)) == (1, 2)


def test_a_fake_without_a_script_holds_no_batch() -> None:
    fake = load(checkpoint())
    fake.forward(Batch((tokens(1, 2),)))
    assert (fake.script.rows, fake.script.batches, fake.script.threads) == (1, [], [])


def test_once_fails_one_forward_each() -> None:
    fake = load(checkpoint(), script=Script(once=[OutOfMemory("full"), RuntimeError("odd")]))
    batch = Batch((tokens(1, 2),))
    with pytest.raises(OutOfMemory):
        fake.forward(batch)
    with pytest.raises(RuntimeError, match="odd"):
        fake.forward(batch)
    assert fake.forward(batch).shape == (1, 8)


def test_chosen_ids_give_rows_that_are_not_finite_or_have_no_norm() -> None:
    fake = load(checkpoint(), script=Script(nan_ids=frozenset({7}), zero_ids=frozenset({8})))
    good, bad, none = fake.forward(Batch((tokens(1, 2), tokens(1, 7), tokens(1, 8))))
    assert np.isfinite(good).all()
    assert np.isnan(bad).all()
    assert not none.any()


@pytest.mark.parametrize(("pad_lengths", "room"), [(None, 5), ((4, 8), 8)])
def test_too_many_computed_tokens_are_out_of_memory(pad_lengths: tuple[int, ...] | None, room: int) -> None:
    batch = Batch((tokens(1, 2), tokens(1, 2, 3)))
    fits = load(checkpoint(), script=Script(most_tokens=room), pad_lengths=pad_lengths)
    assert fits.forward(batch).shape == (2, 8)
    full = load(checkpoint(), script=Script(most_tokens=room - 1), pad_lengths=pad_lengths)
    with pytest.raises(OutOfMemory):
        full.forward(batch)


def test_trim_and_close_are_counted() -> None:
    fake: Fake = load(checkpoint())
    fake.trim()
    fake.close()
    assert (fake.script.trims, fake.script.closed) == (1, True)


def test_what_does_not_fit_the_share_of_the_memory_is_refused_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecgate.backends.fake.usable_bytes", lambda: 10_000)
    read = replace(checkpoint(), weight_bytes=2_000, max_tokens=12)  # whose longest row needs 24 bytes x 12 x 8 numbers
    with pytest.raises(ConfigError, match=r"2000 bytes .* and 2304 .* DEVICE_MEMORY_FRACTION allows, 4000"):
        load(read, memory_fraction=0.4)
    cut, whole = load(read, memory_fraction=0.5), load(read, memory_fraction=1.0, batch_tokens=20)
    assert (cut.card.batch_tokens, whole.card.batch_tokens) == (15, 20)
    assert cut.memory().limit_bytes == 5_000
    beside = load(read, memory_fraction=1.0, others=[replace(read, weight_bytes=4_000)])
    assert beside.card.batch_tokens == 20
    with pytest.raises(ConfigError, match=r"longest input, the other models 6000: .* allows, 10000"):
        load(read, memory_fraction=1.0, others=[replace(read, weight_bytes=6_000)])
