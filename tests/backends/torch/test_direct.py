"""Modules without torch's own call: the same results, hooks kept, and each still of the class it was."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch

from vecgate.backends.torch.direct import direct


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(4, 4)
        self.dropout = torch.nn.Dropout(0.5)

    def feed_forward_chunk(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dropout(self.dense(tokens))
        return out

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.feed_forward_chunk(tokens)


@pytest.fixture
def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(Layer(), Layer()).eval()


def test_results_and_classes_stay(model: torch.nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randn(3, 4)
    plain, names = model(tokens), [str(type(one)) for one in model.modules()]
    direct(model)
    layers: Any = model.forward
    monkeypatch.setattr(torch.nn.Module, "_call_impl", None)
    assert torch.equal(layers(tokens), plain)
    assert [str(type(one)) for one in model.modules()] == names
    assert isinstance(model[0], Layer)


def test_a_module_with_a_hook_keeps_it(model: torch.nn.Sequential) -> None:
    seen: list[Any] = []
    model[1].register_forward_hook(lambda module, given, out: seen.append(out.shape))
    direct(model)
    model(torch.randn(3, 4))
    assert seen == [(3, 4)]


def test_a_chunk_s_parameters_are_counted_once(model: torch.nn.Sequential) -> None:
    chunk: Any = Layer.feed_forward_chunk
    before = signature(chunk)
    direct(model)
    assert chunk.__signature__ == before
