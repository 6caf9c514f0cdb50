"""Token ids, row for row, against the tokenizers library's own post-processor and truncation, and transformers."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.awkward import SENTENCE, TEXTS
from vecgate.core import Checkpoint, Cut
from vecgate.engine import giants
from vecgate.engine import tokenizer as module
from vecgate.engine.checkpoint import read
from vecgate.engine.tokenizer import Tokenizer
from vecgate.errors import InputTooLong, InvalidRequest

KINDS = ("bert", "xlmr", "modernbert", "qwen3")
Tiny = Callable[[str], Path]
GIANTS = {
    "sentences": SENTENCE * 400,
    "one word": "antidisestablishmentarianism" * 1_000,
    "one letter": "a" * 40_001,
    "words and one long word": "hello world " * 3 + "x" * 30_000 + " quick brown fox" * 600,
    "CJK": "深圳世界，你好。東京中文" * 3_000,
    "spaces between": ("hello" + " " * 9_999) * 4 + "the end",
    "all kinds of blanks": "\t \r\n  \u3000 word\n\n\n" * 2_500,
    "digits": "0123456789" * 4_000,
    "literal specials": "[SEP] hello</s><|endoftext|> [MASK]<mask>" * 900,
    "accents and emoji": "cafe\u0301 👩‍👩‍👧‍👦 é " * 2_500,
}


@pytest.fixture(scope="module")
def opened(tiny: Tiny) -> Callable[[str], tuple[Checkpoint, Tokenizer]]:
    @cache
    def open_(kind: str) -> tuple[Checkpoint, Tokenizer]:
        checkpoint = read(tiny(kind))
        return checkpoint, Tokenizer(checkpoint)

    return open_


Opened = Callable[[str], tuple[Checkpoint, Tokenizer]]


def theirs(folder: Path, max_tokens: int | None = None, direction: str = "right") -> tokenizers.Tokenizer:
    """Another object on the same file, doing specials and truncation itself."""
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.no_padding()
    inner.no_truncation()
    if max_tokens is not None:
        inner.enable_truncation(max_tokens, direction=direction)
    return inner


def rewritten(source: Path, target: Path, **changes: Any) -> Checkpoint:
    """A copy of the checkpoint with other top-level keys in its tokenizer.json."""
    shutil.copytree(source, target)
    path = target / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return read(target)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_file_with_its_specials_and_its_cut(kind: str, opened: Opened) -> None:
    checkpoint, tokenizer = opened(kind)
    whole, cutting = theirs(checkpoint.folder), theirs(checkpoint.folder, checkpoint.max_tokens)
    rows = tokenizer.encode(TEXTS, "", checkpoint.max_tokens, "end")
    assert [row.ids.tolist() for row in rows] == [one.ids for one in cutting.encode_batch(TEXTS)]
    assert [row.original for row in rows] == [len(one.ids) for one in whole.encode_batch(TEXTS)]
    assert {row.ids.dtype for row in rows} == {np.dtype(np.int32)}
    assert {(row.prompt, row.second) for row in rows} == {(0, None)}


def test_minilm_rows_are_those_of_transformers(minilm: Path) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(minilm)(TEXTS, truncation=True, max_length=256)["input_ids"]
    rows = Tokenizer(read(minilm)).encode(TEXTS, "", 256, "end")
    assert [row.ids.tolist() for row in rows] == expected
    assert max(len(row) for row in rows) == 256  # not the 128 that its tokenizer.json bakes in
    assert min(len(row) for row in rows) == 2  # nor padded


def test_the_tokenizer_object_is_never_changed_and_threads_share_it(opened: Opened) -> None:
    checkpoint, tokenizer = opened("bert")
    limits = list(range(8, 40)) * 4

    def rows(limit: int) -> list[list[int]]:
        return [row.ids.tolist() for row in tokenizer.encode(TEXTS[-6:], "", limit, "end")]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(rows, limits))
    assert got == [[one.ids for one in theirs(checkpoint.folder, n).encode_batch(TEXTS[-6:])] for n in limits]
    assert tokenizer._inner.truncation is None
    assert tokenizer._inner.padding is None


# own ids


@pytest.mark.parametrize("kind", KINDS)
def test_own_ids_give_the_row_of_their_text_with_or_without_specials(kind: str, opened: Opened) -> None:
    checkpoint, tokenizer = opened(kind)
    whole = theirs(checkpoint.folder)
    text = "hello world, the quick brown fox"
    with_specials = whole.encode(text).ids
    without = whole.encode(text, add_special_tokens=False).ids
    inputs: list[Any] = [text, with_specials, without, np.array(without), tuple(without)]
    rows = tokenizer.encode(inputs, "", checkpoint.max_tokens, "end")
    assert [row.ids.tolist() for row in rows] == [with_specials] * len(inputs)
    assert {row.original for row in rows} == {len(with_specials)}


def test_own_ids_are_cut_and_prompted_like_text(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    lead = tokenizer.encode(["the query:"], "", 64, "end")[0].ids.tolist()[1:-1]
    (end, start) = (tokenizer.encode([list(range(5, 55))], "the query:", 20, cut)[0] for cut in ("end", "start"))
    assert end.ids.tolist() == [2, *lead, *range(5, 23 - len(lead)), 3]
    assert start.ids.tolist() == [2, *lead, *range(55 - (18 - len(lead)), 55), 3]
    assert end.original == start.original == 50 + len(lead) + 2
    assert end.prompt == start.prompt == len(lead) + 1


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**63, 2**70, -(2**70)])
def test_an_id_outside_the_vocabulary_is_named_with_the_remedy(wrong: int, opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InvalidRequest) as caught:
        tokenizer.encode(["text", [5, wrong, 6]], "", 64, "end")
    assert caught.value.param == "input"
    for part in ("Input 1", str(wrong), str(tokenizer.vocab_size), "check_embedding_ctx_length=False"):
        assert part in str(caught.value)


@pytest.mark.parametrize("wrong", [[], [1.5], [True], np.zeros((2, 2), dtype=int)])
def test_what_is_no_list_of_ids_is_refused(wrong: Any, opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InvalidRequest, match="Input 0"):
        tokenizer.encode([wrong], "", 64, "end")


def test_ids_stop_where_the_models_rows_do(tiny: Tiny) -> None:
    checkpoint = read(tiny("bert"))
    few = Tokenizer(replace(checkpoint, config={**checkpoint.config, "vocab_size": 50}))
    assert few.vocab_size == 50
    with pytest.raises(InvalidRequest, match=r"Input 1 holds '.+', for which .* has no row"):
        few.encode(["the", "hello world"], "", 64, "end")
    with pytest.raises(InvalidRequest, match=r"token id 50.*\(0 to 49\)"):
        few.encode([[50]], "", 64, "end")


# cut and prompt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cut", "direction"), [("end", "right"), ("start", "left")])
@pytest.mark.parametrize("limit", [4, 17, 61])
def test_both_cuts_are_the_librarys(kind: str, cut: Cut, direction: str, limit: int, opened: Opened) -> None:
    checkpoint, tokenizer = opened(kind)
    rows = tokenizer.encode(TEXTS, "", limit, cut)
    expected = theirs(checkpoint.folder, limit, direction).encode_batch(TEXTS)
    assert [row.ids.tolist() for row in rows] == [one.ids for one in expected]


def test_refusing_names_the_input_its_tokens_and_the_limit(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    words = "the " * 62
    assert len(tokenizer.encode([words], "", 64, "refuse")[0]) == 64
    with pytest.raises(InputTooLong, match=r"Input 1 has 65 tokens; the limit is 64\.") as caught:
        tokenizer.encode(["short", words + "the"], "", 64, "refuse")
    assert caught.value.param == "input"
    with pytest.raises(InputTooLong, match=r"Input 0 has at least \d+ tokens; the limit is 64\."):
        tokenizer.encode(["the " * 100_000], "", 64, "refuse")


def test_a_limit_without_room_for_text_is_refused(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InvalidRequest, match="limit of 2 tokens") as caught:
        tokenizer.encode(["text"], "", 2, "end")
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize("cut", ["end", "start", "refuse"])
@pytest.mark.parametrize("one", ["cat", "the cat " * 3_000, " " * 2_000_000 + "cat", [5]])
def test_a_limit_that_the_prompt_fills_is_refused(one: Any, cut: Cut, opened: Opened) -> None:
    _, tokenizer = opened("bert")
    lead = len(tokenizer.encode(["the query:"], "", 64, "end")[0]) - 2
    expected = rf"limit of {lead + 2} tokens leaves no room .* special tokens \(2\) and the prompt's \({lead}\)\."
    with pytest.raises(InvalidRequest, match=expected) as caught:
        tokenizer.encode([one], "the query: ", lead + 2, cut)
    assert caught.value.param == "max_tokens"
    with pytest.raises(InvalidRequest, match=f"limit of {lead + 1} tokens leaves no room"):
        tokenizer.encode([one], "the query: ", lead + 1, cut)
    assert len(tokenizer.encode([""], "the query: ", lead + 2, cut)[0]) == lead + 2  # as much as it asks for
    assert len(tokenizer.encode(["cat"], "the query: ", lead + 3, cut)[0]) == lead + 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["query: ", "Instruct: find it\nQuery:", "the "])
def test_a_prompt_is_put_before_the_text_and_counted_as_sentence_transformers_does(
    kind: str, prompt: str, opened: Opened
) -> None:
    from transformers import AutoTokenizer

    checkpoint, tokenizer = opened(kind)
    auto = AutoTokenizer.from_pretrained(checkpoint.folder)
    alone = auto(prompt)["input_ids"]
    (row,) = tokenizer.encode(["quick brown fox"], prompt, 60, "end")
    assert row.ids.tolist() == auto(prompt + "quick brown fox")["input_ids"]
    assert row.prompt == len(alone) - (alone[-1] in auto.all_special_ids)


def test_a_prompt_survives_a_cut_at_the_start(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    texts = ["one two three four " * 30, SENTENCE * 400]
    for row, text in zip(tokenizer.encode(texts, "the query: ", 32, "start"), texts):
        alone = tokenizer.encode(["the query: "], "", 32, "end")[0].ids.tolist()[:-1]
        last = tokenizer.encode([text], "", 32, "start")[0].ids.tolist()
        assert row.ids.tolist() == alone + last[-(32 - len(alone)) :]
        assert row.prompt == len(alone)


# pairs


@pytest.mark.parametrize("kind", [*KINDS, "bert-reranker", "xlmr-reranker"])
@pytest.mark.parametrize(("cut", "direction"), [("end", "right"), ("start", "left")])
def test_pairs_are_the_librarys_longest_first(kind: str, cut: Cut, direction: str, opened: Opened) -> None:
    checkpoint, tokenizer = opened(kind)
    room = checkpoint.max_tokens - len(tokenizer._pair)
    inner = theirs(checkpoint.folder, checkpoint.max_tokens, direction)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2 * room), st.lists(st.integers(1, 2 * room), min_size=1, max_size=3))
    def check(asked: int, lengths: list[int]) -> None:
        query, documents = "the of and " * (asked // 3) + "the " * (asked % 3), ["cat in " * n for n in lengths]
        rows = tokenizer.encode_pairs(query, documents, checkpoint.max_tokens, cut)
        expected = [inner.encode(query, document) for document in documents]
        assert [row.ids.tolist() for row in rows] == [one.ids for one in expected]
        own = [one.sequence_ids for one in expected]
        assert [row.second for row in rows] == [ids.index(1) for ids in own]
        total = [len(theirs(checkpoint.folder).encode(query, document)) for document in documents]
        assert [row.original for row in rows] == total

    check()


def test_second_is_where_the_token_types_turn(opened: Opened) -> None:
    checkpoint, tokenizer = opened("bert-reranker")
    assert checkpoint.token_types
    rows = tokenizer.encode_pairs("the query", ["a document", ""], 64, "end")
    for row, document in zip(rows, ["a document", ""]):
        types = theirs(checkpoint.folder).encode("the query", document).type_ids
        assert [int(at >= (row.second or 0)) for at in range(len(row))] == types


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40))
def test_longest_first_drops_one_by_one_from_the_longer_side(first: int, second: int, room: int) -> None:
    kept = module.longest_first(first, second, room)
    assert sum(kept) == min(first + second, room)
    assert kept[0] <= first
    assert kept[1] <= second
    cut = [one for one, before in zip(kept, (first, second)) if one < before]
    assert not cut or max(cut) >= max(kept) - 1


def test_documents_may_have_a_limit_of_their_own(opened: Opened) -> None:
    _, tokenizer = opened("bert-reranker")
    (row,) = tokenizer.encode_pairs("the query", ["the cat sat " * 9], 64, "refuse", max_document_tokens=5)
    bare = tokenizer.encode(["the query"], "", 64, "end")[0].ids.tolist()
    document = tokenizer.encode(["the cat sat the cat"], "", 64, "end")[0].ids.tolist()
    assert row.ids.tolist() == bare + document[1:]
    assert row.original == len(bare) + 27 + 1


def test_inputs_may_have_a_limit_of_their_own_beside_the_prompt(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    lead = tokenizer.encode(["the query:"], "", 64, "end")[0].ids.tolist()[:-1]
    inputs: list[Any] = ["the cat sat " * 9, list(range(5, 32))]
    for row, one in zip(tokenizer.encode(inputs, "the query: ", 64, "refuse", max_text_tokens=5), inputs):
        (alone,) = tokenizer.encode([one], "", 7, "end")
        assert row.ids.tolist() == lead + alone.ids.tolist()[1:]
        assert row.original == len(lead) + 27 + 1


def test_refusing_a_pair_names_the_document(opened: Opened) -> None:
    _, tokenizer = opened("bert-reranker")
    with pytest.raises(InputTooLong, match=r"Document 1 with the query has 66 tokens; the limit is 64\.") as caught:
        tokenizer.encode_pairs("the query", ["short", "the " * 61], 64, "refuse")
    assert caught.value.param == "documents"


# giants


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", GIANTS)
def test_a_giants_row_is_that_of_the_whole_text(kind: str, shape: str, opened: Opened) -> None:
    checkpoint, tokenizer = opened(kind)
    text = GIANTS[shape]
    assert len(text) > giants.WHOLE_CHARS
    whole = theirs(checkpoint.folder).encode(text, add_special_tokens=False).ids
    head, tail = tokenizer._single.head, tokenizer._single.tail
    total = len(head) + len(whole) + len(tail)
    for limit in (16, 100, 900):
        room = min(limit - len(head) - len(tail), len(whole))
        for cut, kept in (("end", whole[:room]), ("start", whole[len(whole) - room :])):
            (row,) = tokenizer.encode([text], "", limit, cut)  # type: ignore[arg-type]
            assert row.ids.tolist() == [*head, *kept, *tail]
            assert min(total, limit + 1) <= row.original <= total


@pytest.mark.parametrize("shape", ["sentences", "one letter", "CJK", "all kinds of blanks"])
def test_a_giants_row_needs_no_words(shape: str, tiny: Tiny, tmp_path: Path) -> None:
    """As sentencepiece's BPE models are shipped: no pre-tokenizer, the whole text is one word."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    checkpoint = rewritten(tiny("xlmr"), tmp_path / "wordless", pre_tokenizer=None, normalizer=space)
    text = GIANTS[shape] * (1 + giants.WORD_CHARS // len(GIANTS[shape]))
    whole = theirs(checkpoint.folder).encode(text, add_special_tokens=False).ids
    tokenizer = Tokenizer(checkpoint)
    for cut, kept in (("end", whole[:98]), ("start", whole[-98:])):
        (row,) = tokenizer.encode([text], "", 100, cut)  # type: ignore[arg-type]
        assert row.ids.tolist() == [0, *kept, 2]


@pytest.mark.parametrize("cut", ["end", "start", "refuse"])
def test_of_a_giant_only_as_much_is_tokenised_as_is_needed(
    cut: Cut, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = opened("bert")
    seen: list[int] = []
    plain = Tokenizer._slice

    def spy(self: Tokenizer, text: str) -> Any:
        seen.append(len(text))
        return plain(self, text)

    monkeypatch.setattr(Tokenizer, "_slice", spy)
    inputs = ["the cat " * 125_000, "." * 1_000_000, "世" * 1_000_000]
    for text in inputs:
        with suppress(InputTooLong):
            assert len(tokenizer.encode([text], "", 64, cut)[0]) == 64
    assert len(seen) >= len(inputs)
    assert max(seen) <= giants.WORD_CHARS


def test_a_text_of_almost_no_tokens_is_looked_at_up_to_a_bound_and_reported_as_cut(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    (row,) = tokenizer.encode(["the cat" + " " * (3 * giants.SCAN_CHARS) + "dog"], "", 64, "end")
    assert row.ids.tolist() == tokenizer.encode(["the cat"], "", 64, "end")[0].ids.tolist()
    assert row.original > len(row)


BLANK = " " * (giants.SCAN_CHARS + 50_000)
STRANDED = {"end": BLANK + "paris", "start": "paris" + BLANK, "refuse": BLANK + "paris"}
"""Texts that are as good as empty in all the characters that are looked at."""


@pytest.mark.parametrize("cut", ["end", "start"])
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_a_text_whose_words_are_out_of_reach_is_reported_as_cut(kind: str, cut: Cut, opened: Opened) -> None:
    _, tokenizer = opened(kind)
    (row,) = tokenizer.encode([STRANDED[cut]], "", 64, cut)
    assert row.original > len(row)
    (pair,) = tokenizer.encode_pairs("the query", [STRANDED[cut]], 64, cut)
    assert pair.original > len(pair)


def test_refusing_a_text_that_was_not_read_to_its_end(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    expected = rf"has more than {giants.SCAN_CHARS} characters, the most that are looked at for a limit of 64 tokens\."
    calls: list[tuple[str, str, Callable[[], Any]]] = [
        ("Input 1", "input", lambda: tokenizer.encode(["cat", BLANK + "paris"], "", 64, "refuse")),
        ("Input 0", "input", lambda: tokenizer.encode([BLANK + "paris"], "", 64, "refuse", max_text_tokens=5)),
        ("The query", "query", lambda: tokenizer.encode_pairs(BLANK + "paris", ["cat"], 64, "refuse")),
        ("Document 1", "documents", lambda: tokenizer.encode_pairs("q", ["cat", BLANK + "paris"], 64, "refuse")),
        ("Document 0", "documents", lambda: tokenizer.encode_pairs("q", [BLANK + "paris"], 64, "refuse", 5)),
    ]
    for what, param, refused in calls:
        with pytest.raises(InputTooLong, match=f"{what}.*{expected}") as caught:
            refused()
        assert caught.value.param == param


def test_a_giant_cut_to_its_own_limit_is_not_refused(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    (row,) = tokenizer.encode(["the cat " * 200_000], "", 64, "refuse", max_text_tokens=5)
    assert row.ids.tolist() == tokenizer.encode(["the cat the cat the"], "", 64, "end")[0].ids.tolist()


def test_a_pair_gives_no_room_to_words_out_of_reach(opened: Opened) -> None:
    _, tokenizer = opened("bert-reranker")
    query, document = "the cat " * 5, "the dog " * 200
    for far, near in (((query, BLANK + "paris"), (query, "")), ((BLANK + "paris", document), ("", document))):
        rows = [tokenizer.encode_pairs(one, [other], 13, "end")[0] for one, other in (far, near)]
        assert rows[0].ids.tolist() == rows[1].ids.tolist()
        assert rows[0].second == rows[1].second


# steps


def texts_and_ids(tokenizer: Tokenizer) -> list[Any]:
    own = tokenizer.encode(["the quick brown fox"], "", 64, "end")[0].ids.tolist()
    return ["cat", own, SENTENCE * 400, "dog " * 3_000, "", own[1:-1], "fox", own * 50, "the end"]


@pytest.mark.parametrize("cut", ["end", "start"])
@pytest.mark.parametrize("size", [1, 40, 10**6])
def test_steps_give_the_same_rows_in_order(
    size: int, cut: Cut, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tokenizer = opened("bert")
    inputs = texts_and_ids(tokenizer)
    texts = [one for one in inputs if isinstance(one, str)]
    alone = [tokenizer.encode([one], "the query: ", 32, cut)[0] for one in inputs]
    pairs = [tokenizer.encode_pairs("the query", [one], 32, cut)[0] for one in texts]
    monkeypatch.setattr(module, "GROUP_CHARS", size)
    monkeypatch.setattr(module, "CHECKED_IDS", size)
    rows = [row for step in tokenizer.encode_steps(inputs, "the query: ", 32, cut) for row in step]
    assert [plain(row) for row in rows] == [plain(row) for row in alone]
    rows = [row for step in tokenizer.encode_pairs_steps("the query", texts, 32, cut) for row in step]
    assert [plain(row) for row in rows] == [plain(row) for row in pairs]


def plain(row: Any) -> tuple[Any, ...]:
    return row.ids.tolist(), row.second, row.prompt, row.original


class Spy:
    """The tokenizer object, telling how much each step hands to it: characters encoded, ids decoded."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.handed = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.inner, name)

        def seen(items: list[Any], **options: Any) -> Any:
            self.handed += sum(map(len, items))
            return call(items, **options)

        return seen

    def each(self, steps: Iterator[list[Any]]) -> list[int]:
        costs = []
        for _ in steps:
            costs.append(self.handed)
            self.handed = 0
        return costs


def test_each_step_is_a_bounded_part_of_the_work(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    tokenizer = copy(tokenizer)
    tokenizer._inner = spy = Spy(tokenizer._inner)  # type: ignore[assignment]
    texts = [SENTENCE * 40] * 60
    total = len(SENTENCE) * 40 * 60
    for steps, most in (
        (tokenizer.encode_steps(texts, "", 64, "end"), module.GROUP_CHARS),
        (tokenizer.encode_pairs_steps("the query", texts, 64, "end"), module.GROUP_CHARS),
        (tokenizer.pieces_steps(texts, specials=True), module.GROUP_CHARS),
        (tokenizer.decode_steps([[5] * 4_000] * 10, skip_specials=True), module.GROUP_IDS),
    ):
        costs = spy.each(steps)
        assert max(costs) <= most
        assert sum(costs) >= min(total, 40_000)
        assert len(costs) > 2


@pytest.mark.parametrize("cut", ["end", "start"])
def test_each_slice_of_a_giant_is_a_step(cut: Cut, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = opened("bert")
    seen: list[int] = []
    whole = Tokenizer._slice

    def spy(self: Tokenizer, text: str) -> Any:
        seen.append(len(text))
        return whole(self, text)

    monkeypatch.setattr(Tokenizer, "_slice", spy)
    for steps in (
        tokenizer.encode_steps([BLANK, "cat"], "", 64, cut),
        tokenizer.encode_pairs_steps(BLANK, ["cat"], 64, cut),
    ):
        counts = [(len(seen), len(step)) for step in steps]
        assert counts[:3] == [(1, 0), (2, 0), (3, 0)]
        assert sum(rows for _, rows in counts) >= 1
        seen.clear()


def test_a_left_call_tokenises_no_more(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    tokenizer = copy(tokenizer)
    tokenizer._inner = spy = Spy(tokenizer._inner)  # type: ignore[assignment]
    steps = tokenizer.encode_steps([SENTENCE * 40] * 1_000, "", 64, "end")
    assert spy.handed == 0
    assert len(next(steps)) > 1
    del steps
    assert 0 < spy.handed <= module.GROUP_CHARS


def test_an_error_names_the_input_of_all_not_of_its_step(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    many: list[Any] = ["the cat " * 2_000] * 20
    for bad, expected in (
        ("a\ud83db", "Text 20 is not"),
        ([10**6], "Input 20 holds"),
        ([5] * 100_000 + [-1], "Input 20 holds"),
        ([], "Input 20 is"),
    ):
        with pytest.raises(InvalidRequest, match=expected):
            tokenizer.encode([*many, bad], "", 64, "end")
    with pytest.raises(InvalidRequest, match="Text 20 is not"):
        tokenizer.pieces([*many, "a\ud83db"], specials=True)
    with pytest.raises(InputTooLong, match="Input 20 has 75 tokens"):
        tokenizer.encode([*["the " * 60] * 20, "the " * 73], "", 64, "refuse")


def test_giants_and_others_keep_their_order(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = opened("bert")
    texts = ["cat", SENTENCE * 400, "dog", "fox", SENTENCE * 300, "the " * 3_000, "end"]
    alone = [tokenizer.encode([text], "", 32, "end")[0].ids.tolist() for text in texts]
    monkeypatch.setattr(module, "GROUP_CHARS", 6)
    assert [row.ids.tolist() for row in tokenizer.encode(texts, "", 32, "end")] == alone


# what can't be a row


def test_half_a_character_is_named(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    for refused in (
        lambda: tokenizer.encode(["fine", "a\ud83db"], "", 64, "end"),
        lambda: tokenizer.pieces(["fine", "a\ud83db"], specials=True),
        lambda: tokenizer.encode_pairs("query", ["fine", "a\ud83db"], 64, "end"),
    ):
        with pytest.raises(InvalidRequest, match=r"Text 1 is not valid Unicode.*U\+D83D"):
            refused()


def test_an_empty_text_without_specials_has_nothing_to_embed(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = Tokenizer(rewritten(tiny("qwen3"), tmp_path / "bare", post_processor=None))
    assert len(tokenizer.encode([" "], "", 64, "end")[0]) == 1
    with pytest.raises(InvalidRequest, match="Input 1 is empty"):
        tokenizer.encode(["text", ""], "", 64, "end")


# listing and decoding


def test_pieces_name_each_token_and_its_characters(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with_specials, without = (tokenizer.pieces(["Héllo [SEP] 世界"], specials=flag)[0] for flag in (True, False))
    assert with_specials.ids == tuple(tokenizer.encode(["Héllo [SEP] 世界"], "", 64, "end")[0].ids.tolist())
    assert with_specials.texts == ("[CLS]", *without.texts, "[SEP]")
    assert without.texts == ("hello", "[SEP]", "世", "界")
    assert without.special == (False, True, False, False)
    assert list(zip(without.starts, without.stops)) == [(0, 5), (6, 11), (12, 13), (13, 14)]


def test_listing_a_giant_is_refused(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InputTooLong, match=r"Text 0 has 1000000 characters; the limit .* 262144"):
        tokenizer.pieces(["." * 1_000_000], specials=True)


@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_decoding_gives_the_text_back(kind: str, opened: Opened) -> None:
    _, tokenizer = opened(kind)
    texts = ["The quick brown fox", "", "日本 🙂"]
    ids = [piece.ids for piece in tokenizer.pieces(texts, specials=True)]
    assert tokenizer.decode(ids, skip_specials=True) == tuple(texts)
    assert tokenizer.decode(ids, skip_specials=False) != tuple(texts)


def test_decoding_an_endless_list_is_refused(opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InputTooLong, match=r"Input 1 has 262145 token ids; the limit .* 262144\."):
        tokenizer.decode([[5], [5] * 262_145], skip_specials=True)


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**40])
def test_decoding_refuses_unknown_ids(wrong: int, opened: Opened) -> None:
    _, tokenizer = opened("bert")
    with pytest.raises(InvalidRequest, match="vocabulary"):
        tokenizer.decode([[5], [wrong]], skip_specials=True)
