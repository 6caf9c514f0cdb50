"""What a model is computed in, and what is said of one that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tests import tiny
from vecgate.backends.torch import devices, families, load, room
from vecgate.core import Batch, Checkpoint, Tokens
from vecgate.engine.checkpoint import read
from vecgate.errors import ConfigError, OutOfMemory

GIB = 2**30


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(tiny.build("bert", tmp_path_factory.mktemp("built") / "bert"))


@pytest.fixture(scope="module")
def modernbert(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read(tiny.build("modernbert", tmp_path_factory.mktemp("built") / "modernbert"))


# the type


def device(kind: str, *, bfloat16: bool = True) -> devices.Device:
    return replace(devices.cpu(0.8), place=torch.device(kind), label=kind, bfloat16=bfloat16)


@pytest.mark.parametrize(
    ("asked", "family", "stored", "kind", "bfloat16", "expected"),
    [
        ("auto", "bert", "float16", "cpu", True, "float32"),
        ("auto", "bert", "bfloat16", "cpu", True, "float32"),
        ("auto", "bert", "float32", "cuda", True, "float32"),
        ("auto", "bert", "float16", "cuda", True, "float16"),
        ("auto", "bert", "bfloat16", "mps", True, "bfloat16"),
        ("auto", "bert", "bfloat16", "cuda", False, "float32"),
        ("auto", "bert", "float64", "cuda", True, "float32"),
        ("auto", "qwen3", "float16", "cuda", True, "bfloat16"),
        ("auto", "gemma3_text", "float16", "mps", True, "bfloat16"),
        ("auto", "gemma3_text", "float16", "mps", False, "float32"),
        ("float16", "bert", "float32", "cuda", True, "float16"),
        ("bfloat16", "qwen3", "float32", "cpu", True, "bfloat16"),
        ("float32", "gemma3_text", "bfloat16", "cuda", True, "float32"),
    ],
)
def test_what_is_computed_in(
    bert: Checkpoint, asked: str, family: str, stored: str, kind: str, bfloat16: bool, expected: str
) -> None:
    checkpoint = replace(bert, family=family, stored_dtype=stored)
    chosen = room.dtype_for(asked, checkpoint, device(kind, bfloat16=bfloat16))
    assert room.name_of(chosen) == expected


@pytest.mark.parametrize(
    ("asked", "family", "bfloat16", "said"),
    [
        ("int8", "bert", True, "DTYPE='int8' is not known; use auto, float32, bfloat16, float16"),
        ("float16", "qwen3", True, "overflows in the family 'qwen3'; use bfloat16 or float32"),
        ("float16", "gemma3_text", True, "overflows in the family 'gemma3_text'"),
        ("bfloat16", "bert", False, "not supported by cuda; use float32 or float16"),
    ],
)
def test_a_type_that_can_not_be_had_is_one_sentence(
    bert: Checkpoint, asked: str, family: str, bfloat16: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        room.dtype_for(asked, replace(bert, family=family), device("cuda", bfloat16=bfloat16))


# the room


@pytest.fixture
def total(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The machine's memory, of which this process holds 1 GiB."""

    class Process:
        def memory_info(self) -> Any:
            return SimpleNamespace(rss=GIB)

    def set_total(count: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=count))

    monkeypatch.setattr(psutil, "Process", Process)
    return set_total


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(
    bert: Checkpoint, total: Callable[[int], None]
) -> None:
    total(8 * GIB)
    big = replace(bert, name="big", weight_bytes=3 * GIB, stored_dtype="bfloat16")
    with pytest.raises(ConfigError) as raised:
        load(big, device="cpu", memory_fraction=0.75)
    assert str(raised.value) == (
        "big needs 6.00 GiB for its weights in float32 and 0.00 GiB for its longest input, and this process holds "
        "1.00 GiB: more than DEVICE_MEMORY_FRACTION allows, 0.75 x 8.00 GiB on cpu."
    )
    total(10 * GIB)
    assert load(big, device="cpu", memory_fraction=0.75).card.batch_tokens == 2048


def test_the_type_computed_in_decides_the_room(bert: Checkpoint, total: Callable[[int], None]) -> None:
    total(8 * GIB)
    big = replace(bert, weight_bytes=3 * GIB, stored_dtype="bfloat16")
    assert load(big, device="cpu", dtype="bfloat16", memory_fraction=0.75).card.dtype == "bfloat16"


