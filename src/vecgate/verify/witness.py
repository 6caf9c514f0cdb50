"""Rows of the same checkpoint by sentence-transformers, in a process of its own that does not know vecgate.

Knows files and the reference's recipes (engine/reference.py), no engine. It reads the same files as we do: what is wrong
in them is wrong in its rows too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import vecgate.engine
from vecgate.core import Checkpoint, Vectors
from vecgate.engine.golden import Asked
from vecgate.engine.model import prompt_of
from vecgate.engine.modules import read_json
from vecgate.engine.task import generates
from vecgate.errors import CommandError

SCRIPT = Path(vecgate.engine.__file__).parent / "reference.py"
PACKAGE = "sentence_transformers"
LIMIT_S = 3600.0
INSTALL = "pip install 'vecgate[verify]'"


@dataclass(frozen=True, slots=True)
class Told:
    """rows: as pooled, in the order asked; logits of a reranker. ids: of every row. source: who it was."""

    rows: Vectors
    ids: list[list[int]]
    source: str


def missing() -> str | None:
    """Why there is no witness at all."""
    return None if find_spec(PACKAGE) else f"sentence-transformers is not installed: {INSTALL}"


def recipe(checkpoint: Checkpoint, asked: Sequence[Asked]) -> dict[str, Any]:
    """The case that reference.py takes; raises CommandError where the reference can't read what we can."""
    if checkpoint.quantization is not None:
        raise CommandError("its weights are packed for MLX, which the reference does not read")
    case: dict[str, Any] = {"name": "model", "folder": str(_folder(checkpoint)), "asked": [*asked]}
    if checkpoint.task == "rerank":
        return case | _scored(checkpoint)
    own = _own_prompts(checkpoint)
    roles = {role for role, _ in asked if role is not None and role not in own}
    prompts = {role: prompt_of(checkpoint, role)[1] for role in roles}
    if checkpoint.tail:
        prompts |= {role: text for role, text in own.items() if role not in prompts}
        return case | {
            "how": "last",
            "tail": [*checkpoint.tail],
            "max_tokens": checkpoint.max_tokens,
            "prompts": prompts,
        }
    if not (_folder(checkpoint) / "modules.json").exists():
        guess = "last" if generates(checkpoint.config) and checkpoint.config.get("is_causal", True) else "mean"
        if checkpoint.pooling != (guess,):
            raise CommandError(
                f"its files do not say how to pool: the reference would take {guess}, and {checkpoint.pooling[0]} is known "
                "to be right"
            )
    return case | {"how": "encode", "prompts": prompts}


def ask(case: dict[str, Any]) -> Told:
    """The rows; raises CommandError with the reference's own last words."""
    with tempfile.TemporaryDirectory() as out:
        line = json.dumps(case).encode() + b"\n"
        try:
            ran = subprocess.run(
                [sys.executable, str(SCRIPT), "--cases", out], input=line, capture_output=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise CommandError(f"the reference took longer than {LIMIT_S:g} s") from None
        answer = Path(out) / "model.npz"
        if ran.returncode or not answer.exists():
            last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
            raise CommandError(f"the reference can't read it ({last or f'exit status {ran.returncode}'})")
        with np.load(answer) as held:
            rows, ids, lengths = held["rows"], held["ids"], held["lengths"]
    parts = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    return Told(rows.astype(np.float32), parts, _source())


def _scored(checkpoint: Checkpoint) -> dict[str, Any]:
    template = checkpoint.template
    if template is None or template.whole or (checkpoint.yes_id is not None and checkpoint.no_id is None):
        return {"how": "predict"}
    lead, middle = (part.replace("{", "{{").replace("}", "}}") for part in (template.lead, template.middle))
    parts = [template.prefix, f"{lead}{{query}}{middle}{{document}}", template.suffix]
    said = {"yes": checkpoint.yes_id, "no": checkpoint.no_id} if checkpoint.yes_id is not None else {}
    return {"how": "judge", "template": parts, "max_tokens": checkpoint.max_tokens, **said}


def _folder(checkpoint: Checkpoint) -> Path:
    """Where modules.json lies: older checkpoints keep the transformer in a folder below it."""
    above = checkpoint.folder.parent
    below = not (checkpoint.folder / "modules.json").exists() and (above / "modules.json").exists()
    return above if below else checkpoint.folder


def _own_prompts(checkpoint: Checkpoint) -> dict[str, str]:
    path = _folder(checkpoint) / "config_sentence_transformers.json"
    told = read_json(path, dict).get("prompts") if path.exists() else {}
    return {str(role): str(text) for role, text in (told or {}).items()}


def _source() -> str:
    names = ("sentence-transformers", "transformers", "torch")
    try:
        return ", ".join(f"{name} {version(name)}" for name in names) + ", float32"
    except PackageNotFoundError:
        return "sentence-transformers, float32"
