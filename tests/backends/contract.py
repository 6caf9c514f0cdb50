"""What is true of every backend, whatever the device: inherit Contract, give it the fixtures `backend` and `rows`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from vecgate.core import Batch, Task, Tokens, Vectors
from vecgate.errors import BackendFailed
from vecgate.traits import Backend

HEAD, TAIL = 2, 3
"""Ids that stand for [CLS] and [SEP] in made-up rows."""


def made_rows(lengths: Sequence[int], vocabulary: int, *, task: Task = "embed", seed: int = 7) -> tuple[Tokens, ...]:
    """Rows of random ids between two specials; for a reranker the second half is segment B."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = random.integers(5, vocabulary, length, dtype=np.int32)
        ids[0], ids[-1] = HEAD, TAIL
        second = (length + 1) // 2 if task == "rerank" else None
        rows.append(Tokens(ids, second=second, original=length))
    return tuple(rows)


def one_by_one(backend: Backend, rows: Sequence[Tokens]) -> Vectors:
    return np.concatenate([backend.forward(Batch((row,))) for row in rows])


class Contract:
    """tolerance: how far (max |difference|) a row may be from itself in another batch."""

    tolerance = 1e-6
    task: Task = "embed"

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        """A fresh backend; closing it twice must do no harm."""
        raise NotImplementedError  # each backend's tests give their own

    @pytest.fixture
    def rows(self) -> tuple[Tokens, ...]:
        """At least 8 different rows of mixed lengths; the first holds only specials, the last is the longest possible."""
        raise NotImplementedError  # each backend's tests give their own

    def test_rows_are_contiguous_float32_of_the_cards_width(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        for count in (1, 2, len(rows)):
            got = backend.forward(Batch(rows[:count]))
            assert got.shape == (count, backend.card.dimensions)
            assert got.dtype == np.float32
            assert got.flags.c_contiguous

    def test_the_width_is_one_for_a_reranker_only(self, backend: Backend) -> None:
        assert (backend.card.dimensions == 1) == (self.task == "rerank")

    def test_every_row_is_finite_and_rows_differ(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        got = backend.forward(Batch(rows))
        assert np.isfinite(got).all()
        apart = np.abs(got[:, None] - got[None]).max(-1)[~np.eye(len(rows), dtype=bool)]
        assert apart.min() > 10 * self.tolerance

    def test_a_row_is_the_same_alone_and_in_a_batch(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        got = backend.forward(Batch(rows))
        np.testing.assert_allclose(got, one_by_one(backend, rows), rtol=0, atol=self.tolerance)

    def test_layout_changes_no_row_and_order_is_kept(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        expected = backend.forward(Batch(rows))
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(rows))
            shuffled = backend.forward(Batch(tuple(rows[i] for i in order)))
            np.testing.assert_allclose(shuffled, expected[order], rtol=0, atol=self.tolerance)

    def test_the_same_row_twice_gives_the_same_twice(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        got = backend.forward(Batch((rows[1], rows[2], rows[1])))
        np.testing.assert_allclose(got[0], got[2], rtol=0, atol=self.tolerance)

    def test_only_specials_give_a_usable_row(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        got = backend.forward(Batch(rows[:1]))
        assert np.isfinite(got).all()
        assert self.task == "rerank" or np.abs(got).max() > 0

    def test_the_longest_input_works_alone_and_beside_the_shortest(
        self, backend: Backend, rows: tuple[Tokens, ...]
    ) -> None:
        pair = (rows[-1], rows[0])
        got = backend.forward(Batch(pair))
        np.testing.assert_allclose(got, one_by_one(backend, pair), rtol=0, atol=self.tolerance)

    def test_no_rows_give_no_rows(self, backend: Backend) -> None:
        assert backend.forward(Batch(())).shape == (0, backend.card.dimensions)

    def test_a_later_batch_leaves_earlier_rows_alone(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        first = backend.forward(Batch(rows[:2]))
        kept = first.copy()
        backend.forward(Batch(rows[2:4]))
        np.testing.assert_array_equal(first, kept)

    def test_a_row_does_not_hold_the_batch(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        """The result owns no more than itself, or a cached row would keep a batch's hidden states alive."""
        got = backend.forward(Batch(rows))
        owner = got if got.base is None else got.base
        size = getattr(owner, "untyped_storage", None)
        assert (size().nbytes() if size else owner.nbytes) == got.nbytes

    def test_pad_lengths_ascend_to_the_longest_row(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        lengths = backend.card.pad_lengths or (len(rows[-1]),)
        assert lengths == tuple(sorted(set(lengths)))
        assert lengths[-1] == len(rows[-1])

    def test_memory_is_told_and_trim_changes_no_row(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        before = backend.forward(Batch(rows[:3]))
        assert backend.memory().active_bytes > 0
        backend.trim()
        assert backend.memory().cache_bytes >= 0
        np.testing.assert_array_equal(backend.forward(Batch(rows[:3])), before)

    def test_a_closed_backend_says_so(self, backend: Backend, rows: tuple[Tokens, ...]) -> None:
        backend.close()
        with pytest.raises(BackendFailed, match="closed"):
            backend.forward(Batch(rows[:1]))
        backend.close()
