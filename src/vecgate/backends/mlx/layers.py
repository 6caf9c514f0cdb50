"""What several families share: the padded batch, attention over it, activations.

Knows arrays, neither files nor a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

Activation = Callable[[mx.array], mx.array]

FUSED_WIDTHS = (64, 72, 80, 96, 128)
"""Head widths for which Metal has a fused kernel; for others (MiniLM's 32) all scores lie in memory at once."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch laid out: ids, kinds (token types): (B, L) int32, padded right; lengths, prompts: (B, 1) int32.

    mask: (B, 1, 1, L), True where a key is real; None without padding. Boolean, never added: an additive mask turns
    fully masked rows and 16-bit types into NaN.
    """

    ids: mx.array
    kinds: mx.array
    lengths: mx.array
    prompts: mx.array
    mask: mx.array | None


def attend(
    q: mx.array, k: mx.array, v: mx.array, heads: int, mask: mx.array | None, turn: Activation | None = None
) -> mx.array:
    """(B, L, H) of three (B, L, H): softmax in float32, scores over the root of a head's width. turn: `rotary`'s."""
    rows, length, hidden = q.shape
    width = hidden // heads
    q, k, v = (x.reshape(rows, length, heads, width).transpose(0, 2, 1, 3) for x in (q, k, v))
    if turn is not None:
        q, k = turn(q), turn(k)
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=width**-0.5, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(rows, length, hidden)


def rotary(base: float, width: int, factor: float = 1.0) -> Activation:
    """Rotary positions for (B, heads, L, D): the first `width` of a head's numbers are turned, half against half.

    factor: positions are divided by it. The frequencies are computed and rounded as torch does: MLX's own are off by
    more with every position.
    """
    powers = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    freqs = mx.array(np.float32(base) ** powers * np.float32(factor))
    return partial(mx.fast.rope, dims=width, traditional=False, base=None, scale=1.0, offset=0, freqs=freqs)


def token_bytes(hidden: int, inner: int, heads: int, longest: int, width: int) -> int:
    """An upper estimate of what one token of a batch holds at its fullest, in a layer whose numbers take `width` bytes.

    Input, residual, q, k, v, context, two of the feed-forward's; its scores and their softmax where attention is not
    fused; the last hidden state and its masked copy in float32.
    """
    scores = 0 if hidden // heads in FUSED_WIDTHS else 2 * heads * longest
    return (6 * hidden + 2 * inner + scores) * width + 2 * 4 * hidden


# Compiled, an activation is one kernel instead of seven. Only elementwise functions may be compiled without shapes: a
# biased Linear under `shapeless` gives wrong numbers on the second shape. Computed in float32, as torch does.
_fuse = partial(mx.compile, shapeless=True)


@_fuse
def gelu(x: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    return (wide * (1 + mx.erf(wide * math.sqrt(0.5))) / 2).astype(x.dtype)


@_fuse
def gelu_tanh(x: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (wide * (1 + mx.tanh(inner)) / 2).astype(x.dtype)


@_fuse
def silu(x: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    return (wide * mx.sigmoid(wide)).astype(x.dtype)


def relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def identity(x: mx.array) -> mx.array:
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "identity": identity,
    "linear": identity,
    "relu": relu,
    "sigmoid": mx.sigmoid,
    "silu": silu,
    "swish": silu,
    "tanh": mx.tanh,
}
"""By transformers' names and, in lower case, by those of torch.nn's classes."""
