"""MLX: the contract, real and tiny weights against the references, files that are wrong, and what is asked of Metal.

On Linux its CPU build (mlx[cpu]) runs the code that Metal runs on a Mac; 16 times faster with LD_PRELOAD=libopenblas.so.0.
"""

# ruff: noqa: E402 - without MLX there is nothing to import

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

MISSING = "MLX is not installed (Linux: pip install 'mlx[cpu]')"
pytest.importorskip("mlx.core", reason=MISSING, exc_type=ImportError)

import mlx.core as mx
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.awkward import TEXTS
from tests.backends import made
from tests.backends.contract import Contract, made_rows, one_by_one
from vecgate.backends import open_backend
from vecgate.backends.mlx import FAMILIES, backend, devices
from vecgate.backends.mlx import bert as family
from vecgate.backends.mlx import weights as files
from vecgate.backends.mlx.backend import MLXBackend, load
from vecgate.core import Batch, Checkpoint, Dense, Pooling, Task, Tokens, Vectors
from vecgate.engine.checkpoint import read, resolve
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import BackendFailed, CheckpointError, ConfigError, DeviceLost, OutOfMemory
from vecgate.traits import Backend

SRC = Path(__file__).parents[2] / "src"
REFERENCE = SRC / "vecgate" / "engine" / "reference.py"
MODES: tuple[Pooling, ...] = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "last")
CALM = 0.12
"""Standard deviation of the layers' weights in these tests. At tests/tiny.py's own, float32 on torch is 3e-5 away from
float64 (a reranker's logit 3e-3), which would hide a mistake of that size."""

Tinies = Callable[[str], Checkpoint]


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Tinies:
    """A checkpoint of tests/tiny.py by its kind, built once, calm."""

    def build(kind: str) -> Checkpoint:
        made_up = read(tiny.build(kind, tmp_path_factory.mktemp(kind)))
        made.rewrite(made_up, calm)
        return made_up

    return cache(build)


def calm(held: dict[str, torch.Tensor]) -> None:
    for name, tensor in held.items():
        if (
            tensor.ndim == 2
            and "embeddings" not in name
            and not name.endswith(("classifier.weight", "out_proj.weight"))
        ):
            held[name] = tensor * (CALM / tensor.std())


@pytest.fixture(scope="module")
def bert(tinies: Tinies) -> Checkpoint:
    return tinies("bert")


def rows_for(checkpoint: Checkpoint, *lengths: int) -> tuple[Tokens, ...]:
    vocabulary = checkpoint.config["vocab_size"]
    return made_rows(lengths or (2, 3, 16, 17, 33, 33, 50, checkpoint.max_tokens), vocabulary, task=checkpoint.task)


class MLXContract(Contract):
    """A kind of tests/tiny.py, with fields of its checkpoint changed."""

    kind = "bert"
    tolerance = 2e-6
    changes: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def checkpoint(self, tinies: Tinies) -> Checkpoint:
        return replace(tinies(self.kind), **self.changes)

    @pytest.fixture
    def backend(self, checkpoint: Checkpoint) -> Iterator[Backend]:
        opened = open_backend("mlx", checkpoint, device="cpu")
        yield opened
        opened.close()

    @pytest.fixture
    def rows(self, checkpoint: Checkpoint) -> tuple[Tokens, ...]:
        return rows_for(checkpoint)


class TestBert(MLXContract):
    pass


class TestBertWithSeveralPoolings(MLXContract):
    tolerance = 1e-5  # mean_sqrt_len grows with the length
    changes: ClassVar[dict[str, Any]] = {"pooling": MODES}


class TestXlmRoberta(MLXContract):
    kind = "xlmr"


class TestBertReranker(MLXContract):
    kind = "bert-reranker"
    tolerance = 1e-5  # of logits that reach 10
    task: Task = "rerank"


class TestXlmRobertaReranker(MLXContract):
    kind = "xlmr-reranker"
    tolerance = 1e-5
    task: Task = "rerank"


# real and tiny weights, against sentence-transformers and transformers


def unit(rows: Vectors) -> Vectors:
    normal: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normal


