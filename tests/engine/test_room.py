"""Models that can't be here together are refused before one is loaded, with the arithmetic, and none that could be is."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from tests import small
from vecgate.core import Checkpoint
from vecgate.engine import room
from vecgate.errors import NoRoom

MIB = 2**20
FLOAT32: dict[str, Any] = {"weight_bytes": 6 * MIB}
FLOAT16: dict[str, Any] = {"weight_bytes": 6 * MIB, "stored_dtype": "float16"}
PACKED: dict[str, Any] = {**FLOAT16, "quantization": {"bits": 4}}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux of 20 MiB."""
    monkeypatch.setattr(room, "usable_bytes", lambda root: 20 * MIB)
    monkeypatch.setattr(platform, "system", lambda: "Linux")


def made(folder: Path, name: str, changes: dict[str, Any]) -> Checkpoint:
    return small.checkpoint(folder / name, name=name, **changes)


def test_the_arithmetic_is_told(tmp_path: Path) -> None:
    models = [made(tmp_path, "one", FLOAT32), made(tmp_path, "two", FLOAT16)]
    with pytest.raises(NoRoom) as raised:
        room.check(models, "auto", 0.8, tmp_path)
    assert str(raised.value) == (
        "The weights take 18.00 MiB (one 6.00 MiB, two 12.00 MiB): more than DEVICE_MEMORY_FRACTION allows, "
        "0.8 x 20.00 MiB = 16.00 MiB. Serve fewer or smaller models, quantised ones, or those of 32 bits with DTYPE=bfloat16."
    )


@pytest.mark.parametrize(
    ("changes", "dtype", "system", "fits"),
    [
        ((FLOAT32, FLOAT32), "auto", "Linux", True),
        ((FLOAT32, FLOAT32, FLOAT32), "auto", "Linux", False),
        ((FLOAT32, FLOAT32, FLOAT32), "bfloat16", "Linux", True),
        ((FLOAT16, FLOAT16), "auto", "Linux", False),
        ((FLOAT16, FLOAT16), "auto", "Darwin", True),
        ((FLOAT16, FLOAT16), "float32", "Darwin", False),
        ((PACKED, PACKED), "float32", "Linux", True),
    ],
)
def test_weights_count_in_the_least_that_they_can_take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: tuple[dict[str, Any], ...],
    dtype: str,
    system: str,
    fits: bool,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    models = [made(tmp_path, f"{at}", one) for at, one in enumerate(changes)]
    assert fitting(models, dtype, tmp_path) is fits


def test_where_a_card_may_compute_it_is_the_card_that_says_so(tmp_path: Path) -> None:
    models = [made(tmp_path, "large", {"weight_bytes": 100 * MIB})]
    assert not fitting(models, "auto", tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert fitting(models, "auto", tmp_path)


def fitting(models: list[Checkpoint], dtype: str, root: Path) -> bool:
    try:
        room.check(models, dtype, 0.8, root)
    except NoRoom:
        return False
    return True
