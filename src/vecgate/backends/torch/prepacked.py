"""Linear layers whose weights lie as oneDNN's kernels read them, laid out once instead of by each product.

Few tokens gain most: on two x86-64 cores a query's forward took 0.7 to 0.75 of the time (MiniLM, 10 to 20 tokens), and
a batch of 500 tokens and more the same. Knows modules; no family, no batch.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KEPT = "96"
"""oneDNN keeps the code of so many products, and torch the same of it: one for each count of tokens and shape of a weight,
0.4 MiB each, 0.5 ms to make it anew (measured), so their own limit of 1024 is some 400 MiB. Both read it at their first
use."""
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, str, list[Any], str], torch.Tensor]


def can(place: torch.device, dtype: torch.dtype) -> bool:
    """Where it was tried: float32 on x86-64. Other processors have other kernels, and bfloat16 its own rules."""
    library: Any = torch.backends.mkldnn
    here = platform.machine().lower() in ("x86_64", "amd64")
    return here and place.type == "cpu" and dtype == torch.float32 and bool(library.is_available())


def prepack(model: torch.nn.Module) -> None:
    """Replace the model's linear layers, one after another: no more than one weight is held twice.

    One that shares its weight with another module stays, as does one of a subclass. What stays is copied out of the file
    that it may be mapped from, as a mapping holds the whole file as long as anything uses a part.
    """
    for name in CACHES:
        os.environ.setdefault(name, KEPT)  # noqa: TID251 - read by oneDNN and torch; who set it means it
    uses = Counter(id(module._parameters.get("weight")) for module in model.modules())
    for parent in [module for module in model.modules() if module._modules]:
        for name in list(parent._modules):
            child = parent._modules[name]
            if type(child) is torch.nn.Linear and uses[id(child.weight)] == 1:
                setattr(parent, name, Prepacked(child))
            del child
    for weight in model.parameters():
        if not weight.is_meta:
            weight.data = weight.data.clone()


class Prepacked(torch.nn.Module):
    """A linear layer. `weight` tells the original's shape and type, and holds nothing."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            laid_out = torch.ops.mkldnn._reorder_linear_weight(linear.weight)
        self.weight = torch.nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        self.bias = linear.bias
        self._call = _bound(torch.ops.mkldnn._linear_pointwise.default, laid_out, linear.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self._call(tokens)


def _bound(product: Product, weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tokens: product(tokens, weight, bias, "none", [], "")
