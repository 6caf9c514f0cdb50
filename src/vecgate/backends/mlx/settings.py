"""config.json's values beyond plain settings: read, or refused by name where a family's file does not follow them.

Knows keys and tensors' names, no architecture.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError


def flag(checkpoint: Checkpoint, key: str, default: bool = False) -> bool:
    """config.json's true or false; raises CheckpointError for anything else."""
    value = checkpoint.config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {str(value)[:100]!r} for {key!r}; it is a bool."
        )
    return default if value is None else value


def only(checkpoint: Checkpoint, key: str, *followed: object) -> None:
    """Raises CheckpointError where config.json has a value for the key that the family's file does not follow."""
    value = checkpoint.config.get(key)
    if value is not None and value not in followed:
        known = " or ".join(map(repr, followed)) or "nothing"
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {str(value)[:100]!r} for {key!r}; on MLX a {checkpoint.family} "
            f"model can have {known} there. Try BACKEND=torch."
        )


def base(checkpoint: Checkpoint, given: object, key: str) -> float:
    """The base of rotary positions; raises CheckpointError for what is no positive number, naming its key."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise CheckpointError(f"{checkpoint.folder / 'config.json'} has {str(given)[:100]!r} for {key!r}.")
    return float(given)


def unscaled(checkpoint: Checkpoint, given: object, key: str = "rope_parameters") -> dict[str, Any]:
    """The rope_parameters of a model or of a kind of layer; raises CheckpointError where they ask for more than a base."""
    own = given or {}
    plain = isinstance(own, dict) and own.get("rope_type", own.get("type", "default")) == "default"
    if not isinstance(own, dict) or not plain or own.get("partial_rotary_factor") not in (None, 1):
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has {str(own)[:100]} for {key!r}; on MLX a {checkpoint.family} model "
            "has no scaling of its positions. Try BACKEND=torch."
        )
    return own


def heads_fit(checkpoint: Checkpoint, hidden: int, heads: int) -> None:
    """Raises CheckpointError unless the hidden width can be cut into that many heads."""
    if hidden % heads:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: its hidden width {hidden} is no multiple of {heads} attention heads."
        )


def positions_fit(checkpoint: Checkpoint, room: int) -> None:
    """Raises CheckpointError where the table of positions is too short for the longest row."""
    if checkpoint.max_tokens > room:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has positions for {room} tokens; "
            f"the limit of {checkpoint.max_tokens} is over."
        )


def holds(checkpoint: Checkpoint, ending: str) -> bool:
    """Whether a tensor of the files is called so; reads none. A file that can't be read is named when it is loaded."""
    for file in checkpoint.weights:
        try:
            found = mx.load(str(file), format="safetensors")
        except (RuntimeError, ValueError):
            continue
        assert isinstance(found, dict)
        if any(name.endswith(ending) for name in found):
            return True
    return False
