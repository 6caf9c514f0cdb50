"""The operations of a short row's forward, recorded for its length and called again without the model's Python, which is about
an eighth of a query's forward (MiniLM on two x86-64 cores).

Knows tensors and torch's dispatcher; no family, no batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import getitem, itemgetter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

log = logging.getLogger("vecgate.torch")

LONGEST = 64
"""Tokens of a row, all that a recording serves: of longer rows the model's Python is a small part."""
Compute = Callable[..., torch.Tensor]
MOST_CALLS = 20_000
"""Of all recordings, at some 0.3 KB each: all lengths of a model of twelve layers, some of a deeper one, which gains little."""
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
            self._calls += len(recording)
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


@dataclass(frozen=True, slots=True)
class _Value:
    """In place of a tensor that differs from row to row."""

    number: int


@dataclass(frozen=True, slots=True)
class _Call:
    """One operation, whose arguments are values, lists with values, and what is the same each time."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    result: int

    def values(self) -> set[int]:
        return {each.number for each in _flat(self.args) if isinstance(each, _Value)}


Take = Callable[[list[Any]], Sequence[Any]]
"""The arguments of a call out of the places."""


class Recording:
    """Operations over places: of the inputs, of what is the same each time, and of values, where one follows another that
    nothing needs any more. Python's part of a call is small on purpose: it runs cold, as a model's weights are more than a
    processor's caches hold."""

    def __init__(self, calls: Sequence[_Call], inputs: int, result: int) -> None:
        """Raises LookupError where the result is not of these calls."""
        last = {value: at for at, call in enumerate(calls) for value in (call.result, *call.values())}
        last[result] = max(last[result], len(calls))
        places: list[Any] = [None] * inputs
        same = {id(one): one for call in calls for one in _flat(call.args) if not isinstance(one, _Value)}
        where = {key: inputs + at for at, key in enumerate(same)}
        places.extend(same.values())
        of = {value: value for value in range(inputs)}

        def place(one: Any) -> Any:
            if isinstance(one, list) and id(one) not in where:
                return [place(each) for each in one]
            return of[one.number] if isinstance(one, _Value) else where[id(one)]

        steps: list[tuple[Callable[..., Any], Take, int]] = []
        free: list[int] = []
        for at, call in enumerate(calls):
            take = _take([place(one) for one in call.args])
            dead = {value for value in call.values() if last[value] == at} - {call.result}
            free.extend(of[value] for value in sorted(dead))
            if call.result not in of:
                if not free:
                    free.append(len(places))
                    places.append(None)
                of[call.result] = free.pop()
            steps.append((call.operation, take, of[call.result]))
            if last[call.result] == at:
                free.append(of[call.result])
        self._places, self._steps = places, tuple(steps)
        self._inputs, self._result = inputs, of[result]

    def __len__(self) -> int:
        return len(self._steps)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        places = self._places.copy()
        places[: self._inputs] = inputs
        for operation, take, place in self._steps:
            places[place] = operation(*take(places))
        result: torch.Tensor = places[self._result]
        return result


class _Recorder(TorchDispatchMode):
    """Every operation that is called. Values have numbers as long as they live, so that the forward takes no more memory."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.unsteady: str | None = None
        self._calls: list[_Call] = []
        self._numbers: Any = WeakIdKeyDictionary()
        self._inputs = len(inputs)
        self._count = 0
        for one in inputs:
            self._numbers[one] = self._new()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kept = tuple(map(self._kept, args))  # before the call, which may be the end of one
        out = func(*args, **kwargs)
        results = tuple(out) if isinstance(out, (list, tuple)) else (out,)
        read = not all(isinstance(one, torch.Tensor) for one in results)
        named = any(isinstance(one, torch.Tensor) for one in kwargs.values())
        if read or named or func in UNTAGGED or UNSTEADY.intersection(func.tags):
            self.unsteady = str(func)
            return out
        called = getattr(func, "_op", func)  # what func calls, with a frame of Python less
        operation = partial(called, **kwargs) if kwargs else called
        if isinstance(out, torch.Tensor):
            self._calls.append(_Call(operation, kept, self._number(out)))
            return out
        several = self._new()
        self._calls.append(_Call(operation, kept, several))
        for index, one in enumerate(results):
            self._calls.append(_Call(getitem, (_Value(several), index), self._number(one)))
        return out

    def recording(self, result: torch.Tensor) -> Recording:
        """Raises LookupError where the result came about in another way."""
        return Recording(self._calls, self._inputs, self._numbers[result])

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _number(self, one: torch.Tensor) -> int:
        if one not in self._numbers:
            self._numbers[one] = self._new()
        number: int = self._numbers[one]
        return number

    def _kept(self, one: Any) -> Any:
        if isinstance(one, torch.Tensor) and one in self._numbers:
            return _Value(self._numbers[one])
        if isinstance(one, (list, tuple)):
            each = [self._kept(part) for part in one]
            return each if any(isinstance(part, _Value) for part in each) else one
        return one


def _flat(args: Sequence[Any]) -> Iterator[Any]:
    """Lists that hold values by what they hold, everything else as it is."""
    for one in args:
        if isinstance(one, list) and any(isinstance(part, _Value) for part in one):
            yield from one
        else:
            yield one


def _take(places: Sequence[Any]) -> Take:
    """places: numbers, and lists of them."""
    if len(places) > 1 and all(isinstance(one, int) for one in places):
        return itemgetter(*places)
    return lambda held: [[held[each] for each in one] if isinstance(one, list) else held[one] for one in places]
