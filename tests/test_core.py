"""The nouns cross a process unchanged, and know no third party but numpy and msgspec."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from vecgate import core

CALL = core.Call("id-1", 12.5, "space")
TOKENS = core.Tokens(np.array([101, 7, 102], np.int32), second=2, prompt=1, original=9)
APPLIED = core.Applied("m", "query", (3, 4), (3, 9), 0.1, 0.2, 0.3, query_tokens=2, space="s")
CARD = core.ModelCard(
    name="m",
    aliases=("a",),
    task="embed",
    family="bert",
    state="ready",
    max_tokens=256,
    pooling=("mean",),
    normalize=True,
    prompts={"query": "q: "},
    default_prompt=None,
    created=1,
    weight_bytes=2,
)
NOUNS: list[Any] = [
    CALL,
    TOKENS,
    core.Batch((TOKENS, core.Tokens(np.array([1], np.int32)))),
    core.Dense(Path("2_Dense/model.safetensors"), "Tanh", True),
    core.PairTemplate("<s>", "Query: ", " Document: ", "</s>"),
    core.Checkpoint(
        name="m",
        folder=Path("/models/m"),
        family="bert",
        task="embed",
        config={"hidden_size": 8},
        weights=(Path("/models/m/model.safetensors"),),
        max_tokens=256,
        pad_id=0,
        stored_dtype="float32",
        weight_bytes=1,
        dense=(core.Dense(Path("d"), "Identity", False),),
        tail=(2,),
        template=core.PairTemplate("", "q", "d", ""),
        yes_id=3,
        prompts={"query": "q: "},
    ),
    core.BackendCard("torch", "cpu", "float32", 8, (8, 16), 2048, 1),
    core.Memory(1, 2, 3),
    APPLIED,
    core.Embeddings(np.arange(6, dtype=np.float32).reshape(2, 3), APPLIED),
    core.Ranking((1, 0), (0.9, 0.1), (0.95, 0.55), "similarity", APPLIED),
    core.Check("batch", "deviates", "3 texts", 0.9999, 1e-3),
    core.Verification("quick", "passed", 1.5, 0.25, (core.Check("finite", "passed"),)),
    core.VirtualName("m:query", "query", 4),
    core.Pieces((101,), ("[CLS]",), (0,), (0,), (True,)),
    CARD,
    core.Queue(1, 2, None),
    core.Status("ready", (CARD,), core.Queue(0, 0, 1.5), True, None, 3.0, core.Memory(1), None),
    core.BatchReport("m", 1, 3, 8, 0.1, (0.2,), nonfinite_rows=1),
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if dataclasses.is_dataclass(one) or isinstance(one, msgspec.Struct):
        names = list(inspect.signature(type(one)).parameters)
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_round_trip(noun: Any) -> None:
    assert same(core.unpack(type(noun), core.pack(noun)), noun)


def test_every_noun_that_can_cross_is_tried() -> None:
    nouns = {
        kind
        for kind in vars(core).values()
        if (dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen)  # noqa: B009 - mypy: no attribute
        or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))
    }
    assert nouns == {type(noun) for noun in NOUNS}


def test_an_array_that_came_back_may_be_written() -> None:
    back = core.unpack(core.Tokens, core.pack(TOKENS))
    back.ids[0] = 5
    assert back.ids[0] == 5


def test_garbage_is_a_decode_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        core.unpack(core.Tokens, b"\xc1")
