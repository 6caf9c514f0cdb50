"""The contract and the CPU's rows on this machine's GPU, where it computes: Metal by MLX, MPS or CUDA by torch."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests import gpu
from tests.backends.contract import Contract, made_rows
from vecgate.backends import open_backend
from vecgate.core import Batch, Checkpoint, Task, Tokens
from vecgate.engine.checkpoint import read
from vecgate.traits import Backend


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    from tests import tiny  # here: it takes torch and transformers

    return cache(lambda kind: read(tiny.build(kind, tmp_path_factory.mktemp(kind))))


def computing(library: str) -> str:
    """The GPU's name for the library; skips where there is none, or none that computes."""
    if not Path("/System/Library").exists() and not Path("/dev/nvidiactl").exists():
        pytest.skip("no GPU here")  # without asking, which takes seconds
    told = gpu.found(library)
    if told.device == "cpu":
        pytest.skip(f"{library}: {told.why}")
    return told.device


class OnTheGPU(Contract):
    """float32, so that the CPU's rows are the measure; a GPU's products are less exact than a CPU's."""

    library: ClassVar[str]
    kind = "bert"
    tolerance = 1e-4

    @pytest.fixture
    def device(self) -> str:
        return computing(self.library)

    @pytest.fixture
    def checkpoint(self, device: str, tinies: Callable[[str], Checkpoint]) -> Checkpoint:
        return tinies(self.kind)

    @pytest.fixture
    def backend(self, device: str, checkpoint: Checkpoint) -> Iterator[Backend]:
        opened = open_backend(self.library, checkpoint, device=device, dtype="float32")
        yield opened
        opened.close()

    @pytest.fixture
    def rows(self, checkpoint: Checkpoint) -> tuple[Tokens, ...]:
        lengths = (2, 3, 16, 17, 33, 33, 50, checkpoint.max_tokens)
        return made_rows(lengths, checkpoint.config["vocab_size"], task=checkpoint.task)

    def test_rows_are_the_cpus(self, backend: Backend, checkpoint: Checkpoint, rows: tuple[Tokens, ...]) -> None:
        got = backend.forward(Batch(rows))
        own = open_backend(self.library, checkpoint, device="cpu", dtype="float32")
        np.testing.assert_allclose(got, own.forward(Batch(rows)), rtol=1e-3, atol=1e-3)
        own.close()


class TestBertByMLX(OnTheGPU):
    library = "mlx"


class TestQwen3ByMLX(OnTheGPU):
    library = "mlx"
    kind = "qwen3"


class TestRerankerByMLX(OnTheGPU):
    library = "mlx"
    kind = "bert-reranker"
    task: Task = "rerank"


class TestBertByTorch(OnTheGPU):
    library = "torch"


class TestQwen3ByTorch(OnTheGPU):
    library = "torch"
    kind = "qwen3"


class TestRerankerByTorch(OnTheGPU):
    library = "torch"
    kind = "bert-reranker"
    task: Task = "rerank"
