"""From a checkpoint's safetensors files to a whole model, or one line that names the file and the tensor that is wrong.

Knows files and arrays; what a family's tensors are called is the family's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from vecgate.backends.mlx.layers import ACTIVATIONS, Activation
from vecgate.backends.mlx.pooling import Layer
from vecgate.core import Checkpoint, Dense
from vecgate.errors import CheckpointError

T = TypeVar("T", int, float, str)
CHUNK = 32
"""Tensors evaluated at once: a cast then never holds the whole model twice."""


@dataclass(frozen=True, slots=True)
class Names:
    """How a family's tensors are called in files.

    ours: (part of the model's name, part of the file's) pairs, applied in order. prefixes: what a file may put before
    them. old: (old ending, today's) pairs. spare: openings, after the prefix, of tensors that may be left over, such as
    the head of the pre-training.
    """

    ours: tuple[tuple[str, str], ...]
    prefixes: tuple[str, ...] = ()
    old: tuple[tuple[str, str], ...] = ()
    spare: tuple[str, ...] = ()

    def in_file(self, ours: str) -> str:
        for mine, theirs in self.ours:
            ours = ours.replace(mine, theirs)
        return ours

    def plain(self, found: str) -> str:
        """A file's name without its prefix, in today's spelling."""
        for prefix in self.prefixes:
            found = found.removeprefix(prefix)
        for old, new in self.old:
            if found.endswith(old):
                return found.removesuffix(old) + new
        return found


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file, not yet read."""

    file: Path
    name: str
    array: mx.array


def setting(checkpoint: Checkpoint, key: str, kind: Callable[..., T], default: T | None = None) -> T:
    """config.json's value as this kind; raises CheckpointError where it is missing, of another kind, or no count."""
    value = checkpoint.config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        said = "lacks" if value is None else f"has {str(value)[:100]!r} for"
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} {said} {key!r}; fetch it again.")
    try:
        found = kind(value)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} has {value!r} for {key!r}.") from error
    if isinstance(found, int) and found < 1:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} has {found} for {key!r}; it must be 1 or more.")
    return found


def fill(model: nn.Module, checkpoint: Checkpoint, names: Names, dtype: mx.Dtype) -> int:
    """Give the model every tensor it has, cast to dtype and evaluated on this thread; returns their bytes.

    A tensor that is missing, of another shape or no float, and one the model has no place for and `names` does not
    spare, raises CheckpointError.
    """
    stored = _stored(checkpoint, names)
    ready: list[tuple[str, mx.array]] = []
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, wanted in parameters.items():
        called = names.in_file(name)
        if called not in stored:
            files = checkpoint.weights[0] if len(checkpoint.weights) == 1 else f"{checkpoint.folder}: its shards"
            raise CheckpointError(f"{files} lacks the {checkpoint.family} tensor {called!r}.")
        found = stored.pop(called)
        ready.append((name, _cast(found, wanted.shape, dtype)))
    for called, extra in sorted(stored.items()):
        if not called.startswith(names.spare):
            raise CheckpointError(
                f"{extra.file} holds the tensor {extra.name!r}, for which the {checkpoint.family} model that "
                "config.json describes has no place."
            )
    model.update(tree_unflatten(ready))
    _evaluate([array for _, array in ready], checkpoint.weights[0])
    return sum(array.nbytes for _, array in ready)


def read_dense(layer: Dense) -> Layer:
    """sentence-transformers' Dense in float32."""
    activation = activation_of(layer.activation, layer.weights.parent / "config.json")
    stored = {name: Stored(layer.weights, name, array) for name, array in _load(layer.weights).items()}
    wanted = ("linear.weight", "linear.bias") if layer.bias else ("linear.weight",)
    for name in wanted:
        if name not in stored:
            raise CheckpointError(f"{layer.weights} lacks the tensor {name!r}.")
    weight = stored["linear.weight"].array
    if weight.ndim != 2:
        raise CheckpointError(f"{layer.weights}: 'linear.weight' has the shape {weight.shape}, not (out, in).")
    shapes = (weight.shape, weight.shape[:1])
    arrays = [_cast(stored[name], shape, mx.float32) for name, shape in zip(wanted, shapes, strict=False)]
    _evaluate(arrays, layer.weights)
    return arrays[0], arrays[1] if layer.bias else None, activation


def activation_of(name: str, file: Path) -> Activation:
    """The function of transformers' name or of a class of torch.nn; raises CheckpointError naming the file."""
    found = ACTIVATIONS.get(name.rpartition(".")[2].lower())
    if found is None:
        raise CheckpointError(f"{file} asks for the activation {name!r}; on MLX there are {', '.join(ACTIVATIONS)}.")
    return found


def _stored(checkpoint: Checkpoint, names: Names) -> dict[str, Stored]:
    """Every tensor of every file by its plain name."""
    stored: dict[str, Stored] = {}
    for file in checkpoint.weights:
        for name, array in _load(file).items():
            plain = names.plain(name)
            if plain in stored:
                other = stored[plain]
                raise CheckpointError(f"{file} holds {name!r}, which {other.file.name} holds as {other.name!r} too.")
            stored[plain] = Stored(file, name, array)
    return stored


def _load(file: Path) -> dict[str, mx.array]:
    """Lazy arrays: what nobody evaluates is never read."""
    try:
        loaded = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read as safetensors ({first_line(error)}); fetch it again.") from error
    assert isinstance(loaded, dict)
    return loaded


def _cast(stored: Stored, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    if stored.array.shape != shape:
        raise CheckpointError(f"{stored.file}: {stored.name!r} has the shape {stored.array.shape}, not {shape}.")
    if not mx.issubdtype(stored.array.dtype, mx.floating):
        raise CheckpointError(f"{stored.file}: {stored.name!r} holds {stored.array.dtype}, not floats.")
    return stored.array.astype(dtype, stream=mx.cpu)  # files are read there, and a GPU has no float64


def _evaluate(arrays: Sequence[mx.array], file: Path) -> None:
    """Here, since an array that is still lazy can only be evaluated by the thread that made it."""
    try:
        for start in range(0, len(arrays), CHUNK):
            mx.eval(*arrays[start : start + CHUNK])
    except RuntimeError as error:
        raise CheckpointError(
            f"{file.parent}: its weights can't be read ({first_line(error)}); fetch them again."
        ) from error


def first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
