"""From a checkpoint's safetensors files to a whole model, or one line that names the file and the tensor that is wrong.

Knows files and arrays; what a family's tensors are called is the family's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from vecgate.backends.mlx.layers import ACTIVATIONS, Activation
from vecgate.backends.mlx.packed import WORD, Linear, Packing, Plan, Table, broken
from vecgate.backends.mlx.pooling import Layer
from vecgate.core import Checkpoint, Dense
from vecgate.errors import CheckpointError

T = TypeVar("T", int, float, str)
CHUNK = 32
"""Tensors evaluated at once: a cast then never holds the whole model twice."""
EXACT = "head."
"""What of a model stays in float32 whatever it computes in: a logit in bfloat16 has steps of 0.06 at 10."""
DENSE = "dense."
"""What mlx-embeddings calls EmbeddingGemma's Dense layers, which it puts among the weights."""
BUFFERS = ("rotary_emb.inv_freq",)
"""Endings of what old files hold and every model computes."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A part of the model, `ours` (a path), that is some `rows` of a larger tensor of the file (None: all): of the first
    of `sources` that is there."""

    ours: str
    sources: tuple[str, ...]
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """How a family's tensors are called in files.

    ours: (part of the model's name, part of the file's) pairs, applied in order. prefixes: what a file may put before
    them. old: (old ending, today's) pairs. spare: openings, after the prefix, of tensors that may be left over, such as
    the head of the pre-training. picks: parts that are cut out of other tensors. dense: whether there
    may be Dense layers among the weights.
    """

    ours: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ()
    old: tuple[tuple[str, str], ...] = ()
    spare: tuple[str, ...] = ()
    picks: tuple[Pick, ...] = ()
    dense: bool = False

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

    def spares(self, plain: str) -> bool:
        return (self.dense and plain.startswith(DENSE)) or plain.startswith(self.spare) or plain.endswith(BUFFERS)


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


def read(checkpoint: Checkpoint, names: Names) -> dict[str, Stored]:
    """Every tensor of every file by its plain name, none of them read yet."""
    stored: dict[str, Stored] = {}
    for file in checkpoint.weights:
        for name, array in _load(file).items():
            plain = names.plain(name)
            if plain in stored:
                other = stored[plain]
                raise CheckpointError(f"{file} holds {name!r}, which {other.file.name} holds as {other.name!r} too.")
            stored[plain] = Stored(file, name, array)
    return stored


def needed_bytes(stored: Mapping[str, Stored], names: Names, dtype: mx.Dtype) -> int:
    """What the tensors will take once they are cast; of what is packed, only the scales are."""
    arrays = [found.array for plain, found in stored.items() if not names.spares(plain)]
    return sum(x.size * dtype.size if mx.issubdtype(x.dtype, mx.floating) else x.nbytes for x in arrays)


def fill(model: nn.Module, checkpoint: Checkpoint, names: Names, stored: Mapping[str, Stored], dtype: mx.Dtype) -> int:
    """Give the model every tensor it has, cast to dtype and evaluated on this thread; returns their bytes.

    A tensor that is missing, of another shape or no float, holds NaN or infinity, and one the model has no place for
    and `names` does not spare, raises CheckpointError.
    """
    packings = _pack(model, checkpoint, names, stored, dtype)
    ready: dict[str, mx.array] = {}
    used: dict[str, Stored] = {}
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for name, wanted in parameters.items():
        called, rows = _source(name, names, stored)
        if called not in stored:
            files = checkpoint.weights[0] if len(checkpoint.weights) == 1 else f"{checkpoint.folder}: its shards"
            raise CheckpointError(f"{files} lacks the {checkpoint.family} tensor {called!r}.")
        used[called] = stored[called]
        ready[name] = _fitted(stored[called], rows, wanted, mx.float32 if name.startswith(EXACT) else dtype)
    for called, extra in sorted(stored.items()):
        if called not in used and not names.spares(called):
            raise CheckpointError(
                f"{extra.file} holds the tensor {extra.name!r}, for which the {checkpoint.family} model that "
                "config.json describes has no place."
            )
    model.update(tree_unflatten(list(ready.items())))
    sources = {name: stored[_source(name, names, stored)[0]] for name in ready}
    _evaluate(ready, sources)
    _check_packed(ready, packings, sources)
    return sum(array.nbytes for array in ready.values())


