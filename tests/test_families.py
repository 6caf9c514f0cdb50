"""Every family on every backend, through the engine, against rows computed in a process that does not know vecgate.

In float32 a unit row may be 5e-6 from the reference's and a logit 1e-4: float32 itself moves them by 5e-7 and 2e-5 (the
reference in float64), and whatever is left out or done wrong by a hundred times as much (tests/test_mistakes.py).
"""

# ruff: noqa: E402 - without MLX there is nothing to import

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

MISSING = "MLX is not installed (Linux: pip install 'mlx[cpu]')"
pytest.importorskip("mlx.core", reason=MISSING, exc_type=ImportError)

from mlx.core import array_equal, load

from tests.families import CASE, CASES, CONVERTED, TEXTS, TOLERANCE, Case
from tests.proof import WAYS, Reference, Served, Way
from vecgate.engine.checkpoint import read

BACKENDS = [*(("torch", case) for case in CASES), *(("mlx", case) for case in (*CASES, *CONVERTED))]


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
    first = {tuple(ids): at for at, ids in reversed([*enumerate(reference.ids(case)[: len(TEXTS)])])}
    rows = reference.rows(case)[[*first.values()]]
    alike = np.abs(rows @ rows.T) if case.task == "embed" else 1 - np.abs(rows - rows.T)
    np.fill_diagonal(alike, 0)
    assert len(first) > 12
    assert alike.max() < (0.9 if case.task == "embed" else 0.9999)


SIXTEEN_BITS = [("torch", "bert"), ("torch", "gemma3"), ("torch", "qwen3-reranker"), ("mlx", "modernbert")]
SIXTEEN_BITS += [("mlx", "gemma3"), ("mlx", "qwen3"), ("mlx", "qwen3-4bit"), ("mlx", "qwen3-reranker-4bit")]
NEAR = {"embed": 2e-2, "rerank": 1.0}
"""bfloat16 keeps 8 bits of a number: each of some twenty roundings in a row moves a state by up to 0.4 %, which adds up to
0.8 % of a row of length 1 at worst, and of a logit as much of state and head (8 long and 16 long here): no promise, but
what is wrong moves a row by far more."""


@pytest.mark.parametrize(("backend", "kind"), SIXTEEN_BITS, ids=str)
def test_rows_in_bfloat16_are_near(backend: str, kind: str, reference: Reference) -> None:
    case = CASE[kind]
    places = case.telling[2:4]
    with Served(reference.checkpoint(case), backend, "bfloat16") as served:
        moved = np.abs(served.rows(case, "mixed", places) - reference.rows(case)[places]).max()
    assert TOLERANCE[case.task] < moved < NEAR[case.task]


@pytest.mark.parametrize(("kind", "least"), [("qwen3-4bit", 0.8), ("bert-8bit", 0.999), ("qwen3-bf16", 1 - 1e-6)])
def test_fewer_bits_keep_the_direction(kind: str, least: float, reference: Reference) -> None:
    """Of the weights themselves, both sides computed in float32: a random matrix loses 8 % of its length to 4 bits in
    groups of 64 and 0.5 % to 8 bits, and twenty follow one another; bfloat16 is what the original has."""
    case, original = CASE[kind], CASE[kind.partition("-")[0]]
    short = [at for at, text in enumerate(TEXTS) if len(text) < 60]  # the long ones are cut elsewhere
    cosines = (reference.rows(case)[short] * reference.rows(original)[short]).sum(axis=1)
    assert cosines.min() > least


LATER = ("modernbert", "qwen3", "gemma3", "mistral", "qwen2", "llama", "modernbert-reranker")


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("kind", LATER)
def test_config_as_transformers_writes_it_means_the_same(
    backend: str, kind: str, reference: Reference, tmp_path: Path
) -> None:
    """rope_parameters and layer_types for what the hub's files call otherwise."""
    case = CASE[kind]
    folder = shutil.copytree(reference.folder(kind), tmp_path / kind)
    hub = (folder / "config.json").read_text()
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(folder)
    with Served(read(folder), backend) as served:
        rows = served.rows(case, "mixed", case.telling)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text()).keys() - json.loads(hub).keys()
    np.testing.assert_allclose(rows, reference.rows(case)[case.telling], rtol=0, atol=TOLERANCE[case.task])


def test_conversions_are_what_mlx_lm_writes(reference: Reference, tmp_path: Path) -> None:
    from mlx_lm import convert  # here: a second

    own, made = reference.folder("qwen3-reranker-4bit"), tmp_path / "made"
    convert(str(reference.folder("qwen3-reranker")), str(made), quantize=True, q_group_size=64, q_bits=4)
    held: Any = [load(str(folder / "model.safetensors")) for folder in (own, made)]
    ours, theirs = held
    assert ours.keys() == theirs.keys()
    assert [name for name, array in theirs.items() if array.dtype != ours[name].dtype] == []
    assert [name for name, array in theirs.items() if not array_equal(array, ours[name])] == []
    said = [json.loads((folder / "config.json").read_text())["quantization"] for folder in (own, made)]
    assert said[0] == said[1]
