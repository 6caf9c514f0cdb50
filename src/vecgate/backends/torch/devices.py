"""Where a torch model runs: one function a kind of device holds every line that is special to it.

Knows no model and no checkpoint's files, only what a device can do and how much it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from vecgate.errors import ConfigError
from vecgate.ram import Resident, keep_large_blocks, usable_bytes

NAME = re.compile(r"(?P<kind>auto|cpu|gpu|mps|cuda)(?:(?<=cuda):(?P<index>\d+))?")


RESIDENT = Resident()


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and all that differs from one kind of device to another.

    packs: whether rows stand side by side without padding, where the family can. lengths: else, the longest row -> the
    lengths rows are padded to. row_counts: the batch heights to pad to (None: any).
    held: -> (bytes held by arrays, bytes kept for reuse). spares: whether more is kept than the next batch needs, so that
    somebody has to trim while there is work, too.
    """

    place: torch.device
    label: str
    total_bytes: int
    limit_bytes: int
    bfloat16: bool
    batch_tokens: int
    lengths: Callable[[int], tuple[int, ...]]
    held: Callable[[], tuple[int, int]]
    trim: Callable[[], None]
    packs: bool = False
    row_counts: tuple[int, ...] | None = None
    spares: bool = False


def cpu(fraction: float) -> Device:
    """torch can't bound what a CPU process takes, so the bound is kept by refusing the load."""
    keep_large_blocks()
    RESIDENT.trim()  # what was kept for other batches is room for this model
    total = usable_bytes()
    return Device(
        place=torch.device("cpu"),
        label="cpu",
        total_bytes=total,
        limit_bytes=int(fraction * total),
        bfloat16=True,
        batch_tokens=2048,
        lengths=eights,
        held=RESIDENT.held,
        trim=RESIDENT.trim,
        packs=True,
        spares=True,
    )


def slowdown(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a layer's product takes on this CPU: many where it has no instructions for it."""

    def took_s(kind: torch.dtype) -> float:
        tokens, weight = torch.ones((256, 384), dtype=kind), torch.ones((1536, 384), dtype=kind)
        times = []
        for _ in range(3):
            start_s = perf_counter()
            torch.nn.functional.linear(tokens, weight)
            times.append(perf_counter() - start_s)
        return min(times)

    return took_s(dtype) / took_s(torch.float32)


def cuda(fraction: float, index: int | None = None) -> Device:
    """Padded: an attention call for each length costs a launch in every layer, and no GPU was there to weigh the two."""
    place = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    torch.cuda.set_per_process_memory_fraction(fraction, place)
    total = torch.cuda.get_device_properties(place).total_memory

    def held() -> tuple[int, int]:
        active = torch.cuda.memory_allocated(place)
        return active, torch.cuda.memory_reserved(place) - active

    return Device(
        place=place,
        label=f"{place} {torch.cuda.get_device_name(place)}",
        total_bytes=total,
        limit_bytes=int(fraction * total),
        bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        batch_tokens=16384,
        lengths=eights,
        held=held,
        trim=torch.cuda.empty_cache,
    )


def mps(fraction: float) -> Device:
    """Every new shape costs Metal a graph and buffers that only empty_cache frees, so shapes are few here."""
    torch.mps.set_per_process_memory_fraction(float(fraction))
    total = torch.mps.recommended_max_memory()

    def held() -> tuple[int, int]:
        active = torch.mps.current_allocated_memory()
        return active, max(torch.mps.driver_allocated_memory() - active, 0)

    return Device(
        place=torch.device("mps"),
        label="mps",
        total_bytes=total,
        limit_bytes=int(fraction * total),
        bfloat16=torch.backends.mps.is_macos_or_newer(14, 0),
        batch_tokens=16384,
        lengths=few_lengths,
        held=held,
        trim=torch.mps.empty_cache,
        row_counts=ROW_COUNTS,
    )


ROW_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def eights(longest: int) -> tuple[int, ...]:
    return (*range(8, longest, 8), longest)


def few_lengths(longest: int) -> tuple[int, ...]:
    """Multiples of 32 up to 256, then four steps an octave: at most a quarter of a row is padding."""
    steps = [*range(32, 256, 32)]
    octave = 256
    while octave < longest:
        steps += range(octave, 2 * octave, octave // 4)
        octave *= 2
    return (*(step for step in steps if step < longest), longest)


def find(name: str, fraction: float) -> Device:
    there = {
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "cpu": True,
    }
    asked = NAME.fullmatch(name)
    if asked is None:
        raise ConfigError(f"device {name!r} is not known; use auto, cpu, gpu, mps, cuda or cuda:N.")
    kind, index = asked["kind"], asked["index"]
    if kind in ("auto", "gpu"):
        kind = next((one for one, found in there.items() if found and one != "cpu"), "cpu" if kind == "auto" else kind)
    if not there.get(kind) or (index and int(index) >= torch.cuda.device_count()):
        found = ", ".join(kind for kind, found in there.items() if found)
        raise ConfigError(f"device {name!r} is not there (torch {torch.__version__} finds: {found}).")
    if kind == "cuda":
        return cuda(fraction, int(index) if index else None)
    return mps(fraction) if kind == "mps" else cpu(fraction)
