"""Rows that a model is known to give, kept by the hash of its weights: what a loaded copy of it must give too.

A record is a JSON file, here for the models we know, or wherever a user keeps one; `vecgate verify --record` makes it.
Knows files and arrays, neither devices nor engines.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as once
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from vecgate.core import Checkpoint, Task, Vectors
from vecgate.engine import hashes, weights
from vecgate.errors import CheckpointError, CommandError

Asked = tuple[str | None, str]
"""(role or None, text) of an embedder, (query, document) of a reranker."""

DIGITS = 16
"""Of a tensor's sha256: enough to tell a change from none."""
PART_BYTES = 1 << 22
MOST_NAMES = 0.95
"""Of a file's tensors: who saves a model again may leave out what it can make anew (position_ids), or a head."""


@dataclass(frozen=True, slots=True)
class Record:
    """source: who computed it, in which number type. sha256, size_bytes: of each file of weights, in their order. rows: (N, D) of length 1 for
    `asked`, or (N, 1) logits. tensors: name -> the first digits of its sha256, where the weights are one safetensors file."""

    name: str
    task: Task
    source: str
    dtype: str
    sha256: tuple[str, ...]
    size_bytes: tuple[int, ...]
    asked: tuple[Asked, ...]
    rows: Vectors
    tensors: dict[str, str] = field(default_factory=dict)


def read(path: Any) -> Record:
    """Raises CommandError where the file is no record."""
    try:
        told = json.loads(path.read_text("utf-8"))
        width = int(told["width"])
        rows = np.frombuffer(base64.b64decode(told["rows"]), "<f4").reshape(-1, width).astype(np.float32)
        asked = tuple((role, str(text)) for role, text in told["asked"])
        if len(asked) != len(rows) or told["task"] not in ("embed", "rerank"):
            raise ValueError("its parts do not fit")
        return Record(
            name=str(told["name"]),
            task=told["task"],
            source=str(told["source"]),
            dtype=str(told["dtype"]),
            sha256=tuple(told["sha256"]),
            size_bytes=tuple(told["size_bytes"]),
            asked=asked,
            rows=rows,
            tensors=dict(told["tensors"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{path} holds no rows that `vecgate verify --record` wrote ({error}).") from error


def written(record: Record) -> str:
    """The record as its file's text."""
    told = {
        "name": record.name,
        "task": record.task,
        "source": record.source,
        "dtype": record.dtype,
        "sha256": record.sha256,
        "size_bytes": record.size_bytes,
        "asked": record.asked,
        "width": record.rows.shape[1],
        "rows": base64.b64encode(record.rows.astype("<f4").tobytes()).decode(),
        "tensors": record.tensors,
    }
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


@once
def stored() -> tuple[Record, ...]:
    """Those that come with vecgate."""
    found = sorted(files(__name__).iterdir(), key=lambda one: one.name)
    return tuple(read(one) for one in found if one.name.endswith(".json"))


def known(checkpoint: Checkpoint, cache: Path | None, records: Sequence[Record] | None = None) -> Record | None:
    """The record of just these weights, by their hash, or where they were saved again by each tensor's."""
    for record in stored() if records is None else records:
        if record.task == checkpoint.task and (hashed(checkpoint, record, cache) or _same(checkpoint, record)):
            return record
    return None


def hashed(checkpoint: Checkpoint, record: Record, cache: Path | None) -> bool:
    """Whether the files are the record's to the byte; they are read only where their sizes are."""
    return (
        _sizes(checkpoint) == record.size_bytes
        and tuple(digest(path, cache) for path in checkpoint.weights) == record.sha256
    )


def digest(path: Path, cache: Path | None) -> str:
    return hashes.named(path) or hashes.sha256(path, cache)


def likeness(checkpoint: Checkpoint, record: Record) -> tuple[list[str], int]:
    """(names of tensors that are not the record's, how many are compared); ([], 0) where the files can't be."""
    names = _shared(checkpoint, record)
    return [*_others(checkpoint, record, names)], len(names)


def tensors(checkpoint: Checkpoint) -> dict[str, str]:
    """Each tensor's digits, of weights that are one safetensors file; none of others."""
    return dict(_digits(checkpoint.weights[0])) if _readable(checkpoint) else {}


def _same(checkpoint: Checkpoint, record: Record) -> bool:
    """Ends at the first tensor that is another, so that another model of this shape costs nothing."""
    names = _shared(checkpoint, record)
    return bool(names) and next(_others(checkpoint, record, names), None) is None


def _shared(checkpoint: Checkpoint, record: Record) -> list[str]:
    """The names that both have; none where these are not nearly all."""
    if not record.tensors or not _readable(checkpoint):
        return []
    held = weights.header(checkpoint.weights[0]).keys()
    names = [name for name in record.tensors if name in held]
    return names if len(names) >= MOST_NAMES * max(len(held), len(record.tensors)) else []


def _others(checkpoint: Checkpoint, record: Record, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield from (name for name, digits in _digits(checkpoint.weights[0], names) if digits != record.tensors[name])


def _readable(checkpoint: Checkpoint) -> bool:
    return len(checkpoint.weights) == 1 and checkpoint.weights[0].suffix == ".safetensors"


def _digits(path: Path, names: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Of the tensors named, else of all."""
    held: Mapping[str, Any] = weights.header(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in held if names is None else names:
            tensor = held[name]
            begin, end = tensor["data_offsets"]
            file.seek(start + begin)
            digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']}".encode())
            while begin < end:
                part = file.read(min(PART_BYTES, end - begin))
                digest.update(part)
                begin += len(part)
            yield name, digest.hexdigest()[:DIGITS]


def blobs(checkpoint: Checkpoint) -> list[str]:
    """Files of weights in the hub's cache that are not what their names there say they are; raises CheckpointError."""
    wrong = []
    for path in checkpoint.weights:
        named = hashes.named(path)
        try:
            if named is not None and hashes.sha256(path, None) != named:
                wrong.append(path.name)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read ({error.strerror}).") from error
    return wrong


def _sizes(checkpoint: Checkpoint) -> tuple[int, ...]:
    return tuple(path.stat().st_size for path in checkpoint.weights)
