"""torch: the contract over several families, the formulas against plain transformers, real weights against the reference."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tests import tiny
from tests.awkward import TEXTS
from tests.backends.contract import Contract, made_rows, one_by_one
from vecgate.backends.torch import TorchBackend, devices, load
from vecgate.core import Batch, Checkpoint, Dense, Pooling, Task, Tokens, Vectors
from vecgate.engine.checkpoint import read, resolve
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import BackendFailed, DeviceLost, OutOfMemory
from vecgate.traits import Backend

REFERENCE = Path(__file__).parents[2] / "src" / "vecgate" / "engine" / "reference.py"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Several would only wait for each other over models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A checkpoint of tests/tiny by its kind, built once."""
    return cache(lambda kind: read(tiny.build(kind, tmp_path_factory.mktemp(kind))))


@pytest.fixture(scope="module")
def bert(tinies: Callable[[str], Checkpoint]) -> Checkpoint:
    return tinies("bert")


def rows_for(checkpoint: Checkpoint, *lengths: int) -> tuple[Tokens, ...]:
    vocabulary = checkpoint.config["vocab_size"]
    return made_rows(lengths or (2, 3, 8, 9, 33, 33, 50, checkpoint.max_tokens), vocabulary, task=checkpoint.task)


@pytest.fixture(scope="class")
def opened() -> list[TorchBackend]:
    """What a class has loaded; loading costs more than its tests."""
    return []


class TorchContract(Contract):
    """A kind of tests/tiny, with fields of its checkpoint changed."""

    kind = "bert"
    tolerance = 5e-6
    changes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def checkpoint(self, tinies: Callable[[str], Checkpoint]) -> Checkpoint:
        return replace(tinies(self.kind), **self.changes)

    @pytest.fixture
    def backend(self, checkpoint: Checkpoint, opened: list[TorchBackend]) -> Backend:
        if not opened or opened[-1]._model is None:  # one test closes it
            opened.append(load(checkpoint, device="cpu"))
        return opened[-1]

    @pytest.fixture
    def rows(self, checkpoint: Checkpoint) -> tuple[Tokens, ...]:
        return rows_for(checkpoint)


class TestBert(TorchContract):
    pass


