"""The operations of a short row's forward, recorded for its length and called again without the model's Python, which is about
a tenth of a query's forward (MiniLM on two x86-64 cores).

Knows tensors and torch's dispatcher; no family, no batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

log = logging.getLogger("vecgate.torch")

LONGEST = 64
"""Tokens of a row, all that a recording serves: of longer rows the model's Python is a small part."""
Compute = Callable[..., torch.Tensor]
MOST_CALLS = 10_000
"""Of all recordings, at some 0.6 KB each: all lengths of a model of six layers, some of a deep one, which gains little."""
ATEN: Any = torch.ops.aten
UNSTEADY = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
UNTAGGED = (
    ATEN.where.default,
    ATEN.nonzero_numpy.default,
    ATEN.repeat_interleave.self_Tensor,
    ATEN.tensor_split.tensor_indices_or_sections,
)
"""Operations whose result can't be told from shapes, by torch's word or ours: what Python does next with it may differ from
row to row. A model that reads a value past torch (`tolist`, `numpy`) to decide on its next operation must not be recorded."""
BROKEN = (RuntimeError, TypeError, ValueError, LookupError)
"""How recording or its proof may fail where the model does not."""


class Replays:
    """A model's recordings, one a length. A length's first row is computed by the model, its second too, and recorded; a
    third of other ids is computed both ways, and only if every bit is the same the recording serves from then on."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._recorded: dict[int, tuple[torch.Tensor, Recording]] = {}
        self._proven: dict[int, Recording] = {}
        self._calls = 0
        self._able = True

    def __call__(self, compute: Compute, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """compute(*inputs), whose operations depend on the shape of inputs only. inputs: (1, L) each, the ids first."""
        length = inputs[0].shape[1]
        proven = self._proven.get(length)
        if proven is not None:
            return proven(inputs)
        if self._able and length in self._recorded:
            return self._prove(compute, inputs)
        if self._able and length in self._seen and self._calls < MOST_CALLS:
            return self._record(compute, inputs)
        if length <= LONGEST:
            self._seen.add(length)
        return compute(*inputs)

    def clear(self) -> None:
        """Let go of the weights that recordings hold."""
        self._recorded.clear()
        self._proven.clear()

    def _record(self, compute: Compute, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        recorder = _Recorder(inputs)
        try:
            with recorder:
                out = compute(*inputs)
            recording = recorder.recording(out)
        except BROKEN as error:
            self._give_up(f"recording one ended with {type(error).__name__}")
            return compute(*inputs)
        if recorder.unsteady:
            self._give_up(f"a recording can't hold {recorder.unsteady}")
        else:
            self._recorded[inputs[0].shape[1]] = inputs[0], recording
            self._calls += len(recording.calls)
        return out

    def _prove(self, compute: Compute, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        out, length = compute(*inputs), inputs[0].shape[1]
        ids, recording = self._recorded[length]
        if torch.equal(inputs[0], ids):
            return out
        try:
            alike = torch.equal(recording(inputs), out)
        except BROKEN:
            alike = False
        if alike:
            self._proven[length] = recording
        else:
            self._give_up("a recording's row was another than the model's")
        return out

    def _give_up(self, why: str) -> None:
        log.debug("Short rows are computed by the whole model: %s.", why)
        self._able = False
        self.clear()


Filled = tuple[int, int | None, int]
"""An argument that differs from row to row: its index, its index in the list there, the number of its value."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One operation. args: what is the same each time. results: the values it makes; alone: not in a tuple. dead: the values
    that nothing after it needs."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    filled: tuple[Filled, ...]
    results: tuple[int, ...]
    alone: bool
    dead: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """Operations over numbered values, the inputs first."""

    calls: tuple[_Call, ...]
    values: int
    result: int

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        values: list[Any] = [*inputs, *([None] * (self.values - len(inputs)))]
        for call in self.calls:
            args = list(call.args)
            for index, within, value in call.filled:
                if within is None:
                    args[index] = values[value]
                else:
                    args[index] = [*args[index][:within], values[value], *args[index][within + 1 :]]
            out = call.operation(*args)
            for value, one in zip(call.results, (out,) if call.alone else out, strict=True):
                values[value] = one
            for value in call.dead:
                values[value] = None
        result: torch.Tensor = values[self.result]
        return result


class _Recorder(TorchDispatchMode):
    """Every operation that is called. Values have numbers as long as they live, so that the forward takes no more memory."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.unsteady: str | None = None
        self._calls: list[_Call] = []
        self._numbers: Any = WeakIdKeyDictionary()
        self._count = 0
        for one in inputs:
            self._number(one)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        filled = tuple(self._filled(args))  # before the call, which may be the end of one
        out = func(*args, **kwargs)
        results = tuple(out) if isinstance(out, (list, tuple)) else (out,)
        read = not all(isinstance(one, torch.Tensor) for one in results)
        named = any(isinstance(one, torch.Tensor) for one in kwargs.values())
        if read or named or func in UNTAGGED or UNSTEADY.intersection(func.tags):
            self.unsteady = str(func)
        else:
            call = partial(func, **kwargs) if kwargs else func
            made = tuple(map(self._number, results))
            self._calls.append(_Call(call, _emptied(args, filled), filled, made, isinstance(out, torch.Tensor)))
        return out

    def recording(self, result: torch.Tensor) -> Recording:
        """Raises LookupError where the result came about in another way."""
        last: dict[int, int] = {}
        for at, call in enumerate(self._calls):
            last.update(dict.fromkeys((*(value for *_, value in call.filled), *call.results), at))
        last.pop(self._numbers[result])
        dead: dict[int, list[int]] = {}
        for value, at in last.items():
            dead.setdefault(at, []).append(value)
        calls = tuple(replace(call, dead=tuple(dead.get(at, ()))) for at, call in enumerate(self._calls))
        return Recording(calls, self._count, self._numbers[result])

    def _number(self, one: torch.Tensor) -> int:
        if one not in self._numbers:
            self._numbers[one] = self._count
            self._count += 1
        number: int = self._numbers[one]
        return number

    def _filled(self, args: tuple[Any, ...]) -> Iterator[Filled]:
        for index, one in enumerate(args):
            if isinstance(one, torch.Tensor) and one in self._numbers:
                yield index, None, self._numbers[one]
            elif isinstance(one, (list, tuple)):
                for within, each in enumerate(one):
                    if isinstance(each, torch.Tensor) and each in self._numbers:
                        yield index, within, self._numbers[each]


def _emptied(args: tuple[Any, ...], filled: Sequence[Filled]) -> tuple[Any, ...]:
    """Without the tensors of the recorded row."""
    left = [list(one) if isinstance(one, (list, tuple)) else one for one in args]
    for index, within, _ in filled:
        if within is None:
            left[index] = None
        else:
            left[index][within] = None
    return tuple(left)