def read_dense(layer: Dense, width: int) -> Layer:
    """sentence-transformers' Dense in float32. width: how many numbers what is before it gives."""
    activation = activation_of(layer.activation, layer.weights.parent / "config.json")
    stored = {name: Stored(layer.weights, name, array) for name, array in _load(layer.weights).items()}
    wanted = ("linear.weight", "linear.bias") if layer.bias else ("linear.weight",)
    for name in wanted:
        if name not in stored:
            raise CheckpointError(f"{layer.weights} lacks the tensor {name!r}.")
    weight = stored["linear.weight"].array
    if weight.ndim != 2:
        raise CheckpointError(f"{layer.weights}: 'linear.weight' has the shape {weight.shape}, not (out, in).")
    if weight.shape[1] != width:
        raise CheckpointError(
            f"{layer.weights}: 'linear.weight' takes {weight.shape[1]} numbers, what is before it gives {width}."
        )
    shapes = (weight.shape, weight.shape[:1])
    ready = {name: _cast(stored[name], shape, mx.float32) for name, shape in zip(wanted, shapes)}
    _evaluate(ready, stored)
    return ready["linear.weight"], ready.get("linear.bias"), activation


def inner_dense(checkpoint: Checkpoint, names: Names, stored: Mapping[str, Stored], hidden: int) -> tuple[Layer, ...]:
    """The Dense layers among the weights, in float32; they have no activation."""
    mine = {plain: found for plain, found in stored.items() if names.dense and plain.startswith(DENSE)}
    if not mine:
        return ()
    model, width = nn.Module(), hidden
    model.dense = []
    while (found := mine.get(f"{DENSE}{len(model.dense)}.weight")) is not None:
        out = found.array.shape[0]
        model.dense.append(nn.Linear(width, out, bias=f"{DENSE}{len(model.dense)}.bias" in mine))
        width = out
    fill(model, checkpoint, Names(prefixes=names.prefixes), mine, mx.float32)
    weights = [layer.unpacked() if isinstance(layer, Linear) else layer.weight for layer in model.dense]
    return tuple((weight, layer.get("bias"), ACTIVATIONS["identity"]) for weight, layer in zip(weights, model.dense))


def activation_of(name: str, file: Path) -> Activation:
    """The function of transformers' name or of a class of torch.nn; raises CheckpointError naming the file."""
    found = ACTIVATIONS.get(name.rpartition(".")[2].lower())
    if found is None:
        raise CheckpointError(f"{file} asks for the activation {name!r}; on MLX there are {', '.join(ACTIVATIONS)}.")
    return found


def _load(file: Path) -> dict[str, mx.array]:
    """Lazy arrays: what nobody evaluates is never read."""
    try:
        loaded = mx.load(str(file), format="safetensors")
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read as safetensors ({first_line(error)}); fetch it again.") from error
    assert isinstance(loaded, dict)
    return loaded


def _source(ours: str, names: Names, stored: Mapping[str, Stored]) -> tuple[str, tuple[int, ...] | None]:
    """(the plain name of the tensor that a parameter comes from, the rows to take of it)."""
    for pick in names.picks:
        if ours.startswith(pick.ours + "."):
            part = ours.removeprefix(pick.ours)
            there = [source for source in pick.sources if f"{source}.weight" in stored]
            return (there or pick.sources)[0] + part, pick.rows
    return names.in_file(ours), None


def _fitted(stored: Stored, rows: tuple[int, ...] | None, wanted: mx.array, dtype: mx.Dtype) -> mx.array:
    """The tensor, or its rows, in the shape that is wanted: floats in this type, packed numbers as they are."""
    shape = wanted.shape if rows is None else (max(stored.array.shape[0], max(rows) + 1), *wanted.shape[1:])
    if not mx.issubdtype(wanted.dtype, mx.floating):
        _check(stored, shape, wanted.dtype)
        array = stored.array
    else:
        array = _cast(stored, shape, dtype)
    return array if rows is None else mx.take(array, mx.array(rows), axis=0, stream=mx.cpu)


