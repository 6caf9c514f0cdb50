"""The headers of safetensors files: which tensors exist, how large, in what type; reads no weights.

Of pickle, where it is allowed, only the files' names and sizes are looked at.

Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from vecgate.errors import CheckpointError

HEADER_BYTES = 100_000_000
"""The format's own limit for the JSON."""
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SAFE, PICKLE = "model.safetensors", "pytorch_model.bin"
WIDTHS |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True)
class Weights:
    """files: in the index's order. dtype: the float type that holds most bytes. size_bytes: of all tensors. tensors:
    their names; none are known of a single file of pickle."""

    files: tuple[Path, ...]
    dtype: str
    size_bytes: int
    tensors: frozenset[str] = frozenset()


def find(folder: Path, *, allow_pickle: bool = False) -> Weights:
    """The checkpoint's weights, every header checked; raises CheckpointError naming the file and the remedy.

    allow_pickle: where there are no safetensors, PyTorch's own files will do.
    """
    if allow_pickle and not _has(folder, SAFE) and _has(folder, PICKLE):
        return _pickled(folder)
    listed = _listed(folder)
    sizes: Counter[str] = Counter()
    found: set[str] = set()
    for path, expected in listed.items():
        tensors = header(path)
        for name in expected - tensors.keys():
            raise CheckpointError(f"{path} lacks the tensor {name!r} of its index; fetch the file again.")
        found |= tensors.keys()
        for tensor in tensors.values():
            begin, end = tensor["data_offsets"]
            sizes[tensor["dtype"]] += end - begin
    floats = [name for name, _ in sizes.most_common() if name in DTYPES]
    return Weights(tuple(listed), DTYPES[floats[0]] if floats else "float32", sizes.total(), frozenset(found))


def names(folder: Path, file: str = SAFE) -> tuple[str, ...]:
    """The files that hold the weights by their index, else the one of that name; they may not exist yet."""
    index = folder / f"{file}.index.json"
    return tuple(path.name for path in _indexed(index)) if index.exists() else (file,)


def _has(folder: Path, file: str) -> bool:
    return (folder / file).exists() or (folder / f"{file}.index.json").exists()


def _pickled(folder: Path) -> Weights:
    """What can be said without opening them: the type is told by config.json, if at all."""
    index = folder / f"{PICKLE}.index.json"
    listed = _indexed(index) if index.exists() else {folder / PICKLE: set()}
    for path in listed:
        if not path.exists():
            raise CheckpointError(f"{path} is missing, though {index.name} lists it; fetch the model again.")
    size_bytes = sum(path.stat().st_size for path in listed)
    return Weights(tuple(listed), "", size_bytes, frozenset().union(*listed.values()))


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {dtype, shape, data_offsets}; raises CheckpointError for a file that is cut short or corrupt."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size - 8
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, HEADER_BYTES):
                raise ValueError(f"its header would take {length} bytes, the file has {max(size, 0)}")
            tensors = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again.") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} is not a safetensors file (its header is no table); fetch it again.")
    tensors.pop("__metadata__", None)
    end = max((_end(path, name, tensor) for name, tensor in tensors.items()), default=0)
    if end != size - length:
        held = size - length
        raise CheckpointError(f"{path} holds {held} bytes of weights, its header says {end}; fetch the file again.")
    return tensors


def _end(path: Path, name: str, tensor: Any) -> int:
    """Where the tensor's data ends, its entry checked."""
    try:
        dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        width = WIDTHS.get(dtype)
        sane = 0 <= begin <= end and (width is None or width * prod(shape) == end - begin)
    except (KeyError, TypeError, ValueError):
        sane = False
    if not sane:
        raise CheckpointError(f"{path} describes the tensor {name[:100]!r} wrongly; fetch the file again.")
    return int(end)


def _listed(folder: Path) -> dict[Path, set[str]]:
    """Each file of weights with the tensors its index puts there (none asked for without an index)."""
    index = folder / "model.safetensors.index.json"
    listed = _indexed(index) if index.exists() else {folder / "model.safetensors": set()}
    for path in listed:
        if not path.exists():
            raise CheckpointError(_missing(path, sharded=index.exists()))
    return listed


def _indexed(index: Path) -> dict[Path, set[str]]:
    try:
        pairs = [(str(name), str(file)) for name, file in json.loads(index.read_bytes())["weight_map"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of weights ({error}); fetch it again.") from error
    listed: dict[Path, set[str]] = {}
    for name, file in pairs:
        kind = ".bin" if index.name.startswith(PICKLE) else ".safetensors"
        if Path(file).name != file or not file.endswith(kind):
            raise CheckpointError(f"{index} names {file[:100]!r}, which is not a {kind[1:]} file beside it.")
        listed.setdefault(index.parent / file, set()).add(name)
    if not listed:
        raise CheckpointError(f"{index} lists no weights; fetch it again.")
    return listed


def _missing(path: Path, *, sharded: bool) -> str:
    folder = path.parent
    if sharded:
        return f"{path} is missing, though model.safetensors.index.json lists it; fetch the model again."
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder} has its weights only as pickle, which can run code and is not loaded; take a revision with "
            "model.safetensors, convert it with transformers' save_pretrained(), or trust it with --allow-pickle."
        )
    if (folder / "adapter_config.json").exists():
        return f"{folder} holds a LoRA adapter only; merge it into its base model and save that."
    if any(folder.glob("model-*.safetensors")):
        return f"{folder} has shards but no model.safetensors.index.json, which lists them; fetch that file too."
    return f"{folder} has no model.safetensors; fetch the model again, or pick one with safetensors weights."
