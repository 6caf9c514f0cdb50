"""Hugging Face encoders and decoders through transformers, on mps, cuda or cpu: the only door to torch and transformers.

Knows nothing of texts, engines or HTTP: token ids go in, float32 rows come out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from vecgate.backends.torch import devices, families, packed, prepacked, room, weights
from vecgate.backends.torch.devices import Device
from vecgate.backends.torch.direct import direct
from vecgate.backends.torch.families import Architecture
from vecgate.backends.torch.packed import Layout
from vecgate.backends.torch.pooling import pool
from vecgate.backends.torch.replay import Replays
from vecgate.core import BackendCard, Batch, Checkpoint, Memory, Pooling, Tokens, Vectors
from vecgate.errors import BackendFailed, ConfigError, DeviceLost, OutOfMemory

log = logging.getLogger("vecgate.torch")

M = TypeVar("M", bound=torch.nn.Module)
SPARE_BYTES = 32 * 2**20
"""Kept for reuse beside the fullest batch's memory where that is bounded: what grows into it costs the next trim less often."""
FULL = ("out of memory", "can't allocate memory", "not enough memory")
"""How CUDA, MPS and the CPU allocator say in a RuntimeError that there is no room."""


def load(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    memory_fraction: float = 0.8,
    others: Sequence[Checkpoint] = (),
) -> TorchBackend:
    """Open the checkpoint. device: auto | cpu | gpu | mps | cuda | cuda:N. dtype: auto | float32 | bfloat16 | float16. others:
    models that need room beside it and that what the device holds does not count.

    Raises ConfigError for a device or dtype that can't be had, NoRoom for a model that does not fit memory_fraction of the
    device's memory (where only its longest rows do not, they fail), CheckpointError for files that do not make the whole model.
    """
    where = devices.find(device, memory_fraction)
    compute = room.dtype_for(dtype, checkpoint, where)
    if where.place.type == "cpu" and compute != torch.float32:
        _warn_of_slowness(compute)
    found = families.find(checkpoint, where.packs)
    fits = room.room(checkpoint, found, compute, where, others)
    model = weights.read_model(checkpoint, found, compute)
    after = weights.read_score(checkpoint, model) if found.last_token else weights.read_dense(checkpoint, model)
    try:
        model, after = _on(where, model), _on(where, after)
        if prepacked.can(where.place, compute):
            prepacked.prepack(model)
    except RuntimeError as error:
        raise ConfigError(f"{checkpoint.name} can't be moved to {where.label}: {families.first_line(error)}") from error
    return TorchBackend(checkpoint, where, model, after, fits, found)


def _warn_of_slowness(compute: torch.dtype) -> None:
    times = devices.slowdown(compute)
    if times > 1:
        log.warning(
            "%s takes %.1f times as long as float32 on this CPU; DTYPE=float32 is faster.", room.name_of(compute), times
        )


def _on(device: Device, module: M) -> M:
    moved: M = module.to(device.place)
    return moved


