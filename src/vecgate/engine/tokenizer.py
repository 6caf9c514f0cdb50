"""Texts, pairs and the model's own token ids -> Tokens; knows the checkpoint's tokenizer, no device and no protocol.

The tokenizer object is set up once and never changed afterwards: special tokens come from a template found by probing
its post-processor, truncation is done here on the ids. So any number of threads may share it, and the length before
the cut is known without tokenising twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from vecgate.core import Checkpoint, Cut, Ids, Pieces, Tokens
from vecgate.engine.form import Form
from vecgate.engine.giants import Body, cut_ids, head, longest_whole, tail, words_of
from vecgate.engine.refusals import called, no_room, refuse_longer, refuse_over, valid_texts
from vecgate.engine.template import Template, check_types, open_tokenizer, pair_template, single_template
from vecgate.errors import InvalidRequest

GROUP_CHARS = 1 << 16
"""Characters handed to the tokenizer at once, 10 to 100 ms of work: between groups a call can be left or wait its turn."""
GROUP_IDS = 1 << 14
"""Ids decoded at once, about as much work."""
CHECKED_IDS = 1 << 16
"""Ids of one list checked at once."""
PIECES_CHARS = 1 << 18
"""The longest text whose tokens are listed one by one."""
DECODED_IDS = 1 << 18
"""The longest list of ids that is decoded; its text can't be put together from parts."""