def _cast(stored: Stored, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    _check(stored, shape, None)
    return stored.array.astype(dtype, stream=mx.cpu)  # files are read there, and a GPU has no float64


def _check(stored: Stored, shape: tuple[int, ...], dtype: mx.Dtype | None) -> None:
    """dtype: what it must be; None: any float."""
    if stored.array.shape != shape:
        raise CheckpointError(f"{stored.file}: {stored.name!r} has the shape {stored.array.shape}, not {shape}.")
    fits = mx.issubdtype(stored.array.dtype, mx.floating) if dtype is None else stored.array.dtype == dtype
    if not fits:
        wanted = "floats" if dtype is None else f"the {dtype} of packed weights"
        raise CheckpointError(f"{stored.file}: {stored.name!r} holds {stored.array.dtype}, not {wanted}.")


def _evaluate(ready: Mapping[str, mx.array], sources: Mapping[str, Stored]) -> None:
    """Here, since an array that is still lazy can only be evaluated by the thread that made it."""
    names = list(ready)
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        floats = [name for name in chunk if mx.issubdtype(ready[name].dtype, mx.floating)]
        finite = [mx.isfinite(ready[name]).all() for name in floats]
        _computed([*(ready[name] for name in chunk), *finite], sources[chunk[0]].file)
        bad = next((name for name, fine in zip(floats, finite, strict=True) if not fine.item()), None)
        if bad is not None:
            raise CheckpointError(_not_finite(sources[bad], ready[bad].dtype))


def _check_packed(
    ready: Mapping[str, mx.array], packings: Mapping[str, Packing], sources: Mapping[str, Stored]
) -> None:
    """Raise for the NaNs that no float shows: those of 8-bit scales and weights."""
    odd = {f"{path}.scales": packing for path, packing in packings.items() if not packing.affine}
    for name, packing in odd.items():
        if broken(packing, ready[name.removesuffix("scales") + "weight"], ready[name]).item():
            raise CheckpointError(_not_finite(sources[name], sources[name].array.dtype))


def _not_finite(stored: Stored, dtype: mx.Dtype) -> str:
    floats = mx.issubdtype(stored.array.dtype, mx.floating)
    whole = floats and mx.isfinite(stored.array, stream=mx.cpu).all(stream=mx.cpu).item()
    turned = f" once it is {str(dtype).removeprefix('mlx.core.')}" if whole else ""
    return f"{stored.file}: {stored.name!r} holds NaN or infinity{turned}; fetch it again."


def _computed(arrays: Sequence[mx.array], file: Path) -> None:
    try:
        mx.eval(*arrays)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file.parent}: its weights can't be read ({first_line(error)}); fetch them again."
        ) from error


# what is quantised


def _pack(
    model: nn.Module, checkpoint: Checkpoint, names: Names, stored: Mapping[str, Stored], dtype: mx.Dtype
) -> dict[str, Packing]:
    """Put packed layers in the place of those whose scales are in the files; returns the packing of each path."""
    plan = _plan(checkpoint, names)
    packings: dict[str, Packing] = {}
    layers: list[tuple[str, nn.Module]] = []
    leaves: dict[str, nn.Module] = dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module))
    for path, layer in leaves.items():
        if not isinstance(layer, nn.Linear | nn.Embedding):
            continue
        called = _source(f"{path}.weight", names, stored)[0].removesuffix(".weight")
        packing = _packing(called, layer.weight.shape[1], checkpoint, plan, stored)
        if packing is not None:
            packings[path] = packing
            layers.append((path, _packed(layer, packing, mx.float32 if path.startswith(EXACT) else dtype)))
    model.update_modules(tree_unflatten(layers))
    return packings


def _plan(checkpoint: Checkpoint, names: Names) -> Plan | None:
    if checkpoint.quantization is None:
        return None

    def plain(path: str) -> str:
        return names.plain(f"{path}.weight").removesuffix(".weight")

    try:
        return Plan.read(checkpoint.quantization, plain)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} asks for {error}.") from error


def _packing(
    path: str, width: int, checkpoint: Checkpoint, plan: Plan | None, stored: Mapping[str, Stored]
) -> Packing | None:
    """How the files hold the layer (None: unpacked); raises CheckpointError where config.json says otherwise."""
    config = checkpoint.folder / "config.json"
    weight, scales = stored.get(f"{path}.weight"), stored.get(f"{path}.scales")
    if weight is None or scales is None:
        wanted = plan is not None and plan.single.get(path) is not None
        if wanted and weight is not None:
            raise CheckpointError(f"{weight.file} lacks the tensor {path + '.scales'!r}, which {config} announces.")
        return None
    packing = None if plan is None else plan.of(path)
    if packing is None:
        raise CheckpointError(f"{scales.file} holds {scales.name!r}, but {config} does not say that it is quantised.")
    columns, groups = weight.array.shape[-1], scales.array.shape[-1]
    if columns != packing.columns(width):
        raise CheckpointError(
            f"{weight.file}: {weight.name!r} holds {columns * WORD / width:g} bits a weight, {config} says {packing.bits}."
        )
    if groups * packing.group != width:
        raise CheckpointError(
            f"{scales.file}: {scales.name!r} has a scale for every {width / max(groups, 1):g} weights, "
            f"{config} says {packing.group}."
        )
    return packing


def _packed(layer: nn.Linear | nn.Embedding, packing: Packing, dtype: mx.Dtype) -> nn.Module:
    rows, width = layer.weight.shape
    if isinstance(layer, nn.Embedding):
        return Table(packing, rows, width, dtype)
    return Linear(packing, rows, width, "bias" in layer)


def first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
