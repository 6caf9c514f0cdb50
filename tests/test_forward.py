from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import small
from vecgate import config, forward
from vecgate.core import Tokens
from vecgate.engine import checkpoint
from vecgate.engine.waiting import Limits
from vecgate.forward import Cost, batches


def row(length: int) -> Tokens:
    return Tokens(np.zeros(length, np.int32))


@given(
    st.lists(st.integers(1, 300), max_size=80),
    st.integers(1, 1000),
    st.integers(1, 20),
    st.sampled_from([None, (16, 64, 256)]),
)
def test_every_row_is_in_one_batch_within_the_limits(
    lengths: list[int], tokens: int, rows: int, pad_lengths: tuple[int, ...] | None
) -> None:
    limits = Limits(tokens, rows, pad_lengths)
    made = list(batches([row(length) for length in lengths], limits))
    assert [len(one) for batch in made for one in batch.rows] == sorted(lengths)
    for batch in made:
        found = [len(one) for one in batch.rows]
        assert 1 <= len(found) <= rows
        assert len(found) == 1 or limits.computed(max(found), sum(found), len(found)) <= tokens


def said(folder: Path, *lines: Any, **names: str) -> tuple[int, list[Any]]:
    given_ = {
        "BACKEND": "fake",
        "MODEL_NAME": str(folder / "small"),
        "VECGATE_CACHE_DIR": str(folder / "cache"),
        **names,
    }
    first = msgspec.json.encode(config.load({}, given_, folder), enc_hook=str)
    out = BytesIO()
    status = forward.main(BytesIO(b"\n".join([first, *map(msgspec.json.encode, lines)])), out)
    return status, [msgspec.json.decode(line) for line in out.getvalue().splitlines()]


def test_what_is_loaded_is_told_then_each_line_is_run(tmp_path: Path) -> None:
    small.folder(tmp_path / "small")
    status, (loaded, first, second) = said(
        tmp_path, [["paris"]], [["paris is"], ["a", "the"]], VECGATE_BATCH_TOKENS="64"
    )
    assert status == 0
    assert (loaded["model"], loaded["backend"], loaded["batch_tokens"]) == ("small", "fake", 64)
    assert loaded["flops_a_token"] is None  # its weights are none
    assert [(one["texts"], one["tokens"]) for one in (first, second)] == [(1, 3), (3, 10)]
    assert 0 < second["p50_s"] <= second["forward_s"]


def test_no_model_or_only_a_reranker_is_one_sentence(tmp_path: Path) -> None:
    assert said(tmp_path)[0] == 1
    small.folder(tmp_path / "judge", "rerank")
    status, (error,) = said(tmp_path, MODEL_NAME=str(tmp_path / "judge"))
    assert (status, error) == (1, {"error": "--raw needs a model that embeds: name one with --model."})


def test_the_cost_of_a_token_is_that_of_the_layers_matrices(minilm: Path) -> None:
    found = Cost.of(checkpoint.read(minilm))
    assert found is not None
    assert found.flops_a_token == 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert found.flops(row(100)) == 100 * (found.flops_a_token + 4 * 6 * 384 * 100)


def test_attention_within_a_window_costs_no_more_than_it() -> None:
    cost = Cost(0.0, 1, 1, 8, causal=False)
    assert cost.flops(row(100)) == 100 * 4 * 8
    assert Cost(0.0, 1, 1, None, causal=True).flops(row(100)) == pytest.approx(100 * 2 * 100)
