"""The end that a decoder's tokenizer gives a text, or should: what it forgets is put there, and counted."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine import decoder
from vecgate.engine.checkpoint import read
from vecgate.engine.tokenizer import Tokenizer
from vecgate.engine.words import Words
from vecgate.errors import CheckpointError, InputTooLong

E5_MISTRAL: dict[str, Any] = {
    "family": "mistral",
    "architectures": ["MistralModel"],
    "single": "<s> $A",
    "tokenizer": {"add_bos_token": True, "add_eos_token": True},
}


@pytest.mark.parametrize(("single", "ending"), [("$A", None), ("<s> $A", None), ("$A <|endoftext|>", "<|endoftext|>")])
def test_the_ending_of_a_file(single: str, ending: str | None, tmp_path: Path) -> None:
    words = Words(decoder.make(tmp_path / "m", single=single))
    assert words.ending == ending
    assert (words.single("yes"), words.id_of("</s>")) == (6, 1)


def test_an_end_that_is_declared_and_forgotten_is_put_there(tmp_path: Path) -> None:
    """As e5-mistral's: <s> A </s> by tokenizer_config.json, <s> A by tokenizer.json."""
    found = read(decoder.make(tmp_path / "m", **E5_MISTRAL))
    assert found.tail == (1,)
    tokenizer = Tokenizer(found)
    rows = tokenizer.encode(["a cat", [0, 8, 9], [0, 8, 9, 1], [8, 9]], "", 16, "end")
    assert [row.ids.tolist() for row in rows] == [[0, 8, 9, 1]] * 4
    assert {row.original for row in rows} == {4}


def test_it_survives_every_cut_and_counts(tmp_path: Path) -> None:
    tokenizer = Tokenizer(read(decoder.make(tmp_path / "m", **E5_MISTRAL)))
    text = "a cat dog " * 9
    assert [tokenizer.encode([text], "", 4, cut)[0].ids.tolist() for cut in ("end", "start")] == [
        [0, 8, 9, 1],
        [0, 9, 10, 1],
    ]
    assert tokenizer.encode([text], "", 4, "end")[0].original == 29
    assert len(tokenizer.encode(["a cat"], "", 4, "refuse")[0]) == 4
    with pytest.raises(InputTooLong, match="has 5 tokens; the limit is 4"):
        tokenizer.encode(["a cat dog"], "", 4, "refuse")
    assert tokenizer.encode(["cat"], "Hello ", 8, "end")[0].prompt == 2
    (listed,) = tokenizer.pieces(["a cat"], specials=True)
    assert (listed.ids, listed.texts[-1], listed.stops[-1], listed.special[-1]) == ((0, 8, 9, 1), "</s>", 5, True)
    assert tokenizer.pieces(["a cat"], specials=False)[0].ids == (8, 9)


@pytest.mark.parametrize(
    ("options", "tail"),
    [
        ({"tokenizer": {"add_eos_token": True}, "single": "$A </s>"}, ()),
        ({"tokenizer": {"add_eos_token": True, "eos_token": {"content": "<|im_end|>"}}}, (4,)),
        ({"tokenizer": {"add_eos_token": False}}, ()),
        ({"tokenizer": {"add_eos_token": "yes"}}, ()),
        ({}, ()),
    ],
)
def test_only_what_is_declared_and_missing_is_put_there(
    options: dict[str, Any], tail: tuple[int, ...], tmp_path: Path
) -> None:
    folder = decoder.make(tmp_path / "m", family="llama", architectures=["LlamaModel"], **options)
    assert read(folder).tail == tail


def test_the_table_knows_an_end_that_no_file_declares(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "Qwen3-Embedding-4B-4bit-DWQ")
    assert read(folder).tail == (2,)
    assert Tokenizer(read(folder)).encode(["a cat"], "", 16, "end")[0].ids.tolist() == [8, 9, 2]


def test_an_end_that_the_vocabulary_lacks_is_named(tmp_path: Path) -> None:
    folder = decoder.make(tmp_path / "m", family="mistral", tokenizer={"add_eos_token": True, "eos_token": "<end>"})
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has no token '<end>', with which each text must end"):
        read(folder, task="embed")


def test_a_reranker_gets_no_end(tmp_path: Path) -> None:
    found = read(decoder.make(tmp_path / "reranker", tokenizer={"add_eos_token": True}))
    assert found.tail == ()
