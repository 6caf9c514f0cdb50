import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vecgate.bench import ceilings, machine
from vecgate.bench.result import Ceiling, Raw
from vecgate.errors import CommandError

RAW = Raw("m", "torch", "cpu", "bfloat16", 2048, 0.5, 1000)


def test_the_machine_is_described() -> None:
    found = machine.machine()
    assert found.cores >= 1
    assert found.memory_bytes > 2**20
    assert found.processor
    assert found.python.startswith("3.")


def test_the_clients_own_cost_is_measured_on_a_server_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "FLOOR_S", 0.1)
    found = asyncio.run(machine.floor())
    assert found.p50_ms > 0
    assert found.cpu_ms_a_request > 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZES", (32, 64))
    monkeypatch.setattr(ceilings, "COPY_BYTES", 2**16)
    monkeypatch.setattr(ceilings, "REPEATS_S", 0.002)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("library", "dtype"), [("numpy", "float32"), ("torch", "bfloat16"), ("mlx", "float32")])
def test_each_library_tells_its_ceilings(library: str, dtype: str) -> None:
    pytest.importorskip({"mlx": "mlx.core"}.get(library, library))
    found = msgspec.convert({"library": library, **ceilings.LIBRARIES[library](dtype, "cpu")}, Ceiling)
    assert found.dtype == dtype
    assert found.flops_per_s > 0
    assert found.bytes_per_s > 0
    assert found.threads >= 1


def test_the_shortest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.4, 2.0])  # the begin; a look, begin and end of two runs; a look
    monkeypatch.setattr(ceilings, "perf_counter", lambda: next(times))
    monkeypatch.setattr(ceilings, "REPEATS_S", 1.5)
    assert ceilings.best_s(lambda: None) == pytest.approx(0.3)


def told_by(monkeypatch: pytest.MonkeyPatch, folder: Path, lines: str, raw: Raw | None) -> Any:
    script = folder / "script.py"
    script.write_text(lines)
    monkeypatch.setattr(machine, "CEILINGS", str(script))
    return asyncio.run(machine.ceiling(raw))


SAYS = "import json, sys; print(json.dumps(dict(library=sys.argv[1], dtype=sys.argv[2], device=sys.argv[3], "
SAYS += "version='1', threads=1, flops_per_s=2.0, bytes_per_s=3.0)))"


def test_the_ceiling_is_of_what_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = told_by(monkeypatch, tmp_path, SAYS, RAW)
    assert (found.library, found.dtype, found.device) == ("torch", "bfloat16", "cpu")
    assert told_by(monkeypatch, tmp_path, SAYS, None).library == "numpy"


def test_a_ceiling_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="torch bfloat16 cpu can't be measured: ValueError: no such thing"):
        told_by(monkeypatch, tmp_path, "raise ValueError('no such thing')", RAW)
