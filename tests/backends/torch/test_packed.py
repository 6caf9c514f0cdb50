"""Rows side by side: where each token is, who sees whom, and what a head gets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vecgate.backends.torch.packed import Group, Layout, attend, narrow
from vecgate.core import Tokens

PAD = 1


def layout(*rows: list[int]) -> Layout:
    return Layout.of([Tokens(np.array(ids, np.int32)) for ids in rows])


def test_rows_of_one_length_follow_one_another() -> None:
    found = layout([5, 6, 7], [8], [9, 2, 3], [4, 4])
    assert found.groups == (Group(0, 1, 1), Group(1, 1, 2), Group(3, 2, 3))
    assert found.ids().tolist() == [8, 4, 4, 5, 6, 7, 9, 2, 3]
    assert found.indices().tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2]
    assert found.spread([10, 20, 30, 40]).tolist() == [10, 20, 20, 30, 30, 30, 40, 40, 40]


def test_rows_go_back_where_they_were() -> None:
    found = layout([5, 6, 7], [8], [9, 2, 3], [4, 4])
    firsts = found.pool(torch.from_numpy(found.ids())[:, None].float(), None, ("cls",))
    assert firsts[:, 0].tolist() == [8, 4, 5, 9]
    assert found.restored(firsts)[:, 0].tolist() == [5, 8, 9, 4]


def test_positions_as_roberta_counts_them() -> None:
    """The pad's id takes none, wherever it stands in a row; every row begins anew."""
    found = layout([0, PAD, 7, 2], [PAD], [0, 2], [PAD, 5])
    assert found.places(found.ids(), PAD).tolist() == [1, 2, 3, 1, 2, 2, 1, 3, 4]


def whole(query: Any, key: Any, value: Any, seen: Any) -> Any:
    """Softmax attention over all tokens at once, (heads, T, D), with the scores that `seen` forbids at -inf."""
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(0, 1)


@pytest.mark.parametrize(
    ("module_causal", "said", "window", "sees"),
    [
        (False, None, None, lambda i, j: i - j < 99),
        (True, None, None, lambda i, j: i >= j),
        (True, False, None, lambda i, j: i - j < 99),
        (False, None, 3, lambda i, j: abs(i - j) < 3),
        (True, None, 3, lambda i, j: (i >= j) & (i - j < 3)),
        (True, False, 3, lambda i, j: abs(i - j) <= 3),
    ],
)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_a_token_sees_its_own_row_alone(
    module_causal: bool, said: bool | None, window: int | None, sees: Any, key_heads: int
) -> None:
    found = layout([0] * 6, [0] * 9, [0] * 6, [0], [0] * 2)
    total = len(found.ids())
    torch.manual_seed(3)
    query, key, value = (torch.randn(1, heads, total, 8) for heads in (4, key_heads, key_heads))
    row, at = torch.from_numpy(found.spread(range(5))), torch.from_numpy(found.indices())
    seen = (row[:, None] == row) & sees(at[:, None], at)
    module = SimpleNamespace(is_causal=module_causal)
    got, _ = attend(module, query, key, value, None, layout=found, is_causal=said, sliding_window=window)
    key, value = (one.repeat_interleave(4 // key_heads, 1) for one in (key, value))
    torch.testing.assert_close(got[0], whole(query[0], key[0], value[0], seen), rtol=0, atol=2e-6)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_head_gets_one_state_a_row(wrapped: bool) -> None:
    found = layout([5, 6], [7], [1, 3])
    hidden = torch.from_numpy(found.ids()).float()[None, :, None].to(torch.bfloat16)

    class Encoder(torch.nn.Module):
        def forward(self, states: torch.Tensor, layout: Layout) -> Any:
            return SimpleNamespace(last_hidden_state=states) if wrapped else states

    encoder = Encoder()
    narrow(encoder, "mean")
    out = encoder(hidden, layout=found)
    states = out.last_hidden_state if wrapped else out
    assert (states.shape, states.dtype) == ((3, 1, 1), torch.bfloat16)
    assert states.flatten().tolist() == [7, 5.5, 2]
