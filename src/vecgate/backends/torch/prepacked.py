"""Linear layers whose weights lie as oneDNN's kernels read them, laid out once instead of by each product.

Few tokens gain most: on two x86-64 cores a query's forward took 0.7 to 0.75 of the time (MiniLM, 10 to 20 tokens), and
a batch of 500 tokens and more the same. Knows modules; no family, no batch.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KEPT = "160"
"""oneDNN keeps the code of so many products, and torch the same of it: one for each count of tokens and shape of a weight,
0.4 MiB each, 0.5 ms to make it anew (measured), so their own limit of 1024 is some 400 MiB. This many are four shapes of
forty lengths of a query. Both read it at their first use."""
ALIKE = (
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
)
"""Names of layers that a module gives the same tokens, one after another, in transformers' models: one product for them all
took 0.9 of the time of three (the linear layers of MiniLM, 6 to 24 tokens), and of a thousand tokens and more the same. Not
for gated layers: the product would be held as long as its second half, and long rows have no room for that."""
LINEAR: Any = torch.ops.mkldnn._linear_pointwise.default


def can(place: torch.device, dtype: torch.dtype) -> bool:
    """Where it was tried: float32 on x86-64. Other processors have other kernels, and bfloat16 its own rules."""
    library: Any = torch.backends.mkldnn
    here = platform.machine().lower() in ("x86_64", "amd64")
    return here and place.type == "cpu" and dtype == torch.float32 and bool(library.is_available())


def prepack(model: torch.nn.Module) -> None:
    """Replace the model's linear layers, one product after another: no more than its weights are held three times.

    One that shares its weight with another module stays, as does one of a subclass. What stays is copied out of the file
    that it may be mapped from, as a mapping holds the whole file as long as anything uses a part.
    """
    for name in CACHES:
        os.environ.setdefault(name, KEPT)  # noqa: TID251 - read by oneDNN and torch; who set it means it
    uses = Counter(id(module._parameters.get("weight")) for module in model.modules())
    for parent in [module for module in model.modules() if module._modules]:
        for names in _together(parent, uses):
            product = _Product([getattr(parent, name) for name in names])
            for at, name in enumerate(names):
                setattr(parent, name, Prepacked(getattr(parent, name), product, at))
    for weight in model.parameters():
        if not weight.is_meta:
            weight.data = weight.data.clone()


def _together(parent: torch.nn.Module, uses: Counter[int]) -> Iterator[Sequence[str]]:
    """The names of the parent's linear layers to replace, those of one product together."""
    left = [
        name
        for name, child in parent._modules.items()
        if type(child) is torch.nn.Linear and uses[id(child.weight)] == 1
    ]
    for names in ALIKE:
        if set(names) <= set(left) and len({_kind(getattr(parent, name)) for name in names}) == 1:
            left = [name for name in left if name not in names]
            yield names
    for name in left:
        yield (name,)


def _kind(linear: torch.nn.Linear) -> tuple[int, bool]:
    return linear.in_features, linear.bias is None


class _Product:
    """One product for layers that are given the same tokens: computed for the first of them, and held until the last."""

    def __init__(self, linears: Sequence[torch.nn.Linear]) -> None:
        with torch.no_grad():
            weights, biases = [tuple(getattr(one, name) for one in linears) for name in ("weight", "bias")]
            self._weight = torch.ops.mkldnn._reorder_linear_weight(_joined(weights))
            self._bias = None if biases[0] is None else _joined(biases)
        self._sizes = [one.out_features for one in linears]
        self._tokens: torch.Tensor | None = None
        self._parts: Sequence[torch.Tensor] = ()

    def part(self, tokens: torch.Tensor, at: int) -> torch.Tensor:
        """(..., in_features) -> (..., out_features) of the layer `at`."""
        if len(self._sizes) == 1:
            return self._computed(tokens)
        if tokens is not self._tokens:
            self._tokens, self._parts = tokens, torch.split(self._computed(tokens), self._sizes, dim=-1)
        part = self._parts[at]
        if at == len(self._sizes) - 1:
            self._tokens, self._parts = None, ()
        return part

    def _computed(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = LINEAR(tokens, self._weight, self._bias, "none", [], "")
        return out


class Prepacked(torch.nn.Module):
    """A linear layer. `weight` tells the original's shape and type, and holds nothing."""

    def __init__(self, linear: torch.nn.Linear, product: _Product, at: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        self.bias = linear.bias
        self._product, self._at = product, at

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self._product.part(tokens, self._at)


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
