"""Every family on every backend, through the engine, against rows computed in a process that does not know vecgate.

In float32 a unit row may be 5e-6 from the reference's and a logit 1e-4: float32 itself moves them by 5e-7 and 2e-5 (the
reference in float64), and whatever is left out or done wrong by a hundred times as much (tests/test_mistakes.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.families import CASES, CONVERTED, TEXTS, Case
from tests.proof import WAYS, Reference, Served, Way

TOLERANCE = {"embed": 5e-6, "rerank": 1e-4}
BACKENDS = [*(("torch", case) for case in CASES), *(("mlx", case) for case in (*CASES, *CONVERTED))]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch: on models this small the others only wait for one another, which takes ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda param: f"{param[1].kind}-{param[0]}")
def running(request: pytest.FixtureRequest, reference: Reference) -> Iterator[tuple[Served, Case]]:
    backend, case = request.param
    with Served(reference.checkpoint(case), backend) as served:
        yield served, case


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_the_references(running: tuple[Served, Case], way: Way, reference: Reference) -> None:
    served, case = running
    rows = served.rows(case, way)
    np.testing.assert_allclose(rows, reference.rows(case), rtol=0, atol=TOLERANCE[case.task])


def test_token_ids_are_the_references(running: tuple[Served, Case], reference: Reference) -> None:
    served, case = running
    assert served.ids(case) == reference.ids(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_different_texts_have_different_rows(case: Case, reference: Reference) -> None:
    """What the comparison stands on: were all rows of a random model alike, no mistake would show."""
    rows = reference.rows(case)[: len(TEXTS)]
    alike = np.abs(rows @ rows.T) if case.task == "embed" else 1 - np.abs(rows - rows.T)
    np.fill_diagonal(alike, 0)
    assert alike.max() < (0.9 if case.task == "embed" else 0.9999)