def test_minilm_equals_sentence_transformers(minilm_rows: Vectors) -> None:
    found = resolve("minilm")
    checkpoint = read(found.folder, found.name)
    opened = load(checkpoint, device="cpu")
    rows = Tokenizer(checkpoint).encode(TEXTS, "", checkpoint.max_tokens, "end")
    longest = next(at for at, row in enumerate(rows) if len(row) == checkpoint.max_tokens)
    # The short ones and one of the longest: on a CPU without OpenBLAS a thousand tokens take ten seconds.
    kept = [longest, *(at for at, row in enumerate(rows) if len(row) <= 32)]
    alone = one_by_one(opened, [rows[at] for at in kept])
    together = opened.forward(Batch(tuple(rows[at] for at in kept[1:])))
    # float32 summed in another order: 3e-7 was seen; 1e-6 is the promise.
    assert len(kept) > 25
    np.testing.assert_allclose(unit(alone), minilm_rows[kept], rtol=0, atol=1e-6)
    np.testing.assert_allclose(unit(together), minilm_rows[kept[1:]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("xlmr", "cls")])
def test_a_tiny_embedder_equals_transformers(tinies: Tinies, kind: str, pooling: str) -> None:
    checkpoint = tinies(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    model = transformers.AutoModel.from_pretrained(checkpoint.folder, attn_implementation="eager")
    with torch.inference_mode():
        given = [tokenizer(text, truncation=True, max_length=checkpoint.max_tokens) for text in TEXTS]
        hidden = [model(**{name: torch.tensor([ids]) for name, ids in one.items()})[0][0].numpy() for one in given]
    expected = unit(np.array([states[0] if pooling == "cls" else states.mean(0) for states in hidden]))
    opened = load(checkpoint, device="cpu")
    rows = Tokenizer(checkpoint).encode(TEXTS, "", checkpoint.max_tokens, "end")
    assert checkpoint.pooling == (pooling,)
    assert (np.abs(expected[:, None] - expected).max(-1) > 0.01).mean() > 0.8  # different texts, different rows
    np.testing.assert_allclose(unit(one_by_one(opened, rows)), expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(unit(opened.forward(Batch(tuple(rows)))), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("kind", ["bert-reranker", "xlmr-reranker"])
def test_a_tiny_rerankers_logits_equal_transformers(tinies: Tinies, kind: str) -> None:
    checkpoint = tinies(kind)
    query = "what is the capital of france?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint.folder)
    options = {"truncation": "longest_first", "max_length": checkpoint.max_tokens, "return_tensors": "pt"}
    with torch.inference_mode():
        given = [tokenizer([[query, text]], **options) for text in TEXTS]
        expected = np.concatenate([model(**one).logits.numpy() for one in given])
    opened = load(checkpoint, device="cpu")
    rows = Tokenizer(checkpoint).encode_pairs(query, TEXTS, checkpoint.max_tokens, "end")
    assert expected.std() > 0.1
    np.testing.assert_allclose(one_by_one(opened, rows), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(opened.forward(Batch(tuple(rows))), expected, rtol=0, atol=1e-4)


# what decides a row, against the torch backend


def by_torch(checkpoint: Checkpoint, rows: tuple[Tokens, ...]) -> Vectors:
    return open_backend("torch", checkpoint, device="cpu").forward(Batch(rows))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_pooling_equals_torchs(bert: Checkpoint, mode: Pooling, include_prompt: bool) -> None:
    rows = tuple(replace(row, prompt=prompt) for row, prompt in zip(rows_for(bert, 7, 12, 30), (0, 4, 4), strict=True))
    checkpoint = replace(bert, pooling=(mode,), include_prompt=include_prompt)
    got = load(checkpoint, device="cpu").forward(Batch(rows))
    np.testing.assert_allclose(got, by_torch(checkpoint, rows), rtol=0, atol=5e-6)


def test_several_poolings_stand_side_by_side(bert: Checkpoint) -> None:
    rows = rows_for(bert, 7, 12)
    both = load(replace(bert, pooling=("max", "cls")), device="cpu")
    assert both.card.dimensions == 128
    got = both.forward(Batch(rows))
    np.testing.assert_allclose(got, by_torch(replace(bert, pooling=("max", "cls")), rows), rtol=0, atol=5e-6)


def test_segment_b_has_token_type_one(bert: Checkpoint) -> None:
    (row,) = rows_for(bert, 12)
    rows = (replace(row, second=5), row)
    got = load(bert, device="cpu").forward(Batch(rows))
    np.testing.assert_allclose(got, by_torch(bert, rows), rtol=0, atol=5e-6)
    assert np.abs(got[0] - got[1]).max() > 1e-3
    untyped = load(replace(bert, token_types=False), device="cpu").forward(Batch(rows))
    np.testing.assert_allclose(untyped[0], untyped[1], rtol=0, atol=2e-6)


def test_a_pad_written_in_a_text_moves_no_position(tinies: Tinies) -> None:
    checkpoint = replace(tinies("xlmr"), pooling=("mean",))
    (row,) = rows_for(checkpoint, 12)
    row.ids[4] = checkpoint.pad_id
    got = load(checkpoint, device="cpu").forward(Batch((row,)))
    np.testing.assert_allclose(got, by_torch(checkpoint, (row,)), rtol=0, atol=5e-6)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_the_configs_activation_is_used(bert: Checkpoint, tmp_path: Path, activation: str) -> None:
    rows = rows_for(bert, 7, 30)
    checkpoint = copied(bert, tmp_path, hidden_act=activation)
    got = load(checkpoint, device="cpu").forward(Batch(rows))
    np.testing.assert_allclose(got, by_torch(checkpoint, rows), rtol=0, atol=5e-6)
    assert np.abs(got - load(bert, device="cpu").forward(Batch(rows))).max() > 1e-5


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "ReLU", "GELU", "SiLU", "Sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_layers_follow_the_pooling(bert: Checkpoint, tmp_path: Path, activation: str, bias: bool) -> None:
    torch.manual_seed(3)
    layers = []
    for number, (narrow, wide) in enumerate([(40, 64), (6, 40)]):
        held = {"linear.weight": torch.randn(narrow, wide) / 8} | ({"linear.bias": torch.randn(narrow)} if bias else {})
        save_file(held, tmp_path / f"{number}.safetensors")
        layers.append(Dense(tmp_path / f"{number}.safetensors", activation, bias))
    checkpoint = replace(bert, dense=tuple(layers))
    rows = rows_for(bert, 7, 12)
    opened = load(checkpoint, device="cpu")
    assert opened.card.dimensions == 6
    np.testing.assert_allclose(opened.forward(Batch(rows)), by_torch(checkpoint, rows), rtol=0, atol=5e-6)


# types


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_auto_is_float32_on_a_cpu(bert: Checkpoint, tmp_path: Path, stored: str) -> None:
    checkpoint = stored_as(bert, tmp_path, stored)
    opened = load(checkpoint, device="cpu")
    assert (opened.card.device, opened.card.dtype) == ("cpu", "float32")
    rows = rows_for(bert, 7, 30)
    np.testing.assert_allclose(opened.forward(Batch(rows)), by_torch(checkpoint, rows), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_type_pools_in_float32(bert: Checkpoint, dtype: str) -> None:
    batch = Batch(rows_for(bert))
    full, half = (load(bert, device="cpu", dtype=one) for one in ("float32", dtype))
    assert (full.card.dtype, half.card.dtype) == ("float32", dtype)
    assert half.card.weight_bytes < 0.51 * full.card.weight_bytes
    exact, got = full.forward(batch), half.forward(batch)
    assert got.dtype == np.float32
    assert (unit(exact) * unit(got)).sum(1).min() > 0.999
    assert (got.view(np.uint32) & 0x1FFF).any()  # a mean taken in 16 bits would have no low bits


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling_of_bfloat16_gives_float32(bert: Checkpoint, mode: Pooling) -> None:
    opened = load(replace(bert, pooling=(mode,)), device="cpu", dtype="bfloat16")
    assert opened.forward(Batch(rows_for(bert, 7, 30))).dtype == np.float32


def test_a_logit_in_bfloat16_keeps_its_low_bits(tinies: Tinies) -> None:
    checkpoint = tinies("bert-reranker")
    rows = rows_for(checkpoint, 9, 21, 30)
    got = load(checkpoint, device="cpu", dtype="bfloat16").forward(Batch(rows))
    assert (got.view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "DTYPE='float64' is not known; use auto, float32, bfloat16, float16"),
        ({"device": "cuda"}, "device 'cuda' is not known; use auto, cpu or gpu"),
        ({"device": "gpu"}, "device 'gpu' is not there"),
        ({"memory_fraction": 1e-7}, r"bert. needs .* GiB for its weights.*0\.00 x .* GiB on cpu"),
    ],
)
def test_what_cant_be_had_is_one_sentence(
    bert: Checkpoint, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message) as raised:
        load(bert, **options)
    assert "\n" not in str(raised.value)


# files


def copied(checkpoint: Checkpoint, folder: Path, change: Any = None, **config: Any) -> Checkpoint:
    """The checkpoint in another folder with its tensors run through `change` and keys of its config set."""
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((checkpoint.folder / file).read_bytes())
    moved = replace(
        checkpoint, folder=folder, weights=(folder / "model.safetensors",), config={**checkpoint.config, **config}
    )
    made.configure(moved, **config)
    if change is not None:
        made.rewrite(moved, change)
    return moved


def stored_as(checkpoint: Checkpoint, folder: Path, dtype: str) -> Checkpoint:
    def cast(held: dict[str, torch.Tensor]) -> None:
        held.update({name: tensor.to(getattr(torch, dtype)) for name, tensor in held.items()})

    other = copied(checkpoint, folder, cast)
    return replace(
        other,
        stored_dtype=dtype,
        weight_bytes=sum(torch.finfo(x.dtype).bits // 8 * x.numel() for x in load_file(other.weights[0]).values()),
    )


def renamed(change: Callable[[str], str]) -> Callable[[dict[str, torch.Tensor]], None]:
    def rename(held: dict[str, torch.Tensor]) -> None:
        for name in list(held):
            held[change(name)] = held.pop(name)

    return rename


def extended(**more: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def extend(held: dict[str, torch.Tensor]) -> None:
        held.update({name.replace("__", "."): tensor for name, tensor in more.items()})

    return extend


@pytest.mark.parametrize(
    "change",
    [
        renamed(lambda name: f"bert.{name}"),
        renamed(lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma")),
        renamed(lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta")),
        extended(embeddings__position_ids=torch.arange(128)[None], cls__predictions__bias=torch.zeros(3)),
        lambda held: [held.pop(name) for name in list(held) if name.startswith("pooler.")],
    ],
    ids=["prefix", "gamma", "beta", "spare tensors", "no pooler"],
)
def test_other_spellings_of_the_same_model_give_the_same_rows(bert: Checkpoint, tmp_path: Path, change: Any) -> None:
    batch = Batch(rows_for(bert, 7, 30))
    expected = load(bert, device="cpu").forward(batch)
    np.testing.assert_array_equal(load(copied(bert, tmp_path, change), device="cpu").forward(batch), expected)


def test_shards_are_one_model(bert: Checkpoint, tmp_path: Path) -> None:
    transformers.AutoModel.from_pretrained(bert.folder).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = tuple(sorted(tmp_path.glob("model-*.safetensors")))
    assert len(shards) > 2
    batch = Batch(rows_for(bert, 7, 30))
    got = load(replace(bert, folder=tmp_path, weights=shards), device="cpu").forward(batch)
    np.testing.assert_array_equal(got, load(bert, device="cpu").forward(batch))


DEEP = "encoder.layer.2.attention.self.key.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(DEEP), f"model.safetensors lacks the bert tensor '{DEEP}'"),
        (extended(encoder__layer__3__x=torch.zeros(2)), r"model.safetensors holds the tensor 'encoder.layer.3.x', .* no place"),
        (lambda held: held.update({DEEP: torch.zeros(64, 63)}), rf"'{DEEP}' has the shape \(64, 63\), not \(64, 64\)"),
        (lambda held: held.update({DEEP: torch.zeros(64, 64, dtype=torch.int8)}), f"'{DEEP}' holds .*int8, not floats"),
        (extended(bert__pooler__dense__bias=torch.zeros(64)), "holds 'bert.pooler.dense.bias', which .* too"),
    ],
    ids=["missing", "unexpected", "shape", "type", "twice"],
)  # fmt: skip
def test_a_wrong_tensor_is_named_with_its_file(bert: Checkpoint, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(copied(bert, tmp_path, change), device="cpu")
    assert str(tmp_path) in str(raised.value)


def test_a_missing_tensor_of_a_sharded_model_is_named(bert: Checkpoint, tmp_path: Path) -> None:
    other = copied(bert, tmp_path, lambda held: held.pop(DEEP))
    (tmp_path / "other.safetensors").write_bytes(other.weights[0].read_bytes())
    save_file({"pooler.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"its shards lacks the bert tensor '{DEEP}'"):
        load(replace(other, weights=(tmp_path / "other.safetensors", other.weights[0])), device="cpu")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"junk" * 9, lambda raw: b""])
def test_a_damaged_file_is_named(bert: Checkpoint, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    other = copied(bert, tmp_path)
    other.weights[0].write_bytes(damage(other.weights[0].read_bytes()))
    with pytest.raises(CheckpointError, match=r"model.safetensors can't be read as safetensors .*; fetch it again"):
        load(other, device="cpu")


def test_a_reranker_without_its_head_is_refused(tinies: Tinies, tmp_path: Path) -> None:
    checkpoint = copied(tinies("xlmr-reranker"), tmp_path, lambda held: held.pop("classifier.out_proj.bias"))
    with pytest.raises(CheckpointError, match=r"lacks the xlm-roberta tensor 'classifier\.out_proj\.bias'"):
        load(checkpoint, device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": [64]}, r"has '\[64\]' for 'hidden_size'"),
        ({"num_hidden_layers": 0}, "has 0 for 'num_hidden_layers'; it must be 1 or more"),
        ({"vocab_size": "many"}, "has 'many' for 'vocab_size'"),
        ({"num_attention_heads": 5}, "hidden_size 64 is no multiple of 5 attention heads"),
        ({"hidden_act": "mish"}, "asks for the activation 'mish'; on MLX there are gelu"),
        ({"is_decoder": True}, "says is_decoder"),
        ({"position_embedding_type": "relative_key"}, "has 'relative_key' for position_embedding_type"),
        ({"max_position_embeddings": 63}, "has positions for 63 tokens; the limit of 64"),
    ],
)
def test_a_config_it_cant_follow_is_one_sentence(bert: Checkpoint, config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load(replace(bert, config={**bert.config, **config}), device="cpu")
    assert f"{bert.folder / 'config.json'}" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "t5"}, "bert. is of the family 't5'; on MLX there are bert, .*BACKEND=torch"),
        ({"quantization": {"quant_method": "gptq", "bits": 4}}, "bert. is quantised with gptq, .* mlx_lm.convert"),
        ({"pad_id": 99999}, "the pad id 99999 is not in its vocabulary"),
    ],
)
def test_a_checkpoint_it_cant_serve_is_one_sentence(bert: Checkpoint, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(replace(bert, **change), device="cpu")


@pytest.mark.parametrize(
    ("held", "activation", "message"),
    [
        ({}, "Tanh", "0.safetensors lacks the tensor 'linear.weight'"),
        ({"linear.weight": (4, 64)}, "Tanh", "0.safetensors lacks the tensor 'linear.bias'"),
        ({"linear.weight": (4,), "linear.bias": (4,)}, "Tanh", r"'linear.weight' has the shape \(4,\)"),
        ({"linear.weight": (4, 63), "linear.bias": (4,)}, "Tanh", "'linear.weight' takes 63 numbers, .* gives 64"),
        ({"linear.weight": (4, 64), "linear.bias": (5,)}, "Tanh", r"'linear.bias' has the shape \(5,\), not \(4,\)"),
        ({"linear.weight": (4, 64), "linear.bias": (4,)}, "Softmax", "asks for the activation 'Softmax'"),
    ],
)
def test_a_wrong_dense_layer_is_named(
    bert: Checkpoint, tmp_path: Path, held: dict[str, tuple[int, ...]], activation: str, message: str
) -> None:
    file = tmp_path / "0.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in held.items()}, file)
    with pytest.raises(CheckpointError, match=message):
        load(replace(bert, dense=(Dense(file, activation, True),)), device="cpu")


def test_every_family_has_its_file() -> None:
    for module in set(FAMILIES.values()):
        assert find_spec(module) is not None


# what can't be computed


def broken(backend: MLXBackend, error: BaseException) -> MLXBackend:
    def fail(rows: Any) -> mx.array:
        raise error

    backend._model = fail
    return backend


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[metal::malloc] Attempting to allocate 98784247808 bytes which is greater than the maximum"),
        RuntimeError("[metal::malloc] Resource limit (499000) exceeded."),
        RuntimeError("[malloc] Unable to allocate 70368744177664 bytes."),
        MemoryError(),
    ],
)
def test_a_full_device_is_out_of_memory(bert: Checkpoint, error: Exception) -> None:
    opened = broken(load(bert, device="cpu"), error)
    with pytest.raises(OutOfMemory, match="no room for a batch of 2 rows of up to 9 tokens") as raised:
        opened.forward(Batch(rows_for(bert, 5, 9)))
    assert raised.value.__cause__ is error


def test_any_other_failure_says_nothing_of_its_input(bert: Checkpoint) -> None:
    opened = broken(load(bert, device="cpu"), RuntimeError("[reshape] Cannot reshape [secret]"))
    with pytest.raises(BackendFailed) as raised:
        opened.forward(Batch(rows_for(bert, 5, 9)))
    assert str(raised.value) == "The model failed on a batch of 2 rows of up to 9 tokens."
    assert not isinstance(raised.value, OutOfMemory)


def test_a_failed_command_buffer_ends_the_device_thread(bert: Checkpoint) -> None:
    text = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOOM)"
    opened = broken(load(bert, device="cpu"), RuntimeError(text))
    with pytest.raises(DeviceLost, match="Command buffer execution failed"):
        opened.forward(Batch(rows_for(bert, 5, 9)))


def test_the_gpu_is_asked_for_its_errors_after_each_batch(bert: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("[METAL] Command buffer execution failed: Caused GPU Hang Error")

    opened = load(bert, device="cpu")
    monkeypatch.setattr(mx, "synchronize", fail)
    with pytest.raises(DeviceLost, match="Hang"):
        opened.forward(Batch(rows_for(bert, 5, 9)))


@pytest.mark.parametrize("over", [True, False])
def test_an_id_outside_the_table_never_reaches_the_device(bert: Checkpoint, over: bool) -> None:
    size = bert.config["vocab_size"]
    opened = broken(load(bert, device="cpu"), AssertionError("it did"))
    with pytest.raises(BackendFailed, match=f"outside the model's vocabulary of {size}"):
        opened.forward(Batch((Tokens(np.array([2, size if over else -1, 3], np.int32)),)))


@pytest.mark.parametrize("length", [0, 65])
def test_a_row_of_impossible_length_is_refused(bert: Checkpoint, length: int) -> None:
    with pytest.raises(BackendFailed, match=f"A row of {length} tokens .* 1 to 64"):
        load(bert, device="cpu").forward(Batch((Tokens(np.full(length, 5, np.int32)),)))


# layout and life


def test_shapes_are_few_and_only_padding_is_masked(bert: Checkpoint) -> None:
    opened = load(bert, device="cpu")
    inner = opened._model
    assert inner is not None
    seen = []

    def look(rows: Any) -> mx.array:
        seen.append((rows.ids.shape, None if rows.mask is None else (rows.mask.shape, rows.mask.dtype)))
        return inner(rows)

    opened._model = look
    for lengths in ((2, 9), (16, 16), (17,), (33, 60), (64,)):
        opened.forward(Batch(rows_for(bert, *lengths)))
    assert opened.card.pad_lengths == (16, 32, 64)
    assert seen == [
        ((2, 16), ((2, 1, 1, 16), mx.bool_)),
        ((2, 16), None),
        ((1, 32), ((1, 1, 1, 32), mx.bool_)),
        ((2, 64), ((2, 1, 1, 64), mx.bool_)),
        ((1, 64), None),
    ]


@pytest.mark.parametrize("longest", [5, 16, 96, 256, 300, 512, 8192])
def test_pad_lengths_are_few_and_waste_little(longest: int) -> None:
    lengths = devices.lengths(longest)
    assert lengths[-1] == longest
    assert lengths == tuple(sorted(set(lengths)))
    assert len(lengths) <= 32
    for shorter, longer in pairwise(lengths):
        assert longer - shorter <= max(32, longer // 4)


def test_rows_of_many_lengths_leave_memory_flat(bert: Checkpoint) -> None:
    opened = load(bert, device="cpu")
    before = opened.memory()
    for length in range(2, 64):
        opened.forward(Batch(rows_for(bert, length)))
    opened.trim()
    assert opened.memory().active_bytes <= before.active_bytes + 4096
    assert opened.memory().cache_bytes == 0


def test_closing_frees_the_model(bert: Checkpoint) -> None:
    opened = load(bert, device="cpu")
    inner = weakref.ref(opened._model)
    opened.close()
    assert inner() is None


def test_load_and_forward_work_on_a_thread_of_their_own(bert: Checkpoint) -> None:
    batch = Batch(rows_for(bert, 7, 30))
    got: list[Vectors] = []

    def live() -> None:
        opened = load(bert, device="cpu")
        got.append(opened.forward(batch))
        opened.close()

    threads = [threading.Thread(target=live) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], load(bert, device="cpu").forward(batch))


def test_a_threads_streams_end_with_it(bert: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    clear = mx.clear_streams

    def seen() -> None:
        ended.append(threading.get_ident())
        clear()

    monkeypatch.setattr(mx, "clear_streams", seen)

    def life() -> None:
        for _ in range(2):
            load(bert).close()
        assert not ended

    thread = threading.Thread(target=life)
    thread.start()
    ident = thread.ident
    thread.join()
    assert ended == [ident]


def test_the_batch_is_cut_to_what_fits(bert: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 2 * (bert.weight_bytes + 500 * 4_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": total}))
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    opened = load(bert, device="cpu", memory_fraction=0.5)
    assert opened.memory().limit_bytes == total // 2
    assert 64 <= opened.card.batch_tokens < 2048
    half = replace(bert, weight_bytes=1_000_000, stored_dtype="float16")
    quantised = replace(half, quantization={"bits": 4})
    assert (
        load(bert, device="cpu", memory_fraction=0.5, others=[quantised]).card.batch_tokens < opened.card.batch_tokens
    )
    with pytest.raises(ConfigError, match=r"longest input, the other models 0\.00 GiB, and 0\.00 GiB are in use"):
        load(bert, device="cpu", memory_fraction=0.5, others=[half])


def test_only_rows_without_room_fail(
    bert: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "LEAST_TOKENS", 8)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    config = family.Config.read(bert)
    limit = files.needed_bytes(files.read(bert, config.names), config.names, mx.float32)
    limit += 40 * config.token_bytes(40, 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 2 * limit}))
    opened = load(bert, device="cpu", memory_fraction=0.5)
    assert "takes inputs of 64 tokens; there is room for 36" in caplog.text
    assert opened.forward(Batch((Tokens(np.full(36, 7, np.int32)),))).shape == (1, opened.card.dimensions)
    with pytest.raises(OutOfMemory, match="no room for a row of 37 tokens, only for 36"):
        opened.forward(Batch((Tokens(np.full(37, 7, np.int32)),)))
    monkeypatch.setattr(backend, "LEAST_TOKENS", 48)
    with pytest.raises(ConfigError, match="for an input of 48 tokens"):
        load(bert, device="cpu", memory_fraction=0.5)


SERVE = """
import json, sys
from pathlib import Path
from vecgate.backends import open_backend
from vecgate.core import Batch
from vecgate.engine.checkpoint import read
from vecgate.engine.tokenizer import Tokenizer
checkpoint = read(Path(sys.argv[1]))
rows = Tokenizer(checkpoint).encode(["hello world"], "", checkpoint.max_tokens, "end")
shape = open_backend("mlx", checkpoint).forward(Batch(tuple(rows))).shape
print(json.dumps([shape, sorted(name for name in sys.modules if "." not in name)]))
"""


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_serving_loads_neither_torch_nor_transformers(tmp_path: Path, kind: str) -> None:
    folder = tiny.build(kind, tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{SERVE}", str(folder)],
        stdout=subprocess.PIPE,
        check=True,
    )
    shape, loaded = json.loads(run.stdout)
    assert shape == [1, 64]
    assert "mlx" in loaded
    assert {"torch", "transformers", "sentence_transformers", "mlx_lm"} & set(loaded) == set()


# Metal


class FakeMetal:
    """Stands in for what devices.py asks of MLX on a Mac, and writes every call down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **info: Any) -> None:
        self.info = {"device_name": "Apple M4 Max", **info}
        self.calls: list[tuple[str, int]] = []
        self.cache = 10**12  # MLX's own limit: nearly all of memory
        self.active = 0
        self.environment: dict[str, str] = {}
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx, "device_info", lambda device: self.info)
        monkeypatch.setattr(mx, "get_active_memory", lambda: self.active)
        monkeypatch.setattr(mx, "set_cache_limit", self.set_cache_limit)
        for name in ("set_memory_limit", "set_wired_limit"):
            monkeypatch.setattr(mx, name, lambda size, name=name: self.calls.append((name, size)))
        monkeypatch.setattr(os, "putenv", self.environment.__setitem__)

    def set_cache_limit(self, size: int) -> int:
        before, self.cache = self.cache, size
        self.calls.append(("set_cache_limit", size))
        return before


GIB = 2**30


def test_metal_is_bounded_before_the_weights_come(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = FakeMetal(monkeypatch, max_recommended_working_set_size=100 * GIB, memory_size=128 * GIB)
    found = devices.find("auto", 0.5)
    assert found.label == "Apple M4 Max (Metal)"
    assert (found.total_bytes, found.limit_bytes, found.half) == (100 * GIB, 50 * GIB, True)
    found.bound(4 * GIB, 3 * GIB)
    assert metal.calls == [
        ("set_cache_limit", 6 * GIB),
        ("set_memory_limit", 50 * GIB),
        ("set_wired_limit", 10 * GIB),
    ]


def test_float32_is_float32_on_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = FakeMetal(monkeypatch, max_recommended_working_set_size=100 * GIB)
    devices.find("gpu", 0.8)
    assert metal.environment == {"MLX_ENABLE_TF32": "0"}


def test_a_second_model_lowers_no_limit_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = FakeMetal(monkeypatch, max_recommended_working_set_size=100 * GIB)
    devices.find("auto", 0.5).bound(4 * GIB, 3 * GIB)
    metal.active = 4 * GIB
    devices.find("auto", 0.5).bound(1 * GIB, 1 * GIB)
    assert metal.cache == 6 * GIB
    assert metal.calls[-1] == ("set_wired_limit", 11 * GIB)


def test_nothing_is_wired_or_kept_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = FakeMetal(monkeypatch, max_recommended_working_set_size=10 * GIB)
    devices.find("auto", 0.5).bound(4 * GIB, 3 * GIB)
    assert metal.calls[0] == ("set_cache_limit", 1 * GIB)
    assert metal.calls[-1] == ("set_wired_limit", 5 * GIB)


def test_a_gpu_that_recommends_nothing_is_not_wired(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = FakeMetal(monkeypatch, memory_size=16 * GIB)
    found = devices.find("auto", 0.5)
    found.bound(1 * GIB, 1 * GIB)
    assert found.limit_bytes == 8 * GIB
    assert [name for name, _ in metal.calls] == ["set_cache_limit", "set_memory_limit"]


@pytest.mark.parametrize(("stored", "expected"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_auto_is_the_stored_type_where_16_bits_are_fast(
    bert: Checkpoint, tmp_path: Path, stored: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    fast = replace(devices.cpu(0.8), half=True, bound=lambda weights, working: asked.append((weights, working)))
    monkeypatch.setattr(devices, "find", lambda *given: fast)
    checkpoint = stored_as(bert, tmp_path, stored)
    card = load(checkpoint).card
    assert card.dtype == expected
    assert asked[0][0] == card.weight_bytes
    assert asked[0][1] > 2048 * 64 * 2
