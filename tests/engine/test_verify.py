"""What a model must show on its device before it is ready: each check can fail, and only some keep it from serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import small
from vecgate.backends import fake
from vecgate.core import Batch, Check, Checkpoint, Status, Task, Vectors, Verification
from vecgate.engine import golden, verify
from vecgate.engine.golden import Record
from vecgate.engine.local import LocalEngine
from vecgate.engine.model import Model

Change = Callable[[Vectors, Batch], Vectors]


class Odd(fake.Fake):
    """A device whose rows are changed after they are right."""

    change: Change

    def forward(self, batch: Batch) -> Vectors:
        return self.change(super().forward(batch), batch)


def odd(change: Change, task: Task = "embed") -> Callable[[], Odd]:
    def load() -> Odd:
        card = replace(fake.load(MADE[task]).card, backend="odd")  # the fake itself is no model's witness
        made = Odd(card, fake.Script(), 10**9, rerank=task == "rerank", recorded=False)
        made.change = change
        return made

    return load


MADE: dict[Task, Checkpoint] = {}


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path) -> None:
    MADE.update(
        {"embed": small.checkpoint(tmp_path / "small"), "rerank": small.checkpoint(tmp_path / "judge", "rerank")}
    )


def started(model: Model, form: verify.Form = "quick") -> Status:
    """Once it is ready or has failed."""

    async def settle() -> Status:
        engine = LocalEngine([model], verify=form)
        engine.start()
        try:
            await engine.settled()
            return engine.status()
        finally:
            engine.close()

    return asyncio.run(settle())


def shown(status: Status) -> Verification:
    found = status.models[0].verification
    assert found is not None
    return found


def model(change: Change, task: Task = "embed") -> Model:
    return Model(MADE[task], odd(change, task), "fake")


def right(rows: Vectors, batch: Batch) -> Vectors:
    return rows


def leaning(share: float) -> Change:
    """Each row takes so much of the one before it."""

    def lean(rows: Vectors, batch: Batch) -> Vectors:
        return rows + np.float32(share) * np.roll(rows, 1, axis=0) if len(rows) > 1 else rows

    return lean


def by_place(rows: Vectors, batch: Batch) -> Vectors:
    """Right alone and at the beginning of a batch, which is where the texts that are tried alone stand."""
    turned = rows.copy()
    turned[4:] = turned[4:, ::-1]
    return turned


def nan_in_batches(rows: Vectors, batch: Batch) -> Vectors:
    return rows * np.float32(np.nan if len(rows) > 1 else 1)


@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_a_model_that_is_right_is_ready_and_says_when_it_was_verified(task: Task) -> None:
    status = started(model(right, task))
    found = shown(status)
    assert (status.state, found.form, found.verdict) == ("ready", "quick", "passed")
    assert found.at > 1.7e9
    assert [one.name for one in found.checks] == ["finite", "batch", "permutation", "golden"]
    assert found.checks[-1].verdict == "skipped"


@pytest.mark.parametrize(
    ("change", "name"),
    [(leaning(0.5), "batch"), (by_place, "permutation"), (nan_in_batches, "finite")],
    ids=["neighbours", "place", "not finite"],
)
def test_rows_that_depend_on_their_neighbours_keep_it_from_serving(change: Change, name: str) -> None:
    status = started(model(change))
    assert status.state == "failed"
    assert f"the check {name!r} failed" in str(status.error)
    assert "VECGATE_VERIFY=off" in str(status.error)
    assert shown(status).verdict == "failed"


def test_scores_that_depend_on_their_neighbours_keep_a_reranker_from_serving() -> None:
    status = started(model(leaning(1.0), "rerank"))
    assert (status.state, shown(status).verdict) == ("failed", "failed")


def test_what_moves_less_is_shown_as_measured_and_served(caplog: pytest.LogCaptureFixture) -> None:
    status = started(model(leaning(0.005)))
    (batch,) = (one for one in shown(status).checks if one.name == "batch")
    assert (status.state, shown(status).verdict, batch.verdict) == ("ready", "deviates", "deviates")
    assert 0.999 <= (batch.cosine or 0) < 1
    assert (batch.difference or 0) > 5e-6
    assert any("'batch' deviates" in line for line in caplog.messages)


def test_off_asks_for_nothing() -> None:
    status = started(model(leaning(0.5)), "off")
    assert (status.state, status.models[0].verification) == ("ready", None)


def test_full_looks_at_everything_the_model_can_show_by_itself() -> None:
    found = shown(started(model(right), "full"))
    assert [one.name for one in found.checks[4:]] == [look.__name__ for look in verify.THOROUGH]
    assert {one.name: one.verdict for one in found.checks if one.verdict != "passed"} == {
        "golden": "skipped",
        "layout": "skipped",  # 12 tokens at most
    }


def nan_of_odd_texts(rows: Vectors, batch: Batch) -> Vectors:
    """As 16 bits that overflow: one known word again and again, in a row alone."""
    the = len(small.SPECIALS) + small.WORDS.index("the")
    alike = len(batch.rows) == 1 and {*batch.rows[0].ids[1:-1].tolist()} == {the}
    return rows * np.float32(np.nan if alike else 1)


def test_rows_that_are_not_finite_keep_it_from_serving_wherever_full_finds_them() -> None:
    assert started(model(nan_of_odd_texts)).state == "ready"
    status = started(model(nan_of_odd_texts), "full")
    assert status.state == "failed"
    assert "the check 'overflow' failed" in str(status.error)


# golden rows


def record(change: float = 0.0) -> Record:
    """Of the model as it is, or of one whose rows are this much off."""
    asked = verify.asked_of("embed")[:2]
    made = Model(MADE["embed"], partial(fake.load, MADE["embed"]), "fake")
    made.load()
    rows = verify.unit(verify.plain(made, [text for _, text in asked])).astype(np.float32)
    return Record("small", "embed", "somebody", "float32", (), (), tuple(asked), rows + np.float32(change) * rows[::-1])


def test_golden_rows_of_known_weights_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    known = record()
    monkeypatch.setattr(golden, "stored", lambda: (known,))
    (_, _, _, found) = shown(started(model(right))).checks
    assert (found.name, found.verdict, found.note) == ("golden", "passed", "2 rows of somebody")
    assert (found.difference or 0) < 1e-6


def test_other_rows_than_the_golden_ones_keep_it_from_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    known = record(0.5)
    monkeypatch.setattr(golden, "stored", lambda: (known,))
    status = started(model(right))
    assert status.state == "failed"
    assert "the check 'golden' failed" in str(status.error)


def test_a_pooling_that_the_user_set_is_not_held_against_golden_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    known = record(0.5)
    monkeypatch.setattr(golden, "stored", lambda: (known,))
    made = model(right)
    made.replaced = ("VECGATE_POOLING",)
    status = started(made)
    assert status.state == "ready"
    assert "VECGATE_POOLING" in shown(status).checks[-1].note


# the thorough checks


def loaded(change: Change = right, **changes: Any) -> Model:
    made = Model(replace(MADE["embed"], **changes), odd(change), "fake")
    made.load()
    return made


def beside_long(rows: Vectors, batch: Batch) -> Vectors:
    """A short row turns round where a row of more than 20 tokens stands beside it."""
    return rows[:, ::-1] if len(rows) > 1 and max(map(len, batch.rows)) > 20 else rows


def doubles(rows: Vectors, batch: Batch) -> Vectors:
    turned = rows.copy()
    turned[2:3] = turned[2:3, ::-1]
    return turned


def alike(rows: Vectors, batch: Batch) -> Vectors:
    return np.ones_like(rows)


def empty_breaks(rows: Vectors, batch: Batch) -> Vectors:
    short = np.array([[np.nan if len(row) == 2 else 1.0] for row in batch.rows], np.float32)
    return rows * short


@pytest.mark.parametrize(
    ("look", "change"),
    [
        (verify.layout, beside_long),
        (verify.duplicates, doubles),
        (verify.overflow, empty_breaks),
        (verify.distinct, alike),
        (verify.longest, lambda rows, batch: rows * np.float32(np.nan)),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_each_check_passes_what_is_right_and_fails_what_is_not(look: Callable[[Model], Check], change: Change) -> None:
    made = loaded(max_tokens=64)
    assert look(made).verdict == "passed"
    made.backend.change = change  # type: ignore[union-attr]
    assert look(made).verdict == "failed"


def test_a_check_names_what_it_measured() -> None:
    made = loaded(leaning(0.5))
    told = verify.said(verify.duplicates(made))
    assert told.startswith("the check 'duplicates' failed, cosine 0.")
    assert told.endswith("one text three times among others")


def test_the_longest_row_is_cut_down_to_what_takes_seconds_and_says_so() -> None:
    made = loaded(max_tokens=4096)
    made.tokens_per_s = 100.0
    assert verify.longest(made).note == "1024 tokens of 4096; more would take long here"
    made.tokens_per_s = 1e6
    assert verify.longest(made).note == "4096 tokens"


def test_rows_pooled_at_their_end_must_end_in_a_special_token() -> None:
    assert verify.specials(loaded(pooling=("last",))).verdict == "passed"
    bare = loaded(pooling=("last",))
    bare.tokenizer._single = replace(bare.tokenizer._single, tail=())
    found = verify.specials(bare)
    assert (found.verdict, "EOS" in found.note) == ("failed", True)


def test_special_tokens_that_the_settings_name_must_stand_around_a_text() -> None:
    made = loaded()
    (made.checkpoint.folder / "tokenizer_config.json").write_text(
        '{"sep_token": "[SEP]", "cls_token": {"content": "[CLS]"}}'
    )
    assert verify.specials(made).verdict == "passed"
    made.tokenizer._single = replace(made.tokenizer._single, tail=())
    assert "sep_token '[SEP]'" in verify.specials(made).note


def test_a_prompt_stands_before_the_text_as_if_it_were_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = loaded()
    assert verify.prompts(made).verdict == "passed"
    encode = made.tokenizer.encode
    monkeypatch.setattr(type(made.tokenizer), "encode", lambda own, texts, prompt, *more: encode(texts, "", *more))
    assert verify.prompts(made).verdict == "failed"
