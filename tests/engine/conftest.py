"""Checkpoints for the tests of this folder, each built once a run."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from vecgate.engine import checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint by its kind; not to be changed."""
    from tests.tiny import build  # torch and transformers: seconds, so only for who asks

    return cache(lambda kind: build(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the real all-MiniLM-L6-v2."""
    return checkpoint.resolve("minilm", offline=True).folder
