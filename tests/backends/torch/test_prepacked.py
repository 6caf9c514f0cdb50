"""Weights laid out for oneDNN: the same products, where nothing but the linear layer itself needs the weight."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from vecgate.backends.torch import prepacked
from vecgate.backends.torch.prepacked import Prepacked, prepack

SIZES = """
import psutil, torch
from vecgate.backends.torch.prepacked import prepack
from vecgate.ram import give_back
layer = torch.nn.Sequential(torch.nn.Linear(96, 96))
prepack(layer)
with torch.inference_mode():
    layer(torch.zeros(1, 96))
    before = psutil.Process().memory_info().rss
    for tokens in range(2, 902):
        layer(torch.zeros(tokens, 96))
give_back()
print(max(0, psutil.Process().memory_info().rss - before))
"""

needs_onednn = pytest.mark.skipif(
    not prepacked.can(torch.device("cpu"), torch.float32), reason="no x86-64, or torch without oneDNN"
)


class Special(torch.nn.Linear):
    """Computes what it likes."""


class Deep(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 12)
        self.inner = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Linear(20, 12, bias=False))
        self.tied = torch.nn.Linear(12, 7)
        self.tied.weight = self.table.weight
        self.special = Special(12, 12)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.tied(self.special(self.inner(tokens)))
        return out


@pytest.fixture
def deep() -> Deep:
    torch.manual_seed(0)
    return Deep().eval()


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 12), (5, 12), (1, 300, 12), (2, 3, 12)])
def test_products_are_the_plain_layer_s(deep: Deep, shape: tuple[int, ...]) -> None:
    tokens = torch.randn(shape)
    with torch.inference_mode():
        plain = deep(tokens)
        prepack(deep)
        assert (deep(tokens) - plain).abs().max() < 1e-6
        assert deep(tokens.transpose(0, -2).contiguous().transpose(0, -2)).shape == plain.shape


@needs_onednn
def test_only_a_linear_layer_with_a_weight_of_its_own_is_replaced(deep: Deep) -> None:
    prepack(deep)
    assert [type(one) for one in deep.inner] == [Prepacked, Prepacked]
    assert (type(deep.tied), type(deep.special)) == (torch.nn.Linear, Special)
    assert deep.tied.weight is deep.table.weight


@needs_onednn
def test_the_plain_weight_is_not_held_and_its_size_is_still_told(deep: Deep) -> None:
    before = sum(one.numel() * one.itemsize for one in deep.parameters())
    held = weakref.ref(deep.inner[0].weight)
    prepack(deep)
    gc.collect()
    assert held() is None
    assert sum(one.numel() * one.itemsize for one in deep.parameters()) == before
    assert deep.inner[0].weight.shape == (20, 12)
    assert deep.inner[0].weight.dtype == torch.float32


class Attention(torch.nn.Module):
    """As transformers' decoders have it: more keys' heads than values', and a product of what comes out."""

    def __init__(self, *, keys_bias: bool = True) -> None:
        super().__init__()
        self.o_proj = torch.nn.Linear(12, 12)
        self.q_proj, self.v_proj = torch.nn.Linear(12, 12), torch.nn.Linear(12, 4)
        self.k_proj = torch.nn.Linear(12, 8, bias=keys_bias)

    def forward(self, tokens: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = self.q_proj(tokens), self.k_proj(others), self.v_proj(tokens)
        return self.o_proj(query), key, value


@needs_onednn
@pytest.mark.parametrize("keys_bias", [True, False])
def test_layers_that_are_given_the_same_tokens_are_one_product(
    keys_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = Attention(keys_bias=keys_bias).eval()
    calls: list[tuple[int, ...]] = []
    plain = prepacked.LINEAR

    def counted(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        out: torch.Tensor = plain(tokens, *rest)
        calls.append(tuple(out.shape))
        return out

    monkeypatch.setattr(prepacked, "LINEAR", counted)
    tokens, others = torch.randn(5, 12), torch.randn(5, 12)
    with torch.inference_mode():
        cases = [(tokens, tokens), (tokens, others), (others, others), (tokens, tokens)]
        wanted = [layer(*case) for case in cases]
        prepack(layer)
        for case, outs in zip(cases, wanted, strict=True):
            calls.clear()
            assert all((got - out).abs().max() < 1e-6 for got, out in zip(layer(*case), outs, strict=True))
            if case[0] is case[1]:
                assert calls == ([(5, 24), (5, 12)] if keys_bias else [(5, 12), (5, 8), (5, 4), (5, 12)])
        held = weakref.ref(made := torch.randn(5, 12))
        layer(made, made)
        del made
        assert held() is None


@needs_onednn
def test_no_weight_stays_in_the_file_it_came_from(deep: Deep, tmp_path: Path) -> None:
    torch.save(deep.state_dict(), tmp_path / "weights")
    deep.load_state_dict(torch.load(tmp_path / "weights", mmap=True), assign=True)
    held = [weakref.ref(one.untyped_storage()) for one in deep.parameters()]
    before = deep.table.weight.detach().clone()
    prepack(deep)
    gc.collect()
    assert [one() for one in held] == [None] * len(held)
    assert torch.equal(deep.table.weight, before)


@needs_onednn
def test_batches_of_ever_new_sizes_leave_a_bounded_memory() -> None:
    """In a process of its own, as oneDNN counts from its first use."""
    grown = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True, check=True, timeout=120)
    assert 0 <= int(grown.stdout) < 110 * 2**20  # they hold 70; without a bound 900 of them hold 400


@pytest.mark.parametrize(
    ("machine", "place", "dtype"),
    [("arm64", "cpu", torch.float32), ("x86_64", "mps", torch.float32), ("x86_64", "cpu", torch.bfloat16)],
)
def test_elsewhere_layers_stay_as_they_are(
    machine: str, place: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert not prepacked.can(torch.device(place), dtype)