class TestBertWithSeveralPoolings(TorchContract):
    changes: ClassVar[dict[str, Any]] = {"pooling": ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")}


class TestModernBert(TorchContract):
    kind = "modernbert"


class TestQwen3(TorchContract):
    kind = "qwen3"


class TestBertReranker(TorchContract):
    kind = "bert-reranker"
    task: Task = "rerank"


class TestModernBertReranker(TorchContract):
    kind = "modernbert-reranker"
    task: Task = "rerank"


class TestMpnetWhichPads(TorchContract):
    kind = "mpnet"


class TestOnADeviceThatPadsRowsAndColumns(TorchContract):
    """As on mps, where shapes must be few."""

    @pytest.fixture
    def backend(
        self, checkpoint: Checkpoint, opened: list[TorchBackend], monkeypatch: pytest.MonkeyPatch
    ) -> TorchBackend:
        few = replace(devices.cpu(0.8), packs=False, lengths=devices.few_lengths, row_counts=devices.ROW_COUNTS)
        monkeypatch.setattr(devices, "find", lambda *given: few)
        return load(checkpoint)

    def test_shapes_are_few(self, backend: TorchBackend, rows: tuple[Tokens, ...]) -> None:
        seen = shapes(backend)
        for count in (4, 5, 6, 7):
            backend.forward(Batch(rows[:count]))
        assert seen == [(4, 32), (6, 64), (6, 64), (8, 64)]


def shapes(backend: TorchBackend) -> list[tuple[int, ...]]:
    """Fills with the shape of every input that reaches the model."""
    seen: list[tuple[int, ...]] = []

    def look(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append(tuple(given["input_ids"].shape))

    inner = backend._model
    assert inner is not None
    inner.register_forward_pre_hook(look, with_kwargs=True)
    return seen


# the formulas, against one text at a time through plain transformers


@cache
def plain(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")


def hidden_states(checkpoint: Checkpoint, row: Tokens, **given: Any) -> Vectors:
    """(L, H) of one row, no padding, eager attention: as little as possible in common with the backend."""
    model = plain(checkpoint.folder)
    with torch.inference_mode():
        ids = torch.from_numpy(row.ids.astype(np.int64))[None]
        out: Vectors = model(input_ids=ids, **given).last_hidden_state[0].numpy()
    return out


CLOSE = 5e-6
"""Eager attention one text at a time against sdpa in a batch, both float32, values up to 5."""

FORMULAS: dict[Pooling, Callable[[Vectors, int], Any]] = {
    "cls": lambda hidden, prompt: hidden[prompt],
    "last": lambda hidden, prompt: hidden[-1],
    "max": lambda hidden, prompt: hidden[prompt:].max(0),
    "mean": lambda hidden, prompt: hidden[prompt:].mean(0),
    "mean_sqrt_len": lambda hidden, prompt: hidden[prompt:].sum(0) / np.sqrt(len(hidden) - prompt),
    "weightedmean": lambda hidden, prompt: np.average(
        hidden[prompt:], axis=0, weights=np.arange(prompt + 1, len(hidden) + 1)
    ),
}


@pytest.mark.parametrize("mode", FORMULAS)
@pytest.mark.parametrize("prompt", [0, 4])
def test_each_pooling_is_its_formula(bert: Checkpoint, mode: Pooling, prompt: int) -> None:
    rows = [replace(row, prompt=prompt) for row in rows_for(bert, 7, 12, 30)]
    opened = load(replace(bert, pooling=(mode,), include_prompt=False), device="cpu")
    got = opened.forward(Batch(tuple(rows)))
    expected = [FORMULAS[mode](hidden_states(bert, row), prompt) for row in rows]
    np.testing.assert_allclose(got, np.array(expected), rtol=0, atol=CLOSE)


def test_a_prompt_counts_unless_the_checkpoint_leaves_it_out(bert: Checkpoint) -> None:
    (row,) = rows_for(bert, 12)
    opened = load(bert, device="cpu")
    with_prompt, without = (opened.forward(Batch((replace(row, prompt=count),))) for count in (4, 0))
    np.testing.assert_array_equal(with_prompt, without)


def test_several_poolings_stand_side_by_side(bert: Checkpoint) -> None:
    batch = Batch(rows_for(bert, 7, 12))
    both = load(replace(bert, pooling=("max", "cls")), device="cpu")
    parts = [load(replace(bert, pooling=(mode,)), device="cpu").forward(batch) for mode in both_modes()]
    assert both.card.dimensions == 128
    np.testing.assert_array_equal(both.forward(batch), np.concatenate(parts, axis=1))


def both_modes() -> Sequence[Pooling]:
    return ("max", "cls")


def test_segment_b_has_token_type_one(bert: Checkpoint) -> None:
    (row,) = rows_for(bert, 12)
    types = torch.tensor([[0] * 5 + [1] * 7])
    expected = hidden_states(bert, row, token_type_ids=types).mean(0)
    opened = load(bert, device="cpu")
    got = opened.forward(Batch((replace(row, second=5), row)))
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=CLOSE)
    assert np.abs(got[0] - got[1]).max() > 1e-3
    untyped = load(replace(bert, token_types=False), device="cpu").forward(Batch((replace(row, second=5), row)))
    np.testing.assert_allclose(untyped[0], untyped[1], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("Tanh", np.tanh),
        ("torch.nn.modules.activation.Tanh", np.tanh),
        ("torch.nn.modules.linear.Identity", lambda x: x),
        ("ReLU", lambda x: np.maximum(x, 0)),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers_follow_the_pooling_in_float32(
    bert: Checkpoint, tmp_path: Path, activation: str, formula: Callable[[Any], Any], bias: bool
) -> None:
    random = np.random.default_rng(3)
    sizes, layers = (64, 40, 6), []
    rows = rows_for(bert, 7, 12)
    expected = load(bert, device="cpu").forward(Batch(rows))
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        weight = random.normal(0, 0.3, (narrow, wide)).astype(np.float32)
        shift = random.normal(0, 0.3, narrow).astype(np.float32) * bias
        held = {"linear.weight": torch.from_numpy(weight)} | ({"linear.bias": torch.from_numpy(shift)} if bias else {})
        save_file(held, tmp_path / f"{number}.safetensors")
        layers.append(Dense(tmp_path / f"{number}.safetensors", activation, bias))
        expected = formula(expected @ weight.T + shift)
    opened = load(replace(bert, dense=tuple(layers)), device="cpu")
    got = opened.forward(Batch(rows))
    assert (opened.card.dimensions, got.shape) == (6, (2, 6))
    np.testing.assert_allclose(got, expected, rtol=0, atol=CLOSE)


def test_a_reranker_gives_the_heads_logit(tinies: Callable[[str], Checkpoint]) -> None:
    checkpoint = tinies("bert-reranker")
    rows = rows_for(checkpoint, 9, 21)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder)
    expected = []
    for row in rows:
        types = torch.tensor([[int(at >= (row.second or 0)) for at in range(len(row))]])
        with torch.inference_mode():
            ids = torch.from_numpy(row.ids.astype(np.int64))[None]
            expected.append(model(input_ids=ids, token_type_ids=types).logits[0].numpy())
    np.testing.assert_allclose(load(checkpoint, device="cpu").forward(Batch(rows)), expected, rtol=0, atol=CLOSE)


def test_bfloat16_pools_in_float32(bert: Checkpoint) -> None:
    batch = Batch(rows_for(bert))
    full, half = (load(bert, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (full.card.dtype, half.card.dtype) == ("float32", "bfloat16")
    assert half.card.weight_bytes < 0.51 * full.card.weight_bytes
    exact, got = full.forward(batch), half.forward(batch)
    assert got.dtype == np.float32
    cosine = (exact * got).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() > 0.99
    assert (got.view(np.uint32) & 0xFFFF).any()  # a mean taken in bfloat16 would have no low bits


@pytest.mark.parametrize(
    ("dtype", "times", "said"),
    [
        ("bfloat16", 6.0, ["bfloat16 takes 6.0 times as long as float32 on this CPU; DTYPE=float32 is faster."]),
        ("bfloat16", 0.4, []),
        ("float32", 6.0, []),
    ],
)
def test_a_type_that_is_slower_than_float32_is_told(
    bert: Checkpoint,
    dtype: str,
    times: float,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(devices, "slowdown", lambda compute: times)
    assert load(bert, device="cpu", dtype=dtype).card.dtype == dtype
    assert caplog.messages == said


def test_a_logit_in_bfloat16_keeps_its_low_bits(tinies: Callable[[str], Checkpoint]) -> None:
    checkpoint = tinies("bert-reranker")
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows_for(checkpoint, 9, 21, 30)))
    assert (got.view(np.uint32) & 0xFFFF).any()


# what can't be computed


def broken(backend: TorchBackend, error: BaseException) -> TorchBackend:
    def fail(*given: Any) -> None:
        raise error

    inner = backend._model
    assert inner is not None
    inner.register_forward_pre_hook(fail)
    return backend


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_a_full_device_is_out_of_memory(bert: Checkpoint, error: Exception) -> None:
    opened = broken(load(bert, device="cpu"), error)
    with pytest.raises(OutOfMemory, match="no room for a batch of 2 rows of up to 9 tokens") as raised:
        opened.forward(Batch(rows_for(bert, 5, 9)))
    assert raised.value.__cause__ is error


def test_a_dead_cuda_context_is_a_lost_device(bert: Checkpoint) -> None:
    opened = broken(load(bert, device="cpu"), RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(DeviceLost, match="CUDA failed on a batch of 1 rows"):
        opened.forward(Batch(rows_for(bert, 5)))


@pytest.mark.parametrize("error", [RuntimeError("shape '[secret]' is invalid"), IndexError("index out of range")])
def test_any_other_failure_says_nothing_of_its_input(bert: Checkpoint, error: Exception) -> None:
    opened = broken(load(bert, device="cpu"), error)
    with pytest.raises(BackendFailed) as raised:
        opened.forward(Batch(rows_for(bert, 5, 9)))
    assert str(raised.value) == "The model failed on a batch of 2 rows of up to 9 tokens."
    assert not isinstance(raised.value, OutOfMemory)


@pytest.mark.parametrize("past", [-1, 0])
def test_an_id_outside_the_table_never_reaches_the_device(bert: Checkpoint, past: int) -> None:
    vocabulary = bert.config["vocab_size"]
    opened = load(bert, device="cpu")
    seen = shapes(opened)
    bad = past if past < 0 else vocabulary + past
    with pytest.raises(BackendFailed, match=f"outside the model's vocabulary of {vocabulary}"):
        opened.forward(Batch((Tokens(np.array([2, bad, 3], np.int32)),)))
    assert seen == []


@pytest.mark.parametrize("length", [0, 65])
def test_a_row_of_impossible_length_is_refused(bert: Checkpoint, length: int) -> None:
    with pytest.raises(BackendFailed, match=f"A row of {length} tokens .* 1 to 64"):
        load(bert, device="cpu").forward(Batch((Tokens(np.full(length, 5, np.int32)),)))


def test_rows_are_packed_on_a_cpu(bert: Checkpoint) -> None:
    """Shortest first, in one row of tokens, and the attention once a length in each layer."""
    opened = load(bert, device="cpu")
    seen = shapes(opened)
    with patch("vecgate.backends.torch.packed.sdpa", wraps=sdpa) as attention:
        opened.forward(Batch(rows_for(bert, 9, 2, 30, 9)))
    assert seen == [(1, 50)]
    layers = bert.config["num_hidden_layers"]
    assert [call.args[0].shape[::2] for call in attention.call_args_list] == [(1, 2), (2, 9), (1, 30)] * layers
    assert opened.card.pad_lengths is None


def test_a_forward_without_its_layout_is_refused(bert: Checkpoint) -> None:
    """transformers drops what it does not know: a row must never see its neighbours because of it."""
    inner = load(bert, device="cpu")._model
    assert inner is not None
    with pytest.raises(TypeError, match="layout"):
        inner(input_ids=torch.ones((1, 5), dtype=torch.long))


def test_rows_are_padded_to_the_next_multiple_of_eight(bert: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = replace(devices.cpu(0.8), packs=False)
    monkeypatch.setattr(devices, "find", lambda *given: padding)
    opened = load(replace(bert, max_tokens=60), device="cpu")
    seen = shapes(opened)
    for length in (2, 8, 9, 56, 57, 60):
        opened.forward(Batch(rows_for(bert, 2, length)))
    assert seen == [(2, 8), (2, 8), (2, 16), (2, 56), (2, 60), (2, 60)]


def test_closing_frees_the_model(bert: Checkpoint) -> None:
    opened = load(bert, device="cpu")
    inner = weakref.ref(opened._model)
    opened.close()
    assert inner() is None


def test_loading_is_silent_and_leaves_transformers_as_it_was(
    bert: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    talk: Any = transformers.utils.logging
    before = talk.get_verbosity(), talk.is_progress_bar_enabled()
    load(bert, device="cpu")
    assert (talk.get_verbosity(), talk.is_progress_bar_enabled()) == before
    assert before == (logging.WARNING, True)
    assert capfd.readouterr() == ("", "")


# real weights, against sentence-transformers in float32 in a process of its own; tests/test_families.py has the tiny ones


def test_minilm_equals_sentence_transformers(minilm_rows: Vectors) -> None:
    found = resolve("minilm")
    checkpoint = read(found.folder, found.name)
    opened = load(checkpoint, device="cpu")
    rows = Tokenizer(checkpoint).encode(TEXTS, "", checkpoint.max_tokens, "end")
    order = np.random.default_rng(5).permutation(len(rows))
    shuffled = opened.forward(Batch(tuple(rows[i] for i in order)))
    # float32 summed in another order: 2e-7 was seen; 1e-6 is the promise.
    np.testing.assert_allclose(unit(shuffled), minilm_rows[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(unit(one_by_one(opened, rows[::4])), minilm_rows[::4], rtol=0, atol=1e-6)


def test_minilm_in_bfloat16_keeps_its_directions(minilm_rows: Vectors) -> None:
    """What README.md says of it; few and short, since a CPU without bfloat16's instructions is slow."""
    found = resolve("minilm")
    checkpoint = read(found.folder, found.name)
    rows = Tokenizer(checkpoint).encode(TEXTS, "", checkpoint.max_tokens, "end")
    places = [place for place, row in enumerate(rows) if len(row) <= 32]
    half = load(checkpoint, device="cpu", dtype="bfloat16")
    cosines = (unit(half.forward(Batch(tuple(rows[place] for place in places)))) * minilm_rows[places]).sum(1)
    assert len(places) > 10
    assert 0.9998 < cosines.min() < 0.99999


def unit(rows: Vectors) -> Vectors:
    normal: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal
