"""config.json, modules.json and the folders it lists, as data; knows no tokenizer and no device.

Class paths changed over time (sentence_transformers.models.X, .base.modules.x.X), so the last component decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vecgate.core import Dense, Pooling
from vecgate.errors import CheckpointError

MODES: dict[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The old booleans, in the order in which several of them are concatenated."""
DENSE_KEYS = {"use_residual": (False, None), "module_input_name": ("sentence_embedding", None)}
DENSE_KEYS["module_output_name"] = DENSE_KEYS["module_input_name"]
"""What a Dense layer may say beside its size and activation without changing what it does."""
KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "LogitScore", "Dropout")


@dataclass(frozen=True, slots=True)
class Chain:
    """root: the transformer's folder. pooling is empty when the chain is a transformer alone (a cross-encoder) or ends
    in a score: the logit of yes_id, less that of no_id if there is one."""

    root: Path
    pooling: tuple[Pooling, ...] = ()
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    yes_id: int | None = None
    no_id: int | None = None


def chain(folder: Path, *, ignore_code: bool = False, allow_pickle: bool = False) -> Chain | None:
    """The chain, None without a modules.json; raises CheckpointError for one that can't be followed exactly."""
    path = folder / "modules.json"
    if not path.exists():
        return None
    listed = [_module(path, one, ignore_code) for one in read_json(path, list)]
    listed = [(kind, where) for kind, where in listed if kind != "Dropout"]  # which does nothing outside training
    kinds = [kind for kind, _ in listed]
    known = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), "Normalize"]
    scored = ["Transformer", "LogitScore"]
    if kinds not in (["Transformer"], scored, known, known[:-1]):
        raise CheckpointError(
            f"{path} chains {' > '.join(kinds) or 'nothing'}; what can be served is "
            "Transformer > Pooling, then any number of Dense, then at most one Normalize, and Transformer > LogitScore."
        )
    root = folder / listed[0][1]
    if kinds == scored:
        yes_id, no_id = _score(folder / listed[1][1] / "config.json")
        return Chain(root, yes_id=yes_id, no_id=no_id)
    pooling, include_prompt = _pooling(folder / listed[1][1] / "config.json") if len(kinds) > 1 else ((), True)
    return Chain(
        root=root,
        pooling=pooling,
        include_prompt=include_prompt,
        dense=tuple(_dense(folder / where, allow_pickle) for kind, where in listed if kind == "Dense"),
        normalize="Normalize" in kinds,
    )


def read_config(root: Path, *, ignore_code: bool = False) -> dict[str, Any]:
    """config.json of the transformer in this folder; raises CheckpointError when it asks for code or has no family.

    ignore_code: what it asks for is left out, and the family's own implementation serves it.
    """
    path = root / "config.json"
    if not path.exists():
        raise CheckpointError(f"{root} has no config.json, so it is no Hugging Face checkpoint; fetch the model again.")
    config: dict[str, Any] = read_json(path, dict)
    for key in ("auto_map", "model_file"):
        if config.pop(key, None) and not ignore_code:
            raise CheckpointError(
                f"{path} asks for code of the repository's own ({key}), which is never run; take a conversion to a "
                "family that transformers has itself, or serve it by ours with --ignore-code."
            )
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} has no model_type, so its family is unknown; fetch the file again.")
    return config


def read_json(path: Path, kind: type) -> Any:
    """The file's value; raises CheckpointError when it is missing, is no JSON or is not of this type."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; fetch the model again.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); fetch it again.") from error
    if not isinstance(value, kind):
        shape = "an object" if kind is dict else "a list"
        raise CheckpointError(f"{path} must hold {shape}, not {type(value).__name__}; fetch it again.")
    return value


def _module(path: Path, one: Any, ignore_code: bool) -> tuple[str, str]:
    """Class name and folder of one module. ignore_code: a class of the repository's own is taken for that of its name."""
    kind, where = (one.get("type"), one.get("path")) if isinstance(one, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(where, str):
        raise CheckpointError(f"{path} must list modules with a type and a path; fetch it again.")
    if not kind.startswith("sentence_transformers.") and not (ignore_code and kind.rpartition(".")[2] in KINDS):
        own = kind.rpartition(".")[2] in KINDS
        raise CheckpointError(
            f"{path} names {kind[:100]!r}, code of the repository's own, which is never run"
            + ("; --ignore-code serves it as sentence-transformers' class of that name." if own else ".")
        )
    if PurePosixPath(where).is_absolute() or ".." in PurePosixPath(where).parts:
        raise CheckpointError(f"{path} names the folder {where[:100]!r}, which lies outside the model's.")
    return kind.rpartition(".")[2], where


def _pooling(path: Path) -> tuple[tuple[Pooling, ...], bool]:
    config = read_json(path, dict)
    named = config.get("pooling_mode")
    if named is None:
        named = [mode for flag, mode in FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [named] if isinstance(named, str) else list(named)
    for mode in modes:
        if mode not in MODES:
            raise CheckpointError(f"{path} asks for the pooling {mode!r}; known are {', '.join(MODES)}.")
    return tuple(MODES[mode] for mode in modes), bool(config.get("include_prompt", True))


def _score(path: Path) -> tuple[int, int | None]:
    """The ids whose logits make the score."""
    config = read_json(path, dict)
    found = config.get("true_token_id"), config.get("false_token_id")
    for key, value in zip(("true_token_id", "false_token_id"), found):
        if type(value) is not int and not (value is None and key == "false_token_id"):
            raise CheckpointError(f"{path} sets {key} to {value!r}, which is no token id; fetch it again.")
    if config.get("module_input_name", "causal_logits") != "causal_logits":
        raise CheckpointError(
            f"{path} sets module_input_name to {config['module_input_name']!r}; known: causal_logits."
        )
    return found


def _dense(folder: Path, allow_pickle: bool) -> Dense:
    path = folder / "config.json"
    config = read_json(path, dict)
    for key, allowed in DENSE_KEYS.items():
        if config.get(key) not in allowed:
            raise CheckpointError(f"{path} sets {key} to {config[key]!r}, which is not supported.")
    activation = activation_of(str(config.get("activation_function") or "torch.nn.modules.activation.Tanh"))
    if activation is None:
        raise CheckpointError(f"{path} names the activation {config['activation_function']!r}, which is not torch's.")
    weights = folder / "model.safetensors"
    if allow_pickle and not weights.exists():
        weights = folder / "pytorch_model.bin"
    return Dense(weights, activation, bool(config.get("bias", True)))


def activation_of(path: str) -> str | None:
    """The class's bare name ("Tanh", "Identity"); None for a path that sentence-transformers does not trust either."""
    return path.rpartition(".")[2] if path.startswith("torch.") else None
