"""What a checkpoint is for, by the evidence in its files; knows their contents, opens none.

A decoder's config.json is the same for an embedder and for a reranker made of it (Qwen3-Embedding, Qwen3-Reranker).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vecgate.core import Task
from vecgate.engine.modules import Chain
from vecgate.errors import CheckpointError

RERANK = re.compile(r"re-?rank|cross-?encoder", re.IGNORECASE)
EMBED = re.compile(r"embed", re.IGNORECASE)
DECODERS = (
    "qwen2",
    "qwen3",
    "mistral",
    "llama",
    "gemma",
    "gemma2",
    "gemma3_text",
    "ministral",
    "phi3",
    "olmo2",
    "eurobert",
)
"""Families whose rows may hang on the last token, whatever config.json calls them."""
HINT = "say what it is for with --task embed or --task rerank"


def architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def generates(config: Mapping[str, Any]) -> bool:
    """Whether it is a causal language model, whose files may mean either task."""
    return architecture(config).endswith("ForCausalLM")


def speaks_last(config: Mapping[str, Any]) -> bool:
    """Whether what its tokenizer does at the end of a text may decide a row."""
    return generates(config) or config.get("model_type") in DECODERS


def declared(config: Mapping[str, Any], chain: Chain | None) -> Task | None:
    """The task by modules.json or the architecture; None where only evidence can tell."""
    if chain is not None and chain.pooling:
        return "embed"
    if chain is not None and chain.yes_id is not None:
        return "rerank"
    if architecture(config).endswith("ForSequenceClassification"):
        return "rerank"
    return None if generates(config) and chain is None else "embed"


def signs_of(
    name: str, tensors: Collection[str], ending: str | None, known: tuple[Task, str] | None = None
) -> list[tuple[Task, str]]:
    """What a causal language model without a modules.json may be for, and by which sign, the strongest first.

    ending: the special token that its tokenizer puts at the end of a text. known: the task and the name of the family
    that its name is one of.
    """
    signs: list[tuple[Task, str]] = []
    if tensors and not any(tensor.startswith(("model.", "language_model.")) for tensor in tensors):
        signs.append(("embed", "its tensors have no prefix"))
    if ending is not None:
        signs.append(("embed", f"its tokenizer ends a text with {ending}"))
    if RERANK.search(name):
        signs.append(("rerank", f"it is called {name}"))
    elif EMBED.search(name):
        signs.append(("embed", f"it is called {name}"))
    if known is not None:
        signs.append((known[0], f"its name is one of {known[1]}"))
    return signs


def guessed(root: Path, signs: Sequence[tuple[Task, str]]) -> tuple[Task, str]:
    """The task that the signs agree on, and why; raises CheckpointError where there are none or they contradict."""
    if not signs:
        raise CheckpointError(
            f"{root} is a causal language model, and nothing says whether it embeds or reranks; {HINT}."
        )
    others = [f"{task} ({why})" for task, why in signs if task != signs[0][0]]
    if others:
        raise CheckpointError(f"{root} may {signs[0][0]} ({signs[0][1]}) or {others[0]}; {HINT}.")
    return signs[0]


def check_head(root: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless the model has something to score a pair with."""
    name = architecture(config)
    if not name.endswith(("ForSequenceClassification", "ForCausalLM")):
        raise CheckpointError(f"{root / 'config.json'}: {name or 'no architecture'} has no head to rerank with.")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if name.endswith("ForSequenceClassification") and count != 1:
        raise CheckpointError(f"{root / 'config.json'} has {count} labels; a reranker has 1.")
