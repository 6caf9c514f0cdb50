"""The MLX backend: pad -> family -> pool -> numpy, all on the one thread that loaded the model.

MLX's streams belong to a thread, so load, forward, trim and close are called on the same one. Knows nothing of texts,
engines or HTTP: token ids go in, float32 rows come out. What it computes with is one family file, named by FAMILIES.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from vecgate.backends.mlx import FAMILIES, devices, weights
from vecgate.backends.mlx.devices import Device
from vecgate.backends.mlx.layers import Rows
from vecgate.backends.mlx.pooling import Layer, dense, pool
from vecgate.core import BackendCard, Batch, Checkpoint, Memory, Tokens, Vectors
from vecgate.errors import BackendFailed, CheckpointError, ConfigError, DeviceLost, NoRoom, OutOfMemory

log = logging.getLogger("vecgate.mlx")

LEAST_TOKENS = 512
"""A model that has no room for a row of so many is refused; a longer row without room fails alone."""
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
FULL = ("unable to allocate", "attempting to allocate", "resource limit", "insufficient memory", "outofmemory")
"""What MLX's errors say, in lower case, where memory or buffers ran out."""
LOST = "[METAL]"
"""What they say once a command buffer failed: its stream stays poisoned, and later results may be unwritten memory."""

Forward = Callable[[Rows], mx.array]


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory_fraction: float = 0.8,
    others: Sequence[Checkpoint] = (),
) -> MLXBackend:
    """Open the checkpoint. device: auto | cpu | gpu. dtype: auto | float32 | bfloat16 | float16. others: models
    that need room beside it and that MLX does not count.

    Raises ConfigError for a device or dtype that can't be had, NoRoom for a model that does not fit memory_fraction of the
    device's memory (where only its longest rows do not, they fail), CheckpointError for files that do not make the whole model.
    """
    family = _family(checkpoint)
    where = devices.find(device, memory_fraction)
    compute = _dtype(dtype, checkpoint, where, getattr(family, "REFUSED", {}))
    config = family.Config.read(checkpoint)
    stored = weights.read(checkpoint, config.names)
    needed = weights.needed_bytes(stored, config.names, compute)
    theirs = sum(_weight_bytes(one, compute) for one in others)
    batch_tokens, longest = _room(
        checkpoint, where, needed, theirs, lambda row: row * config.token_bytes(row, compute.size)
    )
    devices.end_with_thread()
    mx.set_default_device(where.place)
    where.bound(needed, batch_tokens * config.token_bytes(longest, compute.size))
    model = family.Model(config)
    held = weights.fill(model, checkpoint, config.names, stored, compute)
    layers: tuple[Layer, ...] = ()
    for layer in checkpoint.dense:
        layers = (*layers, weights.read_dense(layer, _dimensions(checkpoint, config.hidden, layers)))
    layers = layers or weights.inner_dense(checkpoint, config.names, stored, config.hidden)
    if not 0 <= checkpoint.pad_id < config.vocabulary:
        raise CheckpointError(f"{checkpoint.name}: the pad id {checkpoint.pad_id} is not in its vocabulary.")
    card = BackendCard(
        backend="mlx",
        device=where.label,
        dtype=str(compute).removeprefix("mlx.core."),
        dimensions=_dimensions(checkpoint, config.hidden, layers),
        pad_lengths=devices.lengths(checkpoint.max_tokens),
        batch_tokens=batch_tokens,
        weight_bytes=held + sum(weight.nbytes + (0 if bias is None else bias.nbytes) for weight, bias, _ in layers),
        tries_budgets=True,
    )
    return MLXBackend(checkpoint, card, where, model, layers, config.vocabulary, longest)


