"""What this process holds of the machine's memory, now and at most, as the system itself counts it.

Resident memory alone misleads: macOS compresses and swaps pages out of it and does not count what the GPU holds. Its
footprint (what Activity Monitor shows and what the system kills for) does. Knows no metric and no device.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

STATUS = Path("/proc/self/status")
RUSAGE_INFO_V4 = 4
UUID_BYTES = 16
FOOTPRINT, LIFETIME_MAX_FOOTPRINT = 7, 28
"""Indices of ri_phys_footprint and ri_lifetime_max_phys_footprint among the 64-bit numbers of struct rusage_info_v4
(macOS's sys/resource.h), which follow a UUID."""
NUMBERS = 35


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes; peak since the process began. On macOS its footprint; on Linux resident and swapped, and the peak of resident."""

    now_bytes: int
    peak_bytes: int


def footprint() -> Footprint:
    """Read anew: some 30 microseconds."""
    if sys.platform == "darwin":
        return of_rusage(_rusage())
    if STATUS.exists():
        return of_status(STATUS.read_text("ascii", "replace"))
    resident = psutil.Process().memory_info().rss
    return Footprint(resident, resident)


def of_status(text: str) -> Footprint:
    """Of Linux's /proc/PID/status, which counts in KiB."""
    held = {name: int(kib) * 1024 for name, kib in re.findall(r"^Vm(RSS|Swap|HWM):\s+([0-9]+) kB$", text, re.MULTILINE)}
    now = held.get("RSS", 0) + held.get("Swap", 0)
    return Footprint(now, max(now, held.get("HWM", 0)))


def of_rusage(info: bytes) -> Footprint:
    """Of macOS's struct rusage_info_v4."""
    numbers = (ctypes.c_uint64 * NUMBERS).from_buffer_copy(info, UUID_BYTES)
    return Footprint(numbers[FOOTPRINT], max(numbers[FOOTPRINT], numbers[LIFETIME_MAX_FOOTPRINT]))


def _rusage() -> bytes:
    info = ctypes.create_string_buffer(UUID_BYTES + 8 * NUMBERS)
    ctypes.CDLL(None).proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, info)  # zeros stay where it would not say
    return info.raw
