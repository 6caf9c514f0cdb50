"""The model without HTTP, for `vecgate bench --raw`: texts on standard input, what their forwards took on standard output.

    python -m vecgate.forward <<< '<Settings as JSON>'     one line: what is loaded
    [["text", ...], ...]                                   one line for each line: tokens and seconds

The lists of a line are computed one after another, as one client's calls would be; a list's rows are sorted by length.

Started by the bench as a process of its own; same tokenizer, same backend, same budget of a batch as the
server. Knows no server.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from statistics import median
from time import perf_counter
from typing import Any, BinaryIO

import msgspec

from vecgate.app import models_of
from vecgate.core import Batch, Checkpoint, Tokens
from vecgate.engine import probe, weights
from vecgate.engine.model import Model
from vecgate.engine.waiting import Limits
from vecgate.errors import CheckpointError, ConfigError, VecgateError
from vecgate.settings import Settings
from vecgate.traits import Backend

LAYER = re.compile(r"\.\d+\.")
"""In the name of what every token goes through; embeddings, poolers and heads have no number."""
FULL_BATCH_RUNS = 3


class Loaded(msgspec.Struct):
    """flops_a_token: 2 for each number of the layers' matrices; None where the weights do not tell."""

    model: str
    backend: str
    device: str
    dtype: str
    batch_tokens: int
    full_batch_s: float
    weight_bytes: int
    flops_a_token: float | None


class Done(msgspec.Struct):
    """flops: of these texts, attention included; None where the weights do not tell. p50_s: of a list's forwards."""

    texts: int
    tokens: int
    tokenize_s: float
    forward_s: float
    flops: float | None
    p50_s: float


def main(stream: BinaryIO, out: BinaryIO) -> int:
    settings = msgspec.json.decode(stream.readline(), type=Settings, dec_hook=lambda kind, value: kind(value))
    try:
        raw = Forward(_embedding(settings), settings)
        _say(out, raw.loaded())
        for line in stream:
            _say(out, raw.run(msgspec.json.decode(line, type=list[list[str]])))
    except (VecgateError, ConfigError, CheckpointError) as error:
        _say(out, {"error": str(error)})
        return 1
    return 0


def _say(out: BinaryIO, what: Any) -> None:
    out.write(msgspec.json.encode(what) + b"\n")
    out.flush()


def _embedding(settings: Settings) -> Model:
    found = next((model for model in models_of(settings) if model.checkpoint.task == "embed"), None)
    if found is None:
        raise ConfigError("--raw needs a model that embeds: name one with --model.")
    return found


class Forward:
    """One loaded model, run in batches as large as the server's."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self._model = model
        self._backend: Backend = model.load()
        card = self._backend.card
        cache = settings.cache_dir.expanduser()
        tokens, _ = probe.begin(settings.batch_tokens, model.checkpoint.config, card, cache)
        self._limits = Limits(tokens, settings.max_batch_size, card.pad_lengths)
        self._cost = Cost.of(model.checkpoint)

    def loaded(self) -> Loaded:
        card, cost = self._backend.card, self._cost
        return Loaded(
            model=self._model.name,
            backend=card.backend,
            device=card.device,
            dtype=card.dtype,
            batch_tokens=self._limits.tokens,
            full_batch_s=self._full_batch_s(),
            weight_bytes=card.weight_bytes,
            flops_a_token=cost.flops_a_token if cost else None,
        )

    def run(self, calls: Sequence[Sequence[str]]) -> Done:
        begin_s, limit = perf_counter(), self._model.checkpoint.max_tokens
        called = [self._model.tokenizer.encode(texts, "", limit, "end") for texts in calls]
        tokenized_s = perf_counter()
        times = [self._forward(rows) for rows in called]
        every = [*chain.from_iterable(called)]
        return Done(
            texts=len(every),
            tokens=sum(map(len, every)),
            tokenize_s=tokenized_s - begin_s,
            forward_s=sum(times),
            flops=sum(map(self._cost.flops, every)) if self._cost else None,
            p50_s=median(times),
        )

    def _forward(self, rows: Sequence[Tokens]) -> float:
        begin_s = perf_counter()
        for batch in batches(rows, self._limits):
            self._backend.forward(batch)
        return perf_counter() - begin_s

    def _full_batch_s(self) -> float:
        """The shortest of a few forwards of as many rows of 180 tokens as a batch may have."""
        length = min(180, self._model.checkpoint.max_tokens)
        one = self._model.tokenizer.encode(["warm " * length], "", length, "end")
        full = next(batches(one * self._limits.rows, self._limits))
        times = []
        for _ in range(FULL_BATCH_RUNS):
            begin_s = perf_counter()
            self._backend.forward(full)
            times.append(perf_counter() - begin_s)
        return min(times)


def batches(rows: Sequence[Tokens], limits: Limits) -> Iterator[Batch]:
    """The rows by length, as many in each batch as its limits allow; a row over the budget runs alone."""
    batch: list[Tokens] = []
    for row in sorted(rows, key=len):
        grown = sum(map(len, batch)) + len(row)
        if batch and (len(batch) == limits.rows or limits.computed(len(row), grown, len(batch) + 1) > limits.tokens):
            yield Batch(tuple(batch))
            batch = []
        batch.append(row)
    if batch:
        yield Batch(tuple(batch))


class Cost:
    """The multiplications and additions of one row, a lower bound: matrices of the layers, and attention's two products."""

    def __init__(self, flops_a_token: float, layers: int, width: int, window: int | None, *, causal: bool) -> None:
        self.flops_a_token = flops_a_token
        self._attention = 4.0 * layers * width * (0.5 if causal else 1.0)
        self._window = window

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Cost | None:
        """None where the weights are quantised, of experts, or pickled: what a token costs is not in their shapes."""
        config = checkpoint.config
        try:
            found = {name: one for path in checkpoint.weights for name, one in weights.header(path).items()}
        except CheckpointError:
            found = {}
        shapes = {name: one["shape"] for name, one in found.items() if LAYER.search(name) and len(one["shape"]) == 2}
        layers = config.get("num_hidden_layers")
        if checkpoint.quantization or any("expert" in name for name in shapes) or not shapes or not layers:
            return None
        heads = int(config.get("num_attention_heads") or 1)
        width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads) * heads
        matrices = sum(a * b for name, (a, b) in shapes.items() if "bias" not in name and "decoder." not in name)
        window = config.get("sliding_window") or config.get("local_attention")
        causal = checkpoint.pooling == ("last",)
        return cls(2.0 * matrices, int(layers), width, int(window) if window else None, causal=causal)

    def flops(self, row: Tokens) -> float:
        seen = min(len(row), self._window or len(row))
        return len(row) * (self.flops_a_token + self._attention * seen)


if __name__ == "__main__":
    status = main(sys.stdin.buffer, sys.stdout.buffer)
    sys.stdout.flush()
    os._exit(status)  # as the other commands end: a device's own threads may hang in the interpreter's end
