"""Where an MLX model runs: `metal` holds every line that is special to Apple's GPU, `cpu` those of MLX's CPU build.

Knows no model and no checkpoint's files, only what a device can do and how much it has.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from vecgate.errors import ConfigError
from vecgate.ram import usable_bytes


class _Streams:
    """Lives as long as its thread does, and ends the thread's streams then."""

    def __del__(self) -> None:
        mx.clear_streams()


_mine = threading.local()


def end_with_thread() -> None:
    """Have this thread's streams end when it does: a process that exits with those of a thread that is gone aborts."""
    if not hasattr(_mine, "streams"):
        _mine.streams = _Streams()


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and all that differs from one kind of device to another.

    half: 16-bit types are computed as fast as float32 or faster. bound: (bytes of the weights that come next, bytes of
    one full batch) -> MLX's limits are set.
    """

    place: mx.Device
    label: str
    total_bytes: int
    limit_bytes: int
    half: bool
    batch_tokens: int
    bound: Callable[[int, int], None]


def cpu(fraction: float) -> Device:
    """MLX can't bound what a CPU process takes (its limits are guidelines), so the load is refused or the batch cut."""
    mx.disable_compile()  # on a CPU it needs a C++ compiler at run time, and trusts what lies in /tmp
    total = usable_bytes()
    return Device(
        place=mx.Device(mx.cpu),
        label="cpu",
        total_bytes=total,
        limit_bytes=int(fraction * total),
        half=False,
        batch_tokens=2048,
        bound=lambda weights, working: None,
    )


def metal(fraction: float) -> Device:
    """`fraction` is of the working set that macOS recommends; without these bounds the cache grows to all of memory."""
    os.putenv("MLX_ENABLE_TF32", "0")  # float32 on M5 is TF32 otherwise: rows 1e-3 off (read at the first product)
    info = mx.device_info(mx.Device(mx.gpu))
    recommended = int(info.get("max_recommended_working_set_size", 0))
    total = recommended or int(info.get("memory_size", 0)) or usable_bytes()
    limit = int(fraction * total)

    def bound(weights: int, working: int) -> None:
        """Two batches' buffers are kept for reuse, and what is in use stays wired, other models' arrays included."""
        cache = max(min(2 * working, limit - weights), 0)
        before = mx.set_cache_limit(cache)
        if cache < before < limit:  # another model asked for more; MLX's own limit, the first `before`, is far higher
            cache = before
            mx.set_cache_limit(cache)
        mx.set_memory_limit(limit)
        if recommended:
            mx.set_wired_limit(min(mx.get_active_memory() + weights + cache, limit, recommended))

    return Device(
        place=mx.Device(mx.gpu),
        label=f"{info.get('device_name', 'Apple GPU')} (Metal)",
        total_bytes=total,
        limit_bytes=limit,
        half=True,
        batch_tokens=8192,
        bound=bound,
    )


def find(name: str, fraction: float) -> Device:
    """name: auto | cpu | gpu."""
    if name not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"device {name!r} is not known; use auto, cpu or gpu.")
    there = mx.metal.is_available()
    if name == "gpu" and not there:
        raise ConfigError("device 'gpu' is not there; MLX finds only cpu.")
    return cpu(fraction) if name == "cpu" or not there else metal(fraction)


def lengths(longest: int) -> tuple[int, ...]:
    """What rows are padded to: few lengths, as every new one costs Metal buffers that only fit themselves.

    16, then multiples of 32 up to 256, then four steps an octave: beyond 64 tokens at most a third of a row is padding.
    """
    steps = [16, *range(32, 256, 32)]
    octave = 256
    while octave < longest:
        steps += range(octave, 2 * octave, octave // 4)
        octave *= 2
    return (*(step for step in steps if step < longest), longest)
