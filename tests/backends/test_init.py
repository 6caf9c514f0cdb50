"""Which backend a model gets, and what is said when it can't have it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vecgate.backends import BACKENDS, choose, open_backend
from vecgate.backends.fake import load as load_fake
from vecgate.core import Checkpoint, Task
from vecgate.errors import ConfigError
from vecgate.traits import Backend

MAC: dict[str, Any] = {"system": "Darwin", "machine": "arm64"}
LINUX: dict[str, Any] = {"system": "Linux", "machine": "x86_64"}


@pytest.fixture
def mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package mlx and our backend for it were there, with one family."""
    _there(monkeypatch, "mlx")
    ours = _there(monkeypatch, "vecgate.backends.mlx")
    ours.FAMILIES = {"bert": "vecgate.backends.mlx.bert"}  # type: ignore[attr-defined]


def _there(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = sys.modules["sys"].__spec__  # any spec: find_spec asks no more
    monkeypatch.setitem(sys.modules, name, module)
    return module


def _absent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)


def test_auto_takes_mlx_on_apple_silicon_when_it_has_the_family(mlx: None) -> None:
    name, why = choose("auto", "bert", **MAC)
    assert name == "mlx"
    assert "Apple Silicon" in why


@pytest.mark.parametrize(
    ("family", "place", "why"),
    [
        ("bert", LINUX, "this is Linux x86_64"),
        ("bert", {"system": "Darwin", "machine": "x86_64"}, "this is Darwin x86_64"),
        ("t5", MAC, "does not have the family 't5'"),
    ],
)
def test_auto_takes_torch_elsewhere_and_says_why(mlx: None, family: str, place: dict[str, Any], why: str) -> None:
    name, reason = choose("auto", family, **place)
    assert name == "torch"
    assert why in reason


@pytest.mark.parametrize("missing", ["mlx", "vecgate.backends.mlx"])
def test_auto_takes_torch_where_mlx_is_not_installed(mlx: None, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _absent(monkeypatch, missing)
    assert choose("auto", "bert", **MAC) == ("torch", "MLX is not installed")


def test_what_is_asked_for_is_taken(mlx: None) -> None:
    assert choose("torch", "bert", **MAC) == ("torch", "asked for")
    assert choose("fake", "anything", **LINUX) == ("fake", "asked for")
    assert choose("mlx", "bert", **LINUX) == ("mlx", "asked for")


def test_mlx_for_a_family_it_does_not_have_is_one_sentence(mlx: None) -> None:
    with pytest.raises(ConfigError, match=r"BACKEND=mlx can't serve the family 't5'.*torch.*bert"):
        choose("mlx", "t5", **MAC)
    with pytest.raises(ConfigError, match=r"BACKEND=mlx can't serve the family 'mamba'; nor can torch; MLX has bert"):
        choose("mlx", "mamba", **MAC)


@pytest.mark.parametrize("requested", ["torch", "auto"])
@pytest.mark.parametrize(
    ("family", "task", "said"),
    [
        (
            "bart",
            "embed",
            r"BACKEND=torch can't embed with the family 'bart'; it can with albert, bert, .*xlm-roberta\.$",
        ),
        ("t5", "rerank", r"can't rerank with the family 't5'; it can with albert, (?!.*nomic_bert)(?!.*\bt5\b)"),
    ],
)
def test_a_family_that_torch_was_not_shown_to_do_is_refused(
    mlx: None, requested: str, family: str, task: Task, said: str
) -> None:
    for place in (LINUX, MAC):
        with pytest.raises(ConfigError, match=said):
            choose(requested, family, task, **place)
    assert choose("torch", "t5", "embed", **LINUX) == ("torch", "asked for")


def test_the_table_of_torch_costs_no_import() -> None:
    script = "import sys, vecgate.backends as b; assert b.TORCH['bert']; print({'torch', 'mlx'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("torch", "torch", r"pip install 'vecgate\[torch\]'"),
        ("torch", "transformers", r"pip install 'vecgate\[torch\]'"),
        ("mlx", "mlx", "pip install mlx mlx-lm"),
    ],
)
def test_a_missing_package_is_named_with_its_cure(
    mlx: None, name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _absent(monkeypatch, package)
    said = f"The backend {name} needs the package '{package}', which is not installed: {install}"
    with pytest.raises(ConfigError, match=said):
        choose(name, "bert", **MAC)
    with pytest.raises(ConfigError, match=said):
        open_backend(name, _nothing())


def test_mlx_without_our_module_is_one_sentence(mlx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _absent(monkeypatch, "vecgate.backends.mlx")
    with pytest.raises(ConfigError, match="BACKEND=mlx is not part of this version"):
        choose("mlx", "bert", **MAC)


def test_an_unknown_backend_is_told_the_names() -> None:
    with pytest.raises(ConfigError, match="BACKEND='onnx' is not known; use one of auto, torch, mlx, fake"):
        choose("onnx", "bert", **LINUX)
    with pytest.raises(ConfigError, match="'onnx'"):
        open_backend("onnx", _nothing())


def test_a_new_backend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _there(monkeypatch, "made_up_backend")
    opened = load_fake(_nothing())
    seen: list[tuple[str, dict[str, Any]]] = []

    def load(checkpoint: Checkpoint, **options: Any) -> Backend:
        seen.append((checkpoint.name, options))
        return opened

    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(BACKENDS, "made-up", "made_up_backend:load")
    assert choose("made-up", "bert", **LINUX) == ("made-up", "asked for")
    assert open_backend("made-up", _nothing(), dtype="float32") is opened
    assert seen == [("nothing", {"dtype": "float32"})]


def test_platform_is_read_when_not_told(mlx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Plan9")
    monkeypatch.setattr(platform, "machine", lambda: "mips")
    assert choose("auto", "bert") == ("torch", "MLX needs Apple Silicon, this is Plan9 mips")


def _nothing() -> Checkpoint:
    return Checkpoint(
        name="nothing",
        folder=Path("nowhere"),
        family="bert",
        task="embed",
        config={},
        weights=(),
        max_tokens=8,
        pad_id=0,
        stored_dtype="float32",
        weight_bytes=0,
    )
