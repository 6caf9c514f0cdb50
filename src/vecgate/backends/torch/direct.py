"""Modules that call their forward at once, without torch's look for hooks: of a query's forward that is a tenth.

Knows modules; no family, no batch.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def direct(model: torch.nn.Module) -> None:
    """For what a model in eval mode is made of, once every hook is there: a module that has one keeps torch's own call.

    Each other becomes one of a subclass of the same name, so what asks for its class finds the one it had.
    """
    made: dict[type, Any] = {}
    for module in [one for one in model.modules() if one is not model]:
        if not any(getattr(module, hooks) for hooks in HOOKS):
            kind = type(module)
            if kind not in made:
                made[kind] = _direct(kind)
            module.__class__ = made[kind]
        chunk: Any = getattr(module.__class__, "feed_forward_chunk", None)
        if chunk is not None:  # whose parameters transformers counts in every layer of every forward
            chunk.__signature__ = signature(chunk)


def _direct(kind: Any) -> Any:
    call: Any = _same if issubclass(kind, torch.nn.Dropout) else kind.forward
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {"__call__": call, **named})


def _same(_: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return tokens
