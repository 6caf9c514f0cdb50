"""Quantised layers as MLX stores them: what config.json says of each, and a linear layer and a table that compute with it.

Knows neither files nor families. MLX says which layers are quantised by the tensors that are there: NAME.weight is
packed where NAME.scales exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
"""mode -> (group size, bits) where config.json leaves them out; all but affine have no other."""
GROUPS, BITS = (32, 64, 128), (1, 2, 3, 4, 5, 6, 8)
"""What affine knows."""
WORD = 32
"""Bits of one packed number."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a layer's weights are packed: `group` neighbours of a row share a scale, each takes `bits`."""

    mode: str
    group: int
    bits: int

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Packing:
        """From config.json's words; raises ValueError for what MLX does not know."""
        mode = said.get("mode") or "affine"
        if mode not in DEFAULTS:
            raise ValueError(f"the quantisation mode {str(mode)[:100]!r}; MLX has {', '.join(DEFAULTS)}")
        default = DEFAULTS[mode]
        group, bits = (said.get(key) or value for key, value in zip(("group_size", "bits"), default))
        known = group in GROUPS and bits in BITS if mode == "affine" else (group, bits) == default
        if not known or isinstance(group, bool) or isinstance(bits, bool):
            raise ValueError(f"{str(bits)[:20]} bits in groups of {str(group)[:20]} for {mode}; MLX has {_sizes(mode)}")
        return cls(mode, group, bits)

    @property
    def affine(self) -> bool:
        return self.mode == "affine"

    def columns(self, width: int) -> int:
        """Packed numbers of a row of `width` weights."""
        return width * self.bits // WORD


@dataclass(frozen=True, slots=True)
class Plan:
    """config.json's `quantization`: one packing for all layers, and what it says of single ones (None: not packed)."""

    default: Packing
    single: dict[str, Packing | None]

    @classmethod
    def read(cls, said: Mapping[str, Any], plain: Callable[[str], str]) -> Plan:
        """plain: a path as config.json has it -> the name its tensors have here. Raises ValueError."""
        default = Packing.read(said)
        single: dict[str, Packing | None] = {}
        for path, one in said.items():
            if isinstance(one, Mapping):  # what it leaves out is the mode's default, not that of the other layers
                single[plain(path)] = Packing.read(one)
            elif isinstance(one, bool):
                single[plain(path)] = default if one else None
        return cls(default, single)

    def of(self, path: str) -> Packing | None:
        return self.single.get(path, self.default)


class Linear(nn.Module):
    """x @ W.T of a packed W (out, in)."""

    def __init__(self, packing: Packing, out: int, width: int, bias: bool) -> None:
        super().__init__()
        _hold(self, packing, out, width)
        if bias:
            self.bias = mx.zeros((out,))
        self._packing = packing

    def __call__(self, x: mx.array) -> mx.array:
        out = mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.get("biases"),
            transpose=True,
            group_size=self._packing.group,
            bits=self._packing.bits,
            mode=self._packing.mode,
        )
        return out + self.bias if "bias" in self else out

    def unpacked(self) -> mx.array:
        """(out, in) float32."""
        return _unpacked(self, self._packing, slice(None), mx.float32)


class Table(nn.Module):
    """Rows of a packed table (rows, width), unpacked in `dtype`: a scale of 8 bits does not say which."""

    def __init__(self, packing: Packing, rows: int, width: int, dtype: mx.Dtype) -> None:
        super().__init__()
        _hold(self, packing, rows, width)
        self._packing, self._dtype = packing, dtype

    def __call__(self, ids: mx.array) -> mx.array:
        return _unpacked(self, self._packing, ids, self._dtype)


def broken(packing: Packing, weight: mx.array, scales: mx.array) -> mx.array:
    """() bool: whether numbers of 8 bits hold a NaN or infinity. Affine's scales are plain floats, looked at elsewhere."""
    if packing.mode == "nvfp4":  # E4M3 has two NaNs
        return ((scales & 127) == 127).any()
    over = (scales >= 254).any()  # E8M0: 255 is its NaN, and 2**127 times a weight of 2 is infinite
    return over | ((weight.view(mx.uint8) & 127) == 127).any() if packing.mode == "mxfp8" else over


def _unpacked(layer: nn.Module, packing: Packing, rows: mx.array | slice, dtype: mx.Dtype) -> mx.array:
    biases = layer.get("biases")
    return mx.dequantize(
        layer.weight[rows],
        layer.scales[rows],
        None if biases is None else biases[rows],
        group_size=packing.group,
        bits=packing.bits,
        mode=packing.mode,
        dtype=dtype,
    )


def _hold(layer: nn.Module, packing: Packing, rows: int, width: int) -> None:
    """Placeholders of the right shapes and types, never computed."""
    groups = (rows, width // packing.group)
    layer.weight = mx.zeros((rows, packing.columns(width)), mx.uint32)
    layer.scales = mx.zeros(groups, mx.float32 if packing.affine else mx.uint8)
    if packing.affine:
        layer.biases = mx.zeros(groups, mx.float32)


def _sizes(mode: str) -> str:
    if mode == "affine":
        return f"{', '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUPS))}"
    group, bits = DEFAULTS[mode]
    return f"{bits} bits in groups of {group}"
