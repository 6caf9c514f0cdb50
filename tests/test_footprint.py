"""footprint.py: the numbers are the system's own, and a peak stays when the memory has gone."""

from __future__ import annotations

import struct
import sys

import numpy as np
import psutil
import pytest

from vecgate.footprint import Footprint, footprint, of_rusage, of_status


def test_what_is_held_is_counted_and_its_peak_stays() -> None:
    before = footprint()
    assert before.peak_bytes >= before.now_bytes > 2**20
    held = np.ones(256 * 2**20, np.uint8)
    after = footprint()
    assert after.now_bytes - before.now_bytes > 0.9 * held.nbytes
    del held
    assert footprint().peak_bytes >= after.now_bytes - 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_it_is_what_the_system_says() -> None:
    assert footprint().now_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


def test_linux_counts_what_was_swapped_out() -> None:
    text = "Name:\tx\nVmPeak:\t 9999 kB\nVmHWM:\t  500 kB\nVmRSS:\t  300 kB\nVmSwap:\t   40 kB\n"
    assert of_status(text) == Footprint(340 * 1024, 500 * 1024)
    assert of_status("Name:\tx\n") == Footprint(0, 0)


def test_macos_counts_its_footprint() -> None:
    # uuid; user, system, package and interrupt wakeups, pageins, wired, resident, footprint; 20 others; its maximum
    info = bytes(16) + struct.pack("<35Q", *range(7), 1000, *range(20), 3000, *range(6))
    assert of_rusage(info) == Footprint(1000, 3000)
