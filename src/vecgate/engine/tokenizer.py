"""Texts, pairs and the model's own token ids -> Tokens; knows the checkpoint's tokenizer, no device and no protocol.

The tokenizer object is set up once and never changed afterwards: special tokens come from a template found by probing
its post-processor, truncation is done here on the ids. So any number of threads may share it, and the length before
the cut is known without tokenising twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import normalizers

from vecgate.core import Checkpoint, Cut, Ids, Pieces, Tokens
from vecgate.errors import CheckpointError, InputTooLong, InvalidRequest

CHARS_PER_TOKEN = 16
"""A text of more than this many characters per token of the limit is a giant: it is tokenised slice by slice."""
WHOLE_CHARS = 16_384
"""Texts up to this length are tokenised whole, however small the limit is."""
WORD_CHARS = 1 << 16
"""A slice this long need no longer end between words: some texts and some tokenizers have none."""
SCAN_CHARS = 1 << 20
"""The most characters of one text that are looked at. A text with fewer tokens than the limit in as many characters
(a million spaces, one word of that length) is cut there; without the bound 32 MB of blanks cost 20 s and 2 GB."""
GROUP_CHARS = 1 << 20
"""Characters handed to the tokenizer at once: an encoding takes about 100 bytes a token until its ids are read."""
MARGIN_WORDS, MARGIN_TOKENS = 16, 256
"""What lies this close to a slice's end may be tokenised differently in the whole text."""
PIECES_CHARS = 1 << 18
"""The longest text whose tokens are listed one by one."""

PROBES = ("Hello, world!", "a", "The year 1984", "\u4f60\u597d", "x = y + 2")
PAIR_PROBES = tuple(pairwise(PROBES))
GAP = re.compile(r"(?<=\S)\s")


@dataclass(frozen=True, slots=True)
class Template:
    """The special ids around a body; between the two bodies of a pair stands `middle`."""

    head: tuple[int, ...]
    middle: tuple[int, ...]
    tail: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.head) + len(self.middle) + len(self.tail)


@dataclass(frozen=True, slots=True)
class Body:
    """The ids of one text without specials, already cut to what can be used; `total` counts them before the cut.

    exact: False when the far end was never tokenised, so that `total` is a lower bound.
    """

    ids: list[int]
    total: int
    exact: bool = True


