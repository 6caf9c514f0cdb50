"""A checkpoint's tokenizer.json: the tokenizer, opened, and the special ids it puts around texts; no text of a call.

The post-processor itself says nothing about its form, so its template is found by probing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import normalizers

from vecgate.core import Checkpoint
from vecgate.errors import CheckpointError

PROBES = ("Hello, world!", "a", "The year 1984", "\u4f60\u597d", "x = y + 2")
PAIRS = tuple(pairwise(PROBES))


@dataclass(frozen=True, slots=True)
class Template:
    """The special ids around a body; between the two bodies of a pair stands `middle`."""

    head: tuple[int, ...]
    middle: tuple[int, ...]
    tail: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.head) + len(self.middle) + len(self.tail)


def open_tokenizer(checkpoint: Checkpoint) -> tokenizers.Tokenizer:
    """Lower-casing where the checkpoint asks for it."""
    inner = open_file(checkpoint.folder / "tokenizer.json")
    if checkpoint.lower_case and not _lowers(inner.normalizer):
        steps = [normalizers.Lowercase()] + ([inner.normalizer] if inner.normalizer is not None else [])
        inner.normalizer = normalizers.Sequence(steps)
    return inner


def open_file(path: Path) -> tokenizers.Tokenizer:
    """Without the truncation and padding of the file."""
    try:
        inner: tokenizers.Tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as a tokenizer ({error}); fetch the file again.") from error
    inner.no_truncation()  # all-MiniLM's file bakes in 128 tokens and fixed padding; its model takes 256
    inner.no_padding()
    return inner


def _lowers(normalizer: normalizers.Normalizer | None) -> bool:
    if isinstance(normalizer, normalizers.Sequence):
        return any(isinstance(normalizer[at], normalizers.Lowercase) for at in range(len(normalizer)))
    return isinstance(normalizer, normalizers.Lowercase)


def single_template(inner: tokenizers.Tokenizer, path: Path) -> Template:
    """The specials around one text; raises CheckpointError where the post-processor does more."""
    return _template(inner, [(text, None) for text in PROBES], path)


def pair_template(inner: tokenizers.Tokenizer, path: Path) -> Template:
    """The specials around and between two texts; raises CheckpointError where the post-processor does more."""
    return _template(inner, PAIRS, path)


def _template(inner: tokenizers.Tokenizer, probes: Sequence[tuple[str, str | None]], path: Path) -> Template:
    """The one template that explains every probe's ids."""
    fits: set[Template] | None = None
    for first, second in probes:
        bodies = [inner.encode(text, add_special_tokens=False).ids for text in (first, second) if text is not None]
        found = set(_fits(inner.encode(first, second).ids, bodies))
        fits = found if fits is None else fits & found
    if not fits:
        raise CheckpointError(f"{path}: its post-processor does more than put special tokens around a text.")
    return min(fits, key=lambda template: (len(template.head), len(template.middle)))


def _fits(full: list[int], bodies: list[list[int]]) -> Iterator[Template]:
    """Every way to read `full` as specials around the bodies (one or two)."""
    first, second = bodies[0], bodies[1] if len(bodies) > 1 else None
    for start in range(len(full) - len(first) + 1):
        if full[start : start + len(first)] != first:
            continue
        head, rest = tuple(full[:start]), full[start + len(first) :]
        if second is None:
            yield Template(head, (), tuple(rest))
            continue
        for at in range(len(rest) - len(second) + 1):
            if rest[at : at + len(second)] == second:
                yield Template(head, tuple(rest[:at]), tuple(rest[at + len(second) :]))


def check_types(inner: tokenizers.Tokenizer, pair: Template, path: Path) -> None:
    """Backends give type 1 to all from `second` on; a tokenizer that types otherwise would score wrongly."""
    first, second = PAIRS[0]
    split = len(pair.head) + len(inner.encode(first, add_special_tokens=False).ids) + len(pair.middle)
    types = inner.encode(first, second).type_ids
    if types != [int(index >= split) for index in range(len(types))]:
        raise CheckpointError(f"{path}: its token types are not 0 for the first text and 1 for the second.")
