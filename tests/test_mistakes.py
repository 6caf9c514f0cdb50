"""The comparison of tests/test_families.py notices every mistake of tests/mistakes.py, on each backend where it applies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed", exc_type=ImportError)

from tests.families import CASE, TOLERANCE
from tests.mistakes import MISTAKES, Bench, Mistake
from tests.proof import Reference, Served

MADE = [(mistake, backend) for mistake in MISTAKES for backend in mistake.backends]
WIDE = 10
"""How many tolerances a mistake must move some number by, so that none is noticed by chance."""


@pytest.mark.parametrize(
    ("mistake", "backend"), MADE, ids=[f"{one.name}-{one.kind}-{backend}" for one, backend in MADE]
)
def test_a_mistake_shows(
    mistake: Mistake, backend: str, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASE[mistake.kind]
    folder = shutil.copytree(reference.folder(case.kind), tmp_path / case.kind)
    bench = Bench(folder, case.name, monkeypatch)
    mistake.make(bench)
    with Served(bench.checkpoint(), backend) as served:
        rows = served.rows(case, "mixed", case.telling)
    expected = reference.rows(case)[case.telling]
    moved = np.abs(rows - expected).max() if rows.shape == expected.shape else np.inf
    assert moved > WIDE * TOLERANCE[case.task]
