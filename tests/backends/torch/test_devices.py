"""Devices: which one a name means, and every call made on mps and cuda, against fakes of both."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from vecgate import ram
from vecgate.backends.torch import devices
from vecgate.errors import ConfigError

GIB = 2**30


class Recorded:
    """A module whose functions note their calls and answer as told."""

    def __init__(self, calls: list[str], **answers: Any) -> None:
        self._calls = calls
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        if name not in self._answers:
            raise AttributeError(name)

        def called(*given: Any, **named: Any) -> Any:
            shown = [repr(one) for one in given] + [f"{key}={value!r}" for key, value in named.items()]
            self._calls.append(f"{name}({', '.join(shown)})")
            return self._answers[name]

        return called


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def mps(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recorded(
        calls,
        set_per_process_memory_fraction=None,
        recommended_max_memory=48 * GIB,
        current_allocated_memory=3 * GIB,
        driver_allocated_memory=5 * GIB,
        empty_cache=None,
    )
    monkeypatch.setattr(torch, "mps", fake)
    monkeypatch.setattr(torch.backends, "mps", Recorded(calls, is_available=True, is_macos_or_newer=True))


@pytest.fixture
def cuda(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recorded(
        calls,
        is_available=True,
        device_count=2,
        current_device=0,
        set_per_process_memory_fraction=None,
        get_device_properties=SimpleNamespace(total_memory=80 * GIB),
        get_device_name="NVIDIA H200",
        is_bf16_supported=True,
        memory_allocated=3 * GIB,
        memory_reserved=5 * GIB,
        empty_cache=None,
    )
    monkeypatch.setattr(torch, "cuda", fake)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Recorded([], is_available=False, device_count=0))
    monkeypatch.setattr(torch.backends, "mps", Recorded([], is_available=False))


def test_mps_is_bounded_measured_and_trimmed_by_these_calls(mps: None, calls: list[str]) -> None:
    device = devices.mps(1)
    assert calls == [
        "set_per_process_memory_fraction(1.0)",  # an int is a TypeError there
        "recommended_max_memory()",
        "is_macos_or_newer(14, 0)",
    ]
    calls.clear()
    assert device.held() == (3 * GIB, 2 * GIB)
    assert sorted(calls) == ["current_allocated_memory()", "driver_allocated_memory()"]
    calls.clear()
    device.trim()
    assert calls == ["empty_cache()"]
    assert (device.label, device.limit_bytes, device.batch_tokens) == ("mps", 48 * GIB, 16384)


def test_cuda_is_bounded_measured_and_trimmed_by_these_calls(cuda: None, calls: list[str]) -> None:
    device = devices.cuda(0.5)
    assert "set_per_process_memory_fraction(0.5, device(type='cuda', index=0))" in calls
    assert "is_bf16_supported(including_emulation=False)" in calls
    assert device.held() == (3 * GIB, 2 * GIB)
    calls.clear()
    device.trim()
    assert calls == ["empty_cache()"]
    assert (device.label, device.limit_bytes, device.batch_tokens) == ("cuda:0 NVIDIA H200", 40 * GIB, 16384)


def test_a_cpu_is_measured_by_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of 1 GiB after each trim, which has grown by 2 MiB at the next look."""
    resident = iter([2 * GIB, GIB, GIB, GIB + 2 * 2**20])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB))
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(resident)))
    )
    monkeypatch.setattr(devices, "RESIDENT", ram.Resident())
    device = devices.cpu(0.25)
    device.trim()
    assert (device.label, device.limit_bytes, device.batch_tokens) == ("cpu", 4 * GIB, 2048)
    assert device.held() == (GIB, 2 * 2**20)


def test_a_types_speed_is_measured_against_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts bytes: the least of three products of each type."""
    passed = [0.0]
    linear = torch.nn.functional.linear

    def timed(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        passed[0] += tokens.itemsize
        return linear(tokens, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", timed)
    monkeypatch.setattr(devices, "perf_counter", lambda: passed[0])
    assert devices.slowdown(torch.float64) == 2.0


def test_auto_is_mps_then_cuda_then_cpu(mps: None, cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.find("auto", 0.8).label == "mps"
    monkeypatch.setattr(torch.backends, "mps", Recorded([], is_available=False))
    assert devices.find("auto", 0.8).label == "cuda:0 NVIDIA H200"
    monkeypatch.setattr(torch, "cuda", Recorded([], is_available=False))
    assert devices.find("auto", 0.8).label == "cpu"


def test_a_named_device_is_taken(mps: None, cuda: None) -> None:
    places = {name: str(devices.find(name, 0.8).place) for name in ("cpu", "gpu", "mps", "cuda", "cuda:1")}
    assert places == {"cpu": "cpu", "gpu": "mps", "mps": "mps", "cuda": "cuda:0", "cuda:1": "cuda:1"}


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda", "cuda:0"])
def test_an_absent_device_is_one_sentence(bare: None, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"device '{name}' is not there \(torch .* finds: cpu\)"):
        devices.find(name, 0.8)


def test_a_third_card_is_absent(cuda: None) -> None:
    with pytest.raises(ConfigError, match="'cuda:2' is not there"):
        devices.find("cuda:2", 0.8)


@pytest.mark.parametrize("name", ["gpu:0", "", "cpu:0", "mps:1", "cuda:", "cuda:x", "cuda:-1", "meta"])
def test_an_unknown_device_is_told_the_names(cuda: None, name: str) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, gpu, mps, cuda or cuda:N"):
        devices.find(name, 0.8)


@pytest.mark.parametrize("longest", [5, 8, 60, 64, 256, 300, 512, 8192])
def test_lengths_are_multiples_of_eight_and_the_limit(longest: int) -> None:
    lengths = devices.eights(longest)
    assert lengths[-1] == longest
    assert all(length % 8 == 0 for length in lengths[:-1])
    assert len(lengths) == -(-longest // 8)


@pytest.mark.parametrize("longest", [5, 32, 64, 250, 256, 300, 512, 8192, 32768])
def test_lengths_on_mps_are_few_and_waste_little(longest: int) -> None:
    lengths = devices.few_lengths(longest)
    assert lengths == tuple(sorted(set(lengths)))
    assert lengths[-1] == longest
    assert len(lengths) <= 36
    assert all(after <= max(before * 1.25, before + 32) for before, after in pairwise(lengths))
