"""The hands: which backends there are, which one a model gets, and how one is opened.

Imports no backend until it is asked for; knows no engine, no HTTP, no tensor.
"""

from __future__ import annotations

import platform
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vecgate.core import Checkpoint, Task
from vecgate.errors import ConfigError
from vecgate.traits import Backend

BACKENDS = {
    "torch": "vecgate.backends.torch:load",
    "mlx": "vecgate.backends.mlx.backend:load",
    "fake": "vecgate.backends.fake:load",
}

BOTH: tuple[Task, ...] = ("embed", "rerank")
TORCH: dict[str, tuple[Task, ...]] = {
    "albert": BOTH,
    "bert": BOTH,
    "camembert": BOTH,
    "deberta-v2": BOTH,
    "distilbert": BOTH,
    "electra": BOTH,
    "ernie": BOTH,
    "eurobert": BOTH,
    "gemma": BOTH,
    "gemma2": BOTH,
    "gemma3_text": BOTH,
    "gte": BOTH,
    "llama": BOTH,
    "mistral": BOTH,
    "modernbert": BOTH,
    "mpnet": BOTH,
    "nomic_bert": ("embed",),
    "phi3": BOTH,
    "qwen2": BOTH,
    "qwen3": BOTH,
    "roberta": BOTH,
    "t5": ("embed",),
    "xlm-roberta": BOTH,
}
"""config.json's model_type -> what torch was shown to do rightly with it; tests/backends/torch/test_families.py shows it."""

APPLE_SILICON = ("Darwin", "arm64")
"""platform.system(), platform.machine()."""

# Distributions whose absence is the user's to cure: backend -> (import names, how to get them).
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch", "transformers"), "pip install 'vecgate[torch]'"),
    "mlx": (("mlx",), "pip install mlx mlx-lm"),
}


def open_backend(name: str, checkpoint: Checkpoint, **options: Any) -> Backend:
    """Load the checkpoint with the named backend; raises ConfigError where its packages are not installed."""
    require(name)
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)(checkpoint, **options)
    return backend


def choose(
    requested: str, family: str, task: Task = "embed", *, system: str | None = None, machine: str | None = None
) -> tuple[str, str]:
    """(backend, why) for a model family and what it is to do; raises ConfigError where that can't be had.

    auto: MLX on Apple Silicon when it is installed and has the family, else torch. `system` and `machine` are
    platform.system() and platform.machine() unless told.
    """
    if requested == "auto":
        why_not = _not_mlx(family, system or platform.system(), machine or platform.machine())
        name, why = ("mlx", f"Apple Silicon, and MLX has {family}") if why_not is None else ("torch", why_not)
    else:
        name, why = requested, "asked for"
    require(name)
    if name == "mlx" and family not in _mlx_families():
        other = "use BACKEND=torch, or one of" if task in TORCH.get(family, ()) else "nor can torch; MLX has"
        raise ConfigError(f"BACKEND=mlx can't serve the family {family!r}; {other} {_known()}.")
    if name == "torch" and task not in TORCH.get(family, ()):
        raise ConfigError(not_on_torch(family, task))
    return name, why


def not_on_torch(family: str, task: Task) -> str:
    """That torch can't do it, and for which families it can."""
    known = ", ".join(one for one, tasks in sorted(TORCH.items()) if task in tasks)
    return f"BACKEND=torch can't {task} with the family {family!r}; it can with {known}."


def require_one(requested: str) -> None:
    """Raise ConfigError where no model at all could be served, before one is looked for or fetched."""
    if not mlx_possible(requested):
        require("torch" if requested == "auto" else requested)


def mlx_possible(requested: str, *, system: str | None = None, machine: str | None = None) -> bool:
    """Whether MLX may be the answer of `choose` for some family: asked for, or left open on Apple Silicon."""
    apple = (system or platform.system(), machine or platform.machine()) == APPLE_SILICON
    return requested == "mlx" or (requested == "auto" and apple and _mlx_built() and find_spec("mlx") is not None)


def require(name: str) -> None:
    """Raise ConfigError where the backend is unknown or one of its packages is missing; imports none of them."""
    if name not in BACKENDS:
        raise ConfigError(f"BACKEND={name!r} is not known; use one of auto, {', '.join(BACKENDS)}.")
    packages, install = NEEDS.get(name, ((), ""))
    missing = next((package for package in packages if find_spec(package) is None), None)
    if missing is not None:
        raise ConfigError(f"The backend {name} needs the package {missing!r}, which is not installed: {install}.")
    if name == "mlx" and not _mlx_built():
        raise ConfigError("BACKEND=mlx is not part of this version of vecgate; use BACKEND=torch.")


def _not_mlx(family: str, system: str, machine: str) -> str | None:
    """Why auto does not take MLX, or None when it does."""
    if (system, machine) != APPLE_SILICON:
        return f"MLX needs Apple Silicon, this is {system} {machine}"
    if not _mlx_built() or find_spec("mlx") is None:
        return "MLX is not installed"
    if family not in _mlx_families():
        return f"MLX does not have the family {family!r}"
    return None


def _mlx_built() -> bool:
    return find_spec("vecgate.backends.mlx") is not None


def _mlx_families() -> dict[str, str]:
    families: dict[str, str] = import_module("vecgate.backends.mlx").FAMILIES
    return families


def _known() -> str:
    return ", ".join(sorted(_mlx_families()))