class MLXBackend:
    """One model on one device. longest: the tokens of the longest row that there is room for."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        card: BackendCard,
        device: Device,
        model: Forward,
        layers: tuple[Layer, ...],
        vocabulary: int,
        longest: int,
    ) -> None:
        self.card = card
        self._checkpoint = checkpoint
        self._device = device
        self._model: Forward | None = model
        self._layers = layers
        self._vocabulary = vocabulary
        self._longest = longest

    def forward(self, batch: Batch) -> Vectors:
        model = self._model
        if model is None:
            raise BackendFailed("The model is closed.")
        if not batch.rows:
            return np.zeros((0, self.card.dimensions), np.float32)
        self._check(batch)
        try:
            out = self._rows(model, self._laid_out(batch.rows))
            mx.eval(out)  # once a batch: each evaluation has a fixed cost
            mx.synchronize()  # an evaluation may return before the GPU says that it failed
            return np.array(out)
        except (RuntimeError, MemoryError) as error:
            if LOST in str(error):
                raise DeviceLost(f"Metal failed ({weights.first_line(error)}).") from error
            raise _failure(error, batch) from error

    def memory(self) -> Memory:
        return Memory(mx.get_active_memory(), mx.get_cache_memory(), self._device.limit_bytes)

    def trim(self) -> None:
        mx.clear_cache()

    def close(self) -> None:
        self._model = None
        self._layers = ()
        mx.clear_cache()

    def _check(self, batch: Batch) -> None:
        """MLX answers an id outside the table with noise or with the end of the process."""
        most = self._checkpoint.max_tokens
        for row in batch.rows:
            if not 0 < len(row) <= most:
                raise BackendFailed(f"A row of {len(row)} tokens can't be computed: the model takes 1 to {most}.")
            if len(row) > self._longest:
                raise OutOfMemory(f"The device has no room for a row of {len(row)} tokens, only for {self._longest}.")
            if row.ids.min() < 0 or row.ids.max() >= self._vocabulary:
                raise BackendFailed(f"A token id is outside the model's vocabulary of {self._vocabulary}.")

    def _rows(self, model: Forward, rows: Rows) -> mx.array:
        """(B, D) float32 on the device: numpy has no bfloat16."""
        out = model(rows)
        if self._checkpoint.task == "rerank":
            return out.astype(mx.float32)
        pooled = pool(out, rows, self._checkpoint.pooling, include_prompt=self._checkpoint.include_prompt)
        return dense(pooled, self._layers)

    def _laid_out(self, rows: Sequence[Tokens]) -> Rows:
        lengths = np.array([[len(row)] for row in rows], np.int32)
        assert self.card.pad_lengths is not None
        width = next(length for length in self.card.pad_lengths if length >= lengths.max())
        ids = np.full((len(rows), width), self._checkpoint.pad_id, np.int32)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row.ids
        real: NDArray[np.bool_] = np.arange(width) < lengths
        return Rows(
            ids=mx.array(ids),
            kinds=mx.array(self._kinds(rows, width)),
            lengths=mx.array(lengths),
            prompts=mx.array(np.array([[row.prompt] for row in rows], np.int32)),
            mask=None if real.all() else mx.array(real[:, None, None, :]),
        )

    def _kinds(self, rows: Sequence[Tokens], width: int) -> NDArray[np.int32]:
        """(B, L) token types: 1 from where segment B starts, in a model that tells segments apart."""
        starts = [width if row.second is None else row.second for row in rows]
        if not self._checkpoint.token_types:
            starts = [width] * len(rows)
        return (np.arange(width) >= np.array(starts)[:, None]).astype(np.int32)


def _family(checkpoint: Checkpoint) -> Any:
    """The family's module; raises CheckpointError where this checkpoint can't be served on MLX."""
    if checkpoint.family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise CheckpointError(
            f"{checkpoint.name} is of the family {checkpoint.family!r}; on MLX there are {known}. Use BACKEND=torch."
        )
    method = (checkpoint.quantization or {}).get("quant_method")
    if method is not None or checkpoint.config.get("quantize_activations"):
        raise CheckpointError(
            f"{checkpoint.name} is quantised with {method or 'activations too'}, which can't be followed on MLX; use the "
            "unquantised model, or one converted with mlx_lm.convert."
        )
    return import_module(FAMILIES[checkpoint.family])


def _dtype(name: str, checkpoint: Checkpoint, device: Device, refused: Mapping[str, str]) -> mx.Dtype:
    """What to compute in. auto: the stored type; float32 on a CPU, where 16-bit types are 20 times slower.

    refused: types that the family can't be computed in, and why.
    """
    if name == "auto":
        name = checkpoint.stored_dtype if device.half and checkpoint.stored_dtype in DTYPES else "float32"
        name = "float32" if name in refused else name
    if name not in DTYPES:
        raise ConfigError(f"DTYPE={name!r} is not known; use auto, {', '.join(DTYPES)}.")
    if name in refused:
        others = ", ".join(one for one in DTYPES if one not in refused)
        raise ConfigError(f"{checkpoint.name} can't be computed in {name}: {refused[name]}; use DTYPE={others}.")
    return DTYPES[name]


def _weight_bytes(checkpoint: Checkpoint, compute: mx.Dtype) -> int:
    """About what its weights will take: it may be computed in another type, and what is quantised stays so."""
    stored = DTYPES.get(checkpoint.stored_dtype)
    if stored is None or checkpoint.quantization is not None:
        return checkpoint.weight_bytes
    return checkpoint.weight_bytes * compute.size // stored.size


def _room(
    checkpoint: Checkpoint, device: Device, needed: int, others: int, row_bytes: Callable[[int], int]
) -> tuple[int, int]:
    """(tokens of one batch, of the longest row): what the device likes and the model takes, less until they fit.

    others: bytes of the other models' weights. row_bytes: of a row so long. Raises NoRoom where a row of
    LEAST_TOKENS does not fit.
    """
    held, longest = mx.get_active_memory(), checkpoint.max_tokens
    free = device.limit_bytes - held - needed - others
    while row_bytes(longest) > free:
        if longest <= LEAST_TOKENS:
            what = "its longest input" if longest == checkpoint.max_tokens else f"an input of {longest} tokens"
            beside = f", the other models {_gib(others)}" if others else ""
            raise NoRoom(
                f"{checkpoint.name} needs {_gib(needed)} for its weights and {_gib(row_bytes(longest))} for {what}{beside}"
                f", and {_gib(held)} are in use: more than DEVICE_MEMORY_FRACTION allows, "
                f"{device.limit_bytes / device.total_bytes:.2f} x {_gib(device.total_bytes)} on {device.label}."
            )
        longest = max(longest * 3 // 4, LEAST_TOKENS)
    if longest < checkpoint.max_tokens:
        log.warning(
            "%s takes inputs of %d tokens; there is room for %d.", checkpoint.name, checkpoint.max_tokens, longest
        )
    tokens = max(device.batch_tokens, longest)
    while tokens * row_bytes(longest) // longest > free:
        tokens = max(tokens // 2, longest)
    return min(tokens, device.batch_tokens), longest


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _dimensions(checkpoint: Checkpoint, hidden: int, layers: Sequence[Layer]) -> int:
    if checkpoint.task == "rerank":
        return 1
    return int(layers[-1][0].shape[0]) if layers else hidden * len(checkpoint.pooling)


def _failure(error: Exception, batch: Batch) -> BackendFailed:
    """What a client may read of it; MLX's own words stay in the cause."""
    what = f"a batch of {len(batch.rows)} rows of up to {max(map(len, batch.rows))} tokens"
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in FULL):
        return OutOfMemory(f"The device has no room for {what}.")
    return BackendFailed(f"The model failed on {what}.")