class Tokenizer:
    """One checkpoint's tokenizer; every method may run on any thread. Raises CheckpointError when it can't be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._name = checkpoint.name
        self._inner = open_tokenizer(checkpoint)
        known = self._inner.get_added_tokens_decoder()
        self._special = {i for i, token in known.items() if token.special}
        size = max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.vocab_size = min(size, checkpoint.config.get("vocab_size") or size)
        """Ids run from 0 to vocab_size - 1; never more than the model has rows for."""
        path = checkpoint.folder / "tokenizer.json"
        self._own_single = single_template(self._inner, path)
        self._single = replace(self._own_single, tail=(*self._own_single.tail, *checkpoint.tail))
        self._pair = pair_template(self._inner, path)
        if checkpoint.token_types:
            check_types(self._inner, self._pair, path)
        self._form = None if checkpoint.template is None else Form(checkpoint.template, self._inner)
        default = checkpoint.default_prompt if self._form is None else None  # a template already holds its instruction
        self._instruction = checkpoint.prompts.get(default, "") if default else ""
        self._prompt = lru_cache(maxsize=64)(self._read_prompt)
        around = self._single if checkpoint.task == "embed" else self._form or self._pair
        self.least_tokens = len(around) + 1
        """The smallest limit that leaves room for a text of its task."""

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def id_of(self, token: str) -> int | None:
        found: int | None = self._inner.token_to_id(token)
        return found

    def encode(
        self,
        inputs: Sequence[str | Sequence[int]],
        prompt: str,
        max_tokens: int,
        cut: Cut,
        max_text_tokens: int | None = None,
    ) -> list[Tokens]:
        """All rows of `encode_steps`."""
        return [*chain.from_iterable(self.encode_steps(inputs, prompt, max_tokens, cut, max_text_tokens))]

    def encode_steps(
        self,
        inputs: Sequence[str | Sequence[int]],
        prompt: str,
        max_tokens: int,
        cut: Cut,
        max_text_tokens: int | None = None,
        *,
        param: str = "input",
    ) -> Iterator[list[Tokens]]:
        """One row per input, in order, some or none each step: text, or ids of this model with or without its specials.

        The prompt is put before a text as characters and before ids as ids, and survives a cut at the start.
        max_text_tokens: the most ids of each input beside prompt and specials, which more are cut to and never refused
        for. param: what the inputs are in the request. A step raises InvalidRequest (an id outside the vocabulary, nothing to embed, no room beside the prompt)
        and, when the cut is "refuse", InputTooLong.
        """
        whole = self._room(self._single, max_tokens)
        lead, counted = self._prompt(prompt)
        most = whole if max_text_tokens is None else min(whole, len(lead) + max_text_tokens)

        def row(index: int, body: Body) -> Tokens:
            if whole <= len(lead) and (body.total > len(lead) or not body.exact):
                raise no_room(max_tokens, len(self._single), len(lead))
            if cut == "refuse":
                total = body.total if max_text_tokens is None else min(body.total, len(lead) + max_text_tokens)
                refuse_over(called(param, index), replace(body, total=total), len(self._single), max_tokens, param)
            ids = self._row([*self._single.head, *body.ids, *self._single.tail], index, param)
            return Tokens(ids, prompt=min(counted, len(ids)), original=body.total + len(self._single))

        yield from _steps(self._bodies(inputs, most, cut, param, prompt, lead), row)

    def encode_pairs(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens: int,
        cut: Cut,
        max_document_tokens: int | None = None,
    ) -> list[Tokens]:
        """All rows of `encode_pairs_steps`."""
        return [*chain.from_iterable(self.encode_pairs_steps(query, documents, max_tokens, cut, max_document_tokens))]

    def encode_pairs_steps(
        self,
        query: str,
        documents: Sequence[str],
        max_tokens: int,
        cut: Cut,
        max_document_tokens: int | None = None,
    ) -> Iterator[list[Tokens]]:
        """One row per document, query first, in order, some or none each step.

        The longer side is cut first, as transformers' "longest_first" does; in a checkpoint's template the document's
        end (or start) goes first and the query's then. max_document_tokens: the most ids of each document, taken before
        the pair is cut. A step raises as those of `encode_steps` do.
        """
        if self._form is not None:
            yield from self._formed(self._form, query, documents, max_tokens, cut, max_document_tokens)
            return
        query = self._instruction + query
        template = self._pair
        room = self._room(template, max_tokens)
        asked = Body([], 0)
        for body in self._bodies([query], room, cut, "query"):
            asked = body or asked
            if body is None:
                yield []
        if cut == "refuse":
            refuse_over("The query", asked, len(template), max_tokens, "query")
        most = room if max_document_tokens is None else min(room, max_document_tokens)

        def row(index: int, body: Body) -> Tokens:
            kept = body.total if max_document_tokens is None else min(body.total, max_document_tokens)
            if cut == "refuse":
                both = replace(body, total=asked.total + kept)
                refuse_over(f"Document {index} with the query", both, len(template), max_tokens, "documents")
            first, second = longest_first(_length(asked, asked.total), _length(body, kept), room)
            query_ids, ids = cut_ids(asked.ids, first, cut), cut_ids(body.ids, second, cut)
            start = len(template.head) + len(query_ids) + len(template.middle)
            both_ids = self._row(
                [*template.head, *query_ids, *template.middle, *ids, *template.tail], index, "documents"
            )
            return Tokens(both_ids, second=start, original=asked.total + body.total + len(template))

        yield from _steps(self._bodies(documents, most, cut, "documents", beside=len(asked.ids)), row)

    def _formed(
        self,
        form: Form,
        query: str,
        documents: Sequence[str],
        max_tokens: int,
        cut: Cut,
        max_document_tokens: int | None,
    ) -> Iterator[list[Tokens]]:
        """`encode_pairs_steps` through a template."""
        if max_tokens <= len(form):
            raise no_room(max_tokens, len(form))
        valid_texts([query], "query")
        valid_texts(documents, "documents")
        lost = [0] * len(documents)
        texts = [form.document(text) for text in documents]
        for span in _groups([len(text) for text in texts], GROUP_CHARS) if max_document_tokens is not None else ():
            limited = form.limited(texts[span.start : span.stop], max_document_tokens or 0)
            texts[span.start : span.stop] = [text for text, _ in limited]
            lost[span.start : span.stop] = [count for _, count in limited]
            yield []
        before = form.before(query)
        outside = 0 if form.inside else len(form.ending)
        room = max_tokens - len(form.head) - outside
        kept = form.ids(before)[: room - (len(form.ending) - outside)] if cut == "start" else []

        def row(index: int, body: Body) -> Tokens:
            if cut == "refuse":
                refuse_over(f"Document {index} with the query", body, len(form.head) + outside, max_tokens, "documents")
            ids = body.ids
            if form.inside and cut != "start" and (body.total > room or not body.exact):
                ids = ids[: room - len(form.ending)] + form.ending
            elif not form.inside:
                ids = [*form.head, *ids, *form.ending]
            total = len(form.head) + body.total + outside + lost[index]
            return Tokens(self._row(ids, index, "documents"), original=total)

        inputs = [text + form.after for text in texts]
        yield from _steps(self._bodies(inputs, room, cut, "documents", before, kept), row)

    def pieces(self, texts: Sequence[str], specials: bool) -> tuple[Pieces, ...]:
        """All of `pieces_steps`."""
        return tuple(chain.from_iterable(self.pieces_steps(texts, specials)))

    def pieces_steps(self, texts: Sequence[str], specials: bool) -> Iterator[list[Pieces]]:
        """Every token of each text, uncut, some texts each step; raises InputTooLong over PIECES_CHARS characters."""
        sizes = [len(text) for text in texts]
        refuse_longer(sizes, PIECES_CHARS, "Text {} has {} characters; the limit for listing tokens is")
        for span in _groups(sizes, GROUP_CHARS):
            group = valid_texts(texts[span.start : span.stop], "input", span.start)
            yield [
                self._listed(one, len(text), specials)
                for one, text in zip(self._inner.encode_batch(group, add_special_tokens=specials), group)
            ]

    def decode(self, ids: Sequence[Sequence[int]], skip_specials: bool) -> tuple[str, ...]:
        """All of `decode_steps`."""
        return tuple(chain.from_iterable(self.decode_steps(ids, skip_specials)))

    def decode_steps(self, ids: Sequence[Sequence[int]], skip_specials: bool) -> Iterator[list[str]]:
        """The text of each list of ids, some lists each step; raises InvalidRequest for an id outside the vocabulary,
        InputTooLong over DECODED_IDS ids."""
        sizes = [len(one) for one in ids]
        refuse_longer(sizes, DECODED_IDS, "Input {} has {} token ids; the limit for decoding a list is")
        for span in _groups(sizes, GROUP_IDS, most=GROUP_IDS):
            checked = [self._checked(ids[index], index).tolist() for index in span]
            yield self._inner.decode_batch(checked, skip_special_tokens=skip_specials)

    def _room(self, template: Template, max_tokens: int) -> int:
        room = max_tokens - len(template)
        if room < 1:
            raise no_room(max_tokens, len(template))
        return room

    def _read_prompt(self, prompt: str) -> tuple[list[int], int]:
        """The prompt's ids, and how many leading ids of a row belong to it, counted as sentence-transformers does:
        the prompt as a row of its own, less one where that ends with a special token."""
        if not prompt:
            return [], 0
        ids: list[int] = self._inner.encode(prompt, add_special_tokens=False).ids
        row = [*self._single.head, *ids, *self._single.tail]
        return ids, len(row) - (row[-1] in self._special)

    def _row(self, ids: list[int], index: int, param: str) -> Ids:
        if not ids:
            message = f"{called(param, index)} is empty, and {self._name} has no special token to embed."
            raise InvalidRequest(message, param)
        row = np.array(ids, dtype=np.int32)
        if row.max() >= self.vocab_size:  # Gemma's tokenizer knows one token more than EmbeddingGemma has rows for
            text = self._inner.id_to_token(int(row.max()))
            message = f"{called(param, index)} holds {text!r}, for which {self._name} has no row."
            raise InvalidRequest(message, param)
        return row

    # the model's own ids

    def _own(self, ids: Sequence[int], index: int, room: int, cut: Cut, lead: list[int]) -> Iterator[Body | None]:
        """None after each part that was checked, the Body last."""
        if not len(ids):
            raise InvalidRequest(f"Input {index} is an empty list of token ids.", "input")
        parts = [self._checked(ids[:CHECKED_IDS], index)]
        for start in range(CHECKED_IDS, len(ids), CHECKED_IDS):
            yield None
            parts.append(self._checked(ids[start : start + CHECKED_IDS], index))
        own = np.concatenate(parts)
        for template in (self._single, self._own_single):  # with what its tokenizer forgets, or without
            head, tail = [*template.head], [*template.tail]
            end = len(own) - len(tail)
            if end >= len(head) and own[: len(head)].tolist() == head and own[end:].tolist() == tail:
                own = own[len(head) : end]
                break
        near = own[-room:] if cut == "start" else own[:room]
        yield Body(cut_ids(lead + near.tolist(), room, cut, len(lead)), len(lead) + len(own))

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

    def _bodies(
        self,
        inputs: Sequence[str | Sequence[int]],
        room: int,
        cut: Cut,
        param: str,
        prompt: str = "",
        lead: list[int] | None = None,
        beside: int = 0,
    ) -> Iterator[Body | None]:
        """Bodies in order, each cut to `room` ids, and None wherever a bounded part of the work is done.

        lead: the prompt's ids, which a cut at the start keeps. beside: what each body costs besides, in characters.
        """
        lead = lead or []
        longest = longest_whole(room)
        sizes = [len(prompt) + len(one) for one in inputs]
        for span in _groups(sizes, longest, beside):
            group = inputs[span.start : span.stop]
            texts = valid_texts(group, param, span.start)
            if texts and sizes[span.start] > longest:
                text = prompt + texts[0]
                yield from tail(text, room, self._slice, lead) if cut == "start" else head(text, room, self._slice)
            else:
                whole = [prompt + text for text in texts]
                encoded = iter(self._inner.encode_batch_fast(whole, add_special_tokens=False))
                for index, one in enumerate(group, span.start):
                    if isinstance(one, str):
                        ids = next(encoded).ids
                        yield Body(cut_ids(ids, room, cut, len(lead)), len(ids))
                    else:
                        yield from self._own(one, index, room, cut, lead)
            yield None

    def _slice(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Ids of a part of a text, and for each the number of the word it belongs to, ascending."""
        encoding = self._inner.encode_batch([text], add_special_tokens=False)[0]
        return encoding.ids, words_of(encoding.word_ids)

    def _listed(self, encoding: tokenizers.Encoding, size: int, specials: bool) -> Pieces:
        """Of a text of `size` characters; with specials, those that its tokenizer forgets stand at its end."""
        forgotten = self._single.tail[len(self._own_single.tail) :] if specials else ()
        ids, spans = [*encoding.ids, *forgotten], [*encoding.offsets, *((size, size) for _ in forgotten)]
        return Pieces(
            ids=tuple(ids),
            texts=(*encoding.tokens, *(str(self._inner.id_to_token(i)) for i in forgotten)),
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


def _steps(bodies: Iterator[Body | None], row: Callable[[int, Body], Tokens]) -> Iterator[list[Tokens]]:
    """The rows of the bodies between one None and the next."""
    count = 0
    rows: list[Tokens] = []
    for body in bodies:
        if body is None:
            yield rows
            rows = []
        else:
            rows.append(row(count, body))
            count += 1


def _length(body: Body, total: int) -> int:
    """What of the total takes part in a cut: ids that were never found leave their room to the other side."""
    return min(len(body.ids), total) if body.gave_up else total


def _groups(sizes: Sequence[int], giant: int, beside: int = 0, most: int | None = None) -> Iterator[range]:
    """Runs of indices of at most `most` (GROUP_CHARS) together; a size over `giant` comes alone."""
    most = GROUP_CHARS if most is None else most
    start = total = 0
    for index, size in enumerate(sizes):
        cost = size + beside
        if index > start and (total + cost > most or size > giant or sizes[start] > giant):
            yield range(start, index)
            start = index
            total = 0
        total += cost
    if sizes:
        yield range(start, len(sizes))
