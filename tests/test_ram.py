"""A container's limit counts, however it is written down; the machine's memory where there is none."""

from __future__ import annotations

import ctypes
import gc
import platform
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from vecgate import ram

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        pytest.param({}, 64, id="no Linux"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, 64, id="no limit"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 64, id="none set"),
        pytest.param({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2, id="a container"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/vecgate.service\n",
                "sys/fs/cgroup/system.slice/vecgate.service/memory.max": f"{8 * GIB}\n",
                "sys/fs/cgroup/system.slice/memory.max": f"{4 * GIB}\n",
            },
            4,
            id="a service in a tighter slice",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/ab:c\n4:memory:/docker/ab:c\n0::/docker/ab:c\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
            },
            3,
            id="a container of the old kind, whose own group is the top",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            64,
            id="the old kind's way of saying none",
        ),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    assert ram.usable_bytes(written(tmp_path, files)) == gib * GIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_freed_memory_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks = [libc.malloc(64 * 1024) for _ in range(1024)]  # below what malloc asks the system for one by one
    for block in blocks:
        ctypes.memset(block, 1, 64 * 1024)
    held = psutil.Process().memory_info().rss
    for block in blocks[:-1]:  # the last one keeps the heap's end where it is
        libc.free(block)
    ram.give_back()
    assert held - psutil.Process().memory_info().rss > 48 * 2**20
    libc.free(blocks[-1])


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    ram.give_back()
    ram.keep_large_blocks()


@pytest.mark.parametrize(("takes", "told"), [(2**30, [2**30]), (2**25, [2**30, 2**25])])
def test_blocks_of_any_size_are_kept_as_far_as_the_c_library_lets_them(
    takes: int, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[int, list[int]] = {}

    def mallopt(what: int, value: int) -> int:
        asked.setdefault(what, []).append(value)
        return int(what != ram.M_MMAP_THRESHOLD or value <= takes)

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace(mallopt=mallopt))
    ram.keep_large_blocks()
    assert asked == {ram.M_TRIM_THRESHOLD: [2**30], ram.M_MMAP_THRESHOLD: told}


def test_what_came_since_the_last_trim_counts_as_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rss: list[int] = [500]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=rss[0])))
    resident = ram.Resident()
    seen = []
    for now in (500, 700, 450, 470):
        rss[0] = now
        seen.append(resident.held())
    resident.trim()
    assert seen == [(500, 0), (500, 200), (450, 0), (450, 20)]
    assert resident.held() == (470, 0)


@pytest.fixture
def unsettled() -> Iterator[None]:
    yield
    gc.unfreeze()


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.mark.usefixtures("unsettled")
def test_what_is_settled_is_not_looked_at_and_collected_once_it_is_asked_for() -> None:
    ring = Ring()
    gone = weakref.ref(ring)
    ram.settle()
    assert gc.get_freeze_count() > 10_000
    assert not any(one is ring for one in gc.get_objects())
    del ring
    gc.collect()
    assert gone() is not None
    ram.collect()
    assert gone() is None
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()
    ram.collect()
    assert gc.get_freeze_count() == 0


def test_the_collector_is_off_only_where_it_was_on() -> None:
    with ram.uncollected():
        assert not gc.isenabled()
        with ram.uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), ram.uncollected():
        raise ValueError
    assert gc.isenabled()