class TorchBackend:
    """One model on one device.

    after: what float32 rows go through once pooled: sentence-transformers' Dense, or a decoder's score of a pair.
    fits: the tokens of one batch, and of the longest row.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        model: PreTrainedModel,
        after: torch.nn.Sequential,
        fits: tuple[int, int],
        found: Architecture,
    ) -> None:
        batch_tokens, self._longest = fits
        self._checkpoint = checkpoint
        self._device = device
        self._model: PreTrainedModel | None = model
        self._after = after
        self._pooling: tuple[Pooling, ...] = ("last",) if found.last_token else checkpoint.pooling
        self._own_head = checkpoint.task == "rerank" and not found.last_token
        self._packs = found.packs
        self._replays = Replays()
        self._unplaced = packed.unplaced(model)
        if found.narrows is not None:
            module, mode = found.narrows
            packed.narrow(model.base_model.get_submodule(module), mode)
        direct(model)
        table: Any = model.get_input_embeddings()
        self._vocabulary = int(table.weight.shape[0])
        tensors = (*model.parameters(), *model.buffers(), *after.parameters())
        self.card = BackendCard(
            backend="torch",
            device=device.label,
            dtype=room.name_of(model.dtype),
            dimensions=1 if self._own_head else weights.width(checkpoint, model, after),
            pad_lengths=None if found.packs else device.lengths(checkpoint.max_tokens),
            batch_tokens=batch_tokens,
            weight_bytes=sum(tensor.numel() * tensor.itemsize for tensor in tensors),
            tries_budgets=True,
        )
        self._bytes_of = partial(room.batch_bytes, found, longest=checkpoint.max_tokens, dtype=model.dtype)
        self._fullest = batch_tokens
        device.trim()  # what the load left

    def forward(self, batch: Batch) -> Vectors:
        model = self._model
        if model is None:
            raise BackendFailed("The model is closed.")
        if not batch.rows:
            return np.zeros((0, self.card.dimensions), np.float32)
        self._check(batch)
        self._fullest = max(self._fullest, sum(map(len, batch.rows)))
        try:
            with torch.inference_mode():
                result = self._packed(model, batch.rows) if self._packs else self._padded(model, batch.rows)
                # A copy, so that no row keeps the batch's hidden states alive.
                copied = result[: len(batch.rows)].to("cpu", torch.float32, copy=True)
            return np.ascontiguousarray(copied.numpy())
        except (RuntimeError, IndexError, MemoryError) as error:
            raise _failure(error, batch) from error

    def memory(self) -> Memory:
        active, cache = self._device.held()
        enough = self._bytes_of(self._fullest) + SPARE_BYTES if self._device.spares else None
        return Memory(active, cache, self._device.limit_bytes, enough)

    def trim(self) -> None:
        self._device.trim()

    def close(self) -> None:
        self._model = None
        self._replays.clear()
        self._after = torch.nn.Sequential()
        self._device.trim()

    def _check(self, batch: Batch) -> None:
        """A GPU answers an id outside the table with noise (mps) or with the end of the process (cuda)."""
        most = self._checkpoint.max_tokens
        for row in batch.rows:
            if not 0 < len(row) <= most:
                raise BackendFailed(f"A row of {len(row)} tokens can't be computed: the model takes 1 to {most}.")
            if len(row) > self._longest:
                raise OutOfMemory(f"The device has no room for a row of {len(row)} tokens, only for {self._longest}.")
            if row.ids.min() < 0 or row.ids.max() >= self._vocabulary:
                raise BackendFailed(f"A token id is outside the model's vocabulary of {self._vocabulary}.")

    def _packed(self, model: PreTrainedModel, rows: Sequence[Tokens]) -> torch.Tensor:
        """(B, D) of rows side by side."""
        layout, place = Layout.of(rows), self._device.place
        ids, at = layout.ids(), layout.indices()
        inputs = {
            "input_ids": ids,
            "position_ids": at if self._unplaced is None else layout.places(ids, self._unplaced),
        }
        if self._checkpoint.token_types:
            inputs["token_type_ids"] = (at >= layout.spread(_second(row) for row in layout.rows)).astype(np.int64)
        given: list[NDArray[Any]] = list(inputs.values())
        if not (self._own_head or self._checkpoint.include_prompt):
            given.append(at >= layout.spread(row.prompt for row in layout.rows))

        def compute(*values: torch.Tensor) -> torch.Tensor:
            out = model(**dict(zip(inputs, values, strict=False)), layout=layout)
            if self._own_head:
                logits: torch.Tensor = out.logits
                return logits
            after = None if self._checkpoint.include_prompt else values[-1][0]
            pooled: torch.Tensor = self._after(layout.pool(out.last_hidden_state[0], after, self._pooling))
            return pooled

        values = [torch.from_numpy(one)[None].to(place) for one in given]
        if len(rows) == 1:
            return self._replays(compute, values)
        return layout.restored(compute(*values))

    def _padded(self, model: PreTrainedModel, rows: Sequence[Tokens]) -> torch.Tensor:
        """(B, D) of rows filled up to one length, and of the rows that fill up the batch."""
        ids, spans = self._matrix(rows)
        lengths, seconds, prompts = (span[:, None] for span in spans)
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        real = at < lengths
        inputs = {"input_ids": ids, "attention_mask": real.long()}
        if self._checkpoint.token_types:
            inputs["token_type_ids"] = (real & (at >= seconds)).long()
        out = model(**inputs)
        if self._own_head:
            logits: torch.Tensor = out.logits
            return logits
        pooled: torch.Tensor = self._after(pool(out.last_hidden_state.float(), real, at >= prompts, self._pooling))
        return pooled

    def _matrix(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids (B, L) padded right, and (3, B): each row's length, start of segment B, ids of the prompt."""
        assert self.card.pad_lengths is not None
        width = _at_least(self.card.pad_lengths, max(map(len, rows)))
        height = _at_least(self._device.row_counts or (), len(rows))
        ids = np.full((height, width), self._checkpoint.pad_id, np.int64)
        spans: NDArray[np.int64] = np.zeros((3, height), np.int64)
        spans[0], spans[1] = 1, width  # a row that only fills the batch attends to its first pad: no mask is all False
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row.ids
            spans[:2, index] = len(row), _second(row)
            if not self._checkpoint.include_prompt:
                spans[2, index] = row.prompt
        place = self._device.place
        return torch.from_numpy(ids).to(place), torch.from_numpy(spans).to(place)


def _second(row: Tokens) -> int:
    """Where segment B starts, past the end where there is none."""
    return len(row) if row.second is None else row.second


def _at_least(steps: tuple[int, ...], count: int) -> int:
    return next((step for step in steps if step >= count), count)


def _failure(error: Exception, batch: Batch) -> BaseException:
    """What a client may read of it; torch's own words, which may show values, stay in the cause."""
    what = f"a batch of {len(batch.rows)} rows of up to {max(map(len, batch.rows))} tokens"
    text = str(error).lower()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in text for sign in FULL):
        return OutOfMemory(f"The device has no room for {what}.")
    if text.startswith("cuda error"):  # every later call fails too: the process's CUDA context is gone
        return DeviceLost(f"CUDA failed on {what}.")
    return BackendFailed(f"The model failed on {what}.")