def test_a_batch_is_cut_to_what_fits(bert: Checkpoint, total: Callable[[int], None]) -> None:
    found = families.find(bert)
    need = {tokens: room.batch_bytes(found, tokens, 64, torch.float32) for tokens in (64, 512, 2048)}
    fixed = GIB + bert.weight_bytes
    for tokens in (2048, 512, 64):
        total(2 * (fixed + need[tokens]) + 2)
        assert load(bert, device="cpu", memory_fraction=0.5).card.batch_tokens == tokens
    total(2 * (fixed + need[64]) - 4)
    with pytest.raises(ConfigError, match="DEVICE_MEMORY_FRACTION"):
        load(bert, device="cpu", memory_fraction=0.5)


def test_what_is_loaded_later_gets_its_room(bert: Checkpoint, total: Callable[[int], None]) -> None:
    found = families.find(bert)
    fixed = GIB + bert.weight_bytes + room.batch_bytes(found, 512, 64, torch.float32)
    other = replace(bert, weight_bytes=GIB, stored_dtype="bfloat16")  # 2 GiB in float32
    total(2 * (fixed + 2 * GIB) + 2)
    assert load(bert, device="cpu", memory_fraction=0.5).card.batch_tokens == 2048
    assert load(bert, device="cpu", memory_fraction=0.5, others=[other]).card.batch_tokens == 512
    with pytest.raises(ConfigError, match=r"longest input, the other models 4\.00 GiB, and this process holds"):
        load(bert, device="cpu", memory_fraction=0.5, others=[other, other])


def test_only_rows_without_room_fail(
    bert: Checkpoint, total: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "LEAST_TOKENS", 8)
    total(2 * (GIB + bert.weight_bytes + room.batch_bytes(families.find(bert), 40, 40, torch.float32)))
    opened = load(bert, device="cpu", memory_fraction=0.5)
    assert "bert takes inputs of 64 tokens; there is room for 36" in caplog.text
    assert opened.forward(Batch((Tokens(np.full(36, 7, np.int32)),))).shape == (1, opened.card.dimensions)
    with pytest.raises(OutOfMemory, match="no room for a row of 37 tokens, only for 36"):
        opened.forward(Batch((Tokens(np.full(37, 7, np.int32)),)))
    monkeypatch.setattr(room, "LEAST_TOKENS", 48)
    with pytest.raises(ConfigError, match="for an input of 48 tokens"):
        load(bert, device="cpu", memory_fraction=0.5)


def test_the_limit_is_told(bert: Checkpoint, total: Callable[[int], None]) -> None:
    total(8 * GIB)
    memory = load(bert, device="cpu", memory_fraction=0.25).memory()
    assert (memory.active_bytes, memory.limit_bytes) == (GIB, 2 * GIB)


def test_a_cpu_keeps_a_full_batch_s_memory_and_a_little_more(bert: Checkpoint, total: Callable[[int], None]) -> None:
    total(8 * GIB)
    opened = load(bert, device="cpu")
    fullest = room.batch_bytes(families.find(bert), opened.card.batch_tokens, bert.max_tokens, torch.float32)
    assert opened.memory().enough_bytes == fullest + 32 * 2**20


def test_eager_attention_needs_room_for_its_scores(bert: Checkpoint) -> None:
    found = families.find(bert, packs=False)
    capped = families.find(bert, packs=False)
    capped.config.attn_logit_softcapping = 50.0
    assert (found.attention, capped.attention) == ("sdpa", "eager")
    more = room.batch_bytes(capped, 64, 512, torch.float32) - room.batch_bytes(found, 64, 512, torch.float32)
    assert more == 64 * 512 * found.config.num_attention_heads * 2 * 4


def test_packed_rows_need_no_room_for_masks_but_of_windows(bert: Checkpoint, modernbert: Checkpoint) -> None:
    def more(checkpoint: Checkpoint, packs: bool) -> int:
        """Bytes of the same batch, had it one row 1024 tokens longer."""
        found = families.find(checkpoint, packs)
        short, long = (room.batch_bytes(found, 4096, longest, torch.float32) for longest in (1024, 2048))
        return long - short

    assert more(bert, packs=True) == 0
    assert more(bert, packs=False) == more(modernbert, packs=True) == 4096 * 1024 * 4