class Tokenizer:
    """One checkpoint's tokenizer; every method may run on any thread. Raises CheckpointError when it can't be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._name = checkpoint.name
        self._inner = _open(checkpoint)
        known = self._inner.get_added_tokens_decoder()
        self._special = {i for i, token in known.items() if token.special}
        size = max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.vocab_size = min(size, checkpoint.config.get("vocab_size") or size)
        """Ids run from 0 to vocab_size - 1; never more than the model has rows for."""
        self._single = _template(self._inner, [(text, None) for text in PROBES], checkpoint)
        self._pair = _template(self._inner, PAIR_PROBES, checkpoint)
        if checkpoint.token_types:
            _check_types(self._inner, self._pair, checkpoint)
        self._prompt = lru_cache(maxsize=64)(self._read_prompt)

    def encode(
        self,
        inputs: Sequence[str | Sequence[int]],
        prompt: str,
        max_tokens: int,
        cut: Cut,
        max_text_tokens: int | None = None,
    ) -> list[Tokens]:
        """One row per input: text, or ids of this model with or without its special tokens.

        The prompt is put before a text as characters and before ids as ids, and survives a cut at the start.
        max_text_tokens: the most ids of each input beside prompt and specials, which more are cut to and never refused
        for. Raises InvalidRequest (an id outside the vocabulary, nothing to embed) and, when the cut is "refuse",
        InputTooLong.
        """
        room = self._room(self._single, max_tokens)
        lead, counted = self._prompt(prompt)
        most = None if max_text_tokens is None else len(lead) + max_text_tokens
        room = room if most is None else min(room, most)
        texts = self._bodies([prompt + one for one in _texts(inputs)], room, cut, lead)
        rows = []
        for index, one in enumerate(inputs):
            body = next(texts) if isinstance(one, str) else self._own(one, index, room, cut, lead)
            if cut == "refuse":
                counts = body if most is None else Body([], min(body.total, most), body.exact)
                _refuse(f"Input {index}", counts, len(self._single), max_tokens, "input")
            row = self._row([*self._single.head, *body.ids, *self._single.tail], index)
            rows.append(Tokens(row, prompt=min(counted, len(row)), original=body.total + len(self._single)))
        return rows

    def encode_pairs(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens: int,
        cut: Cut,
        max_document_tokens: int | None = None,
    ) -> list[Tokens]:
        """One row per document, query first; the longer side is cut first, as transformers' "longest_first" does.

        max_document_tokens: the most ids of each document, taken before the pair is cut. Raises as `encode` does.
        """
        template = self._pair
        room = self._room(template, max_tokens)
        (asked,) = self._bodies(_valid([query], "query"), room, cut)
        most = room if max_document_tokens is None else min(room, max_document_tokens)
        rows = []
        for index, body in enumerate(self._bodies(_valid(documents, "documents"), most, cut)):
            kept = body.total if max_document_tokens is None else min(body.total, max_document_tokens)
            if cut == "refuse":
                both = Body([], asked.total + kept, asked.exact and body.exact)
                _refuse(f"Document {index} with the query", both, len(template), max_tokens, "documents")
            first, second = longest_first(asked.total, kept, room)
            start = len(template.head) + first + len(template.middle)
            query_ids, ids = _cut(asked.ids, first, cut), _cut(body.ids, second, cut)
            row = self._row([*template.head, *query_ids, *template.middle, *ids, *template.tail], index)
            rows.append(Tokens(row, second=start, original=asked.total + body.total + len(template)))
        return rows

    def pieces(self, texts: Sequence[str], specials: bool) -> tuple[Pieces, ...]:
        """Every token of each text, uncut; raises InputTooLong over PIECES_CHARS characters."""
        for index, text in enumerate(_valid(texts, "input")):
            if len(text) > PIECES_CHARS:
                message = f"Text {index} has {len(text)} characters; the limit for listing tokens is {PIECES_CHARS}."
                raise InputTooLong(message, "input")
        return tuple(piece for group in _groups(texts, PIECES_CHARS) for piece in self._listed(group, specials))

    def decode(self, ids: Sequence[Sequence[int]], skip_specials: bool) -> tuple[str, ...]:
        """The text of each list of ids; raises InvalidRequest for an id outside the vocabulary."""
        checked = [self._checked(one, index).tolist() for index, one in enumerate(ids)]
        return tuple(self._inner.decode_batch(checked, skip_special_tokens=skip_specials))

    def _room(self, template: Template, max_tokens: int) -> int:
        room = max_tokens - len(template)
        if room < 1:
            count = len(template)
            raise InvalidRequest(f"A limit of {max_tokens} tokens leaves no room beside {count} special tokens.")
        return room

    def _read_prompt(self, prompt: str) -> tuple[list[int], int]:
        """The prompt's ids, and how many leading ids of a row belong to it, counted as sentence-transformers does:
        the prompt as a row of its own, less one where that ends with a special token."""
        if not prompt:
            return [], 0
        ids: list[int] = self._inner.encode(prompt, add_special_tokens=False).ids
        row = [*self._single.head, *ids, *self._single.tail]
        return ids, len(row) - (row[-1] in self._special)

    def _row(self, ids: list[int], index: int) -> Ids:
        if not ids:
            raise InvalidRequest(f"Input {index} is empty, and {self._name} has no special token to embed.", "input")
        return np.array(ids, dtype=np.int32)

    # the model's own ids

    def _own(self, ids: Sequence[int], index: int, room: int, cut: Cut, lead: list[int]) -> Body:
        if not len(ids):
            raise InvalidRequest(f"Input {index} is an empty list of token ids.", "input")
        own = self._checked(ids, index).tolist()
        head, tail = self._single.head, self._single.tail
        if len(own) >= len(self._single) and own[: len(head)] == [*head] and own[len(own) - len(tail) :] == [*tail]:
            own = own[len(head) : len(own) - len(tail)]
        whole = lead + own
        return Body(_cut(whole, room, cut, len(lead)), len(whole))

    def _checked(self, ids: Sequence[int], index: int) -> NDArray[Any]:
        array = np.asarray(ids) if len(ids) else np.zeros(0, dtype=np.int64)
        if array.dtype.kind not in "iu" and all(type(one) is int for one in ids):
            array = np.array(ids, dtype=object)  # beyond 64 bits, where numpy takes them for floats
        if array.ndim != 1 or array.dtype.kind not in "iuO":
            raise InvalidRequest(f"Input {index} is neither text nor a list of token ids.", "input")
        wrong = array[(array < 0) | (array >= self.vocab_size)]
        if len(wrong):
            raise InvalidRequest(
                f"Input {index} holds token id {wrong[0]}, but the vocabulary of {self._name} has {self.vocab_size} ids "
                f"(0 to {self.vocab_size - 1}). Ids of another tokenizer can't be embedded: send text, which in "
                "LangChain takes check_embedding_ctx_length=False.",
                "input",
            )
        return array

    # text

    def _bodies(self, texts: Sequence[str], room: int, cut: Cut, lead: Sequence[int] = ()) -> Iterator[Body]:
        """Bodies in order, each cut to `room` ids; `lead` are the ids that a cut at the start keeps."""
        giant = max(WHOLE_CHARS, CHARS_PER_TOKEN * room)
        for group in _groups(texts, giant):
            if len(group[0]) > giant:
                yield self._tail(group[0], room, giant, lead) if cut == "start" else self._head(group[0], room, giant)
                continue
            for encoding in self._inner.encode_batch_fast(group, add_special_tokens=False):
                ids = encoding.ids
                yield Body(_cut(ids, room, cut, len(lead)), len(ids))

    def _head(self, text: str, room: int, chars: int) -> Body:
        """The first ids of a giant, the same as those of the whole text."""
        most = max(SCAN_CHARS, chars)
        while chars < len(text):
            ids, words = self._slice(text[:chars])
            settled = int(np.searchsorted(words, words[-1] - MARGIN_WORDS)) if len(words) else 0
            if chars >= WORD_CHARS:
                settled = max(settled, len(ids) - MARGIN_TOKENS)
            if settled >= room or chars >= most:
                return Body(ids[:room], max(settled, min(len(ids), room)) + 1, exact=False)
            chars = min(chars * 4, most)
        ids, _ = self._slice(text)
        return Body(ids[:room], len(ids))

    def _tail(self, text: str, room: int, chars: int, lead: Sequence[int]) -> Body:
        """The prompt's ids and the last ids of a giant, the latter the same as those of the whole text."""
        needed = max(room - len(lead), 0)
        most = max(SCAN_CHARS, chars)
        while chars < len(text):
            gap = GAP.search(text, len(text) - chars, len(text) - chars // 2)
            ids, words = self._slice(text[gap.start() if gap else len(text) - chars :])
            loose = int(np.searchsorted(words, words[0] + MARGIN_WORDS)) if len(words) and gap else len(ids)
            if chars >= WORD_CHARS:
                loose = min(loose, MARGIN_TOKENS)
            if len(ids) - loose >= needed or chars >= most:
                total = len(lead) + max(len(ids) - loose, min(len(ids), needed)) + 1
                return Body(_cut([*lead, *ids], room, "start", len(lead)), total, exact=False)
            chars = min(chars * 4, most)
        ids, _ = self._slice(text)
        return Body(_cut(ids, room, "start", len(lead)), len(ids))

    def _slice(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of a part of a text, and for each the number of the word it belongs to, ascending."""
        encoding = self._inner.encode_batch([text], add_special_tokens=False)[0]
        words = np.array([0 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        return encoding.ids, np.maximum.accumulate(words)

    def _listed(self, texts: list[str], specials: bool) -> Iterator[Pieces]:
        for encoding in self._inner.encode_batch(texts, add_special_tokens=specials):
            ids, spans = encoding.ids, encoding.offsets
            yield Pieces(
                ids=tuple(ids),
                texts=tuple(encoding.tokens),
                starts=tuple(start for start, _ in spans),
                stops=tuple(stop for _, stop in spans),
                special=tuple(i in self._special for i in ids),
            )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many ids of each side stay, in the arithmetic of the tokenizers library (utils/truncation.rs)."""
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)


def _cut(ids: list[int], room: int, cut: Cut, keep: int = 0) -> list[int]:
    """At most `room` ids; a cut at the start spares the first `keep`."""
    if len(ids) <= room:
        return ids
    if cut != "start":
        return ids[:room]
    keep = min(keep, room)
    return ids[:keep] + ids[len(ids) - (room - keep) :]


def _refuse(what: str, body: Body, specials: int, max_tokens: int, param: str) -> None:
    count = body.total + specials
    if count > max_tokens:
        least = "" if body.exact else "at least "
        raise InputTooLong(f"{what} has {least}{count} tokens; the limit is {max_tokens}.", param)


def _texts(inputs: Sequence[str | Sequence[int]]) -> list[str]:
    return _valid([one if isinstance(one, str) else "" for one in inputs], "input", inputs)


def _valid(texts: Sequence[str], param: str, inputs: Sequence[object] | None = None) -> list[str]:
    """The texts; raises InvalidRequest for one that UTF-8 can't carry (JSON can spell half of a character)."""
    for index, text in enumerate(texts):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(text[error.start]):04X}"
                raise InvalidRequest(
                    f"Text {index} is not valid Unicode: it holds the lone surrogate {code}.", param
                ) from error
    return [text for text, one in zip(texts, inputs or texts, strict=True) if isinstance(one, str)]


