"""What every test stands on: a clean environment, no network beyond this machine, the small tests first."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests.awkward import TEXTS
from vecgate.engine.checkpoint import resolve
from vecgate.settings import CONFIG, SETTINGS

FIRST = ("test_tiny.py", "test_house.py")
"""What they find explains most other failures."""
LONGEST = ("test_live.py", "test_families.py", "test_torch.py", "test_mlx.py", "test_tokenizer.py", "test_clients.py")
"""Early, so that no worker is left alone with one of them."""
ORDER = (*FIRST, *LONGEST)
SHARING = {"tests/test_mistakes.py": "tests/test_families.py"}
"""Files that another file's worker takes too: their `reference` costs a core half a minute."""

for name in (CONFIG, *(name for setting in SETTINGS for name in (setting.name, setting.prefixed))):
    os.environ.pop(name, None)  # a developer's own settings change no test

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background; what the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")  # on a busy machine an example may take its time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """File by file, as --dist loadfile does, but for SHARING."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling  # type: ignore[import-untyped]

    found: Any = LoadFileScheduling(config, log)
    file_of = found._split_scope
    found._split_scope = lambda nodeid: SHARING.get(file_of(nodeid), file_of(nodeid))
    return found


def _loopback_only(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not isinstance(address := arguments[1], tuple):
        return
    host = address[0].partition("%")[0]
    if host != "localhost" and not ip_address(host).is_loopback:
        raise AssertionError(f"A test reached for {address}; tests need no network.")


sys.addaudithook(_loopback_only)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The default model's folder."""
    return resolve("minilm").folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """tests/proof.py's Reference of every kind of tests/tiny."""
    from tests.families import CASES, CONVERTED  # here: torch and transformers: seconds, so only for who asks
    from tests.proof import Reference

    with Reference(tmp_path_factory.mktemp("families"), (*CASES, *CONVERTED)) as reference:
        yield reference


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once(name, make)`: a folder that `make` fills, once a run: the other workers wait and take it as it is."""
    own = tmp_path_factory.getbasetemp()
    run = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        found = run / f"once-{name}"
        with FileLock(run / f"once-{name}.lock"):
            if not found.exists():
                made = tmp_path_factory.mktemp(name)
                make(made)
                made.rename(found)
        return found

    return folder


@pytest.fixture(scope="session")
def minilm_rows(root: Path, minilm: Path, made_once: Callable[[str, Callable[[Path], None]], Path]) -> np.ndarray:
    """sentence-transformers' unit rows of tests/awkward.py's TEXTS, from a process that does not know vecgate."""
    script = root / "src" / "vecgate" / "engine" / "reference.py"

    def compute(folder: Path) -> None:
        with (folder / "rows.npy").open("wb") as rows:
            told = [sys.executable, str(script), str(minilm), "--normalize"]
            subprocess.run(told, input=json.dumps(TEXTS).encode(), stdout=rows, check=True)

    found: np.ndarray = np.load(made_once("minilm-rows", compute) / "rows.npy")
    return found