def _groups(texts: Sequence[str], giant: int) -> Iterator[list[str]]:
    """Runs of texts of at most GROUP_CHARS together; a text over `giant` characters comes alone."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and (size + len(text) > GROUP_CHARS or len(text) > giant):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
        if len(text) > giant:
            yield group
            group, size = [], 0
    if group:
        yield group


def _open(checkpoint: Checkpoint) -> tokenizers.Tokenizer:
    path = checkpoint.folder / "tokenizer.json"
    try:
        inner: tokenizers.Tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as a tokenizer ({error}); fetch the file again.") from error
    inner.no_truncation()  # all-MiniLM's file bakes in 128 tokens and fixed padding; its model takes 256
    inner.no_padding()
    if checkpoint.lower_case and not _lowers(inner.normalizer):
        steps = [normalizers.Lowercase()] + ([inner.normalizer] if inner.normalizer is not None else [])
        inner.normalizer = normalizers.Sequence(steps)
    return inner


def _lowers(normalizer: normalizers.Normalizer | None) -> bool:
    if isinstance(normalizer, normalizers.Sequence):
        return any(isinstance(normalizer[at], normalizers.Lowercase) for at in range(len(normalizer)))
    return isinstance(normalizer, normalizers.Lowercase)


def _template(
    inner: tokenizers.Tokenizer, probes: Sequence[tuple[str, str | None]], checkpoint: Checkpoint
) -> Template:
    """The one template that explains every probe's ids; the post-processor itself says nothing about its form."""
    fits: set[Template] | None = None
    for first, second in probes:
        bodies = [inner.encode(text, add_special_tokens=False).ids for text in (first, second) if text is not None]
        found = set(_fits(inner.encode(first, second).ids, bodies))
        fits = found if fits is None else fits & found
    if not fits:
        path = checkpoint.folder / "tokenizer.json"
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


def _check_types(inner: tokenizers.Tokenizer, pair: Template, checkpoint: Checkpoint) -> None:
    """Backends give type 1 to all from `second` on; a tokenizer that types otherwise would score wrongly."""
    first, second = PAIR_PROBES[0]
    split = len(pair.head) + len(inner.encode(first, add_special_tokens=False).ids) + len(pair.middle)
    types = inner.encode(first, second).type_ids
    if types != [int(index >= split) for index in range(len(types))]:
        path = checkpoint.folder / "tokenizer.json"
        raise CheckpointError(f"{path}: its token types are not 0 for the first text and 1 for the second.")
