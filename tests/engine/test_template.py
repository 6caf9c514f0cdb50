"""Opening a tokenizer.json and finding the special ids around texts, and what of it is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vecgate.engine.checkpoint import read
from vecgate.engine.template import Template, check_types, open_tokenizer, pair_template, single_template
from vecgate.errors import CheckpointError

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("kind", "single", "pair"),
    [
        ("bert", Template((2,), (), (3,)), Template((2,), (3,), (3,))),
        ("xlmr", Template((0,), (), (2,)), Template((0,), (2, 2), (2,))),
    ],
)
def test_specials_stand_where_the_post_processor_puts_them(
    kind: str, single: Template, pair: Template, tiny: Tiny
) -> None:
    checkpoint = read(tiny(kind))
    inner, path = open_tokenizer(checkpoint), checkpoint.folder / "tokenizer.json"
    assert single_template(inner, path) == single
    assert pair_template(inner, path) == pair
    assert len(pair) == len(pair.head) + len(pair.middle) + len(pair.tail)


def test_the_files_truncation_and_padding_are_off(tiny: Tiny) -> None:
    inner = open_tokenizer(read(tiny("bert")))
    assert inner.truncation is None
    assert inner.padding is None


def test_lower_casing_asked_for_by_the_checkpoint(tiny: Tiny) -> None:
    checkpoint = read(tiny("modernbert"))
    lowering, plain = open_tokenizer(replace(checkpoint, lower_case=True)), open_tokenizer(checkpoint)
    assert lowering.encode("HELLO World").ids == plain.encode("hello world").ids
    assert plain.encode("HELLO World").ids != plain.encode("hello world").ids


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "WordPiece", "vocab": 5}}', "\x00"])
def test_a_broken_tokenizer_is_named(content: str, tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = replace(read(tiny("bert")), folder=tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be read"):
        open_tokenizer(checkpoint)


def test_types_that_backends_would_get_wrong_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bert"), tmp_path / "untyped")
    path = tmp_path / "untyped" / "tokenizer.json"
    content = json.loads(path.read_text())
    for step in content["post_processor"]["pair"]:
        next(iter(step.values()))["type_id"] = 0
    path.write_text(json.dumps(content))
    checkpoint = read(path.parent)
    inner, path = open_tokenizer(checkpoint), checkpoint.folder / "tokenizer.json"
    with pytest.raises(CheckpointError, match="token types"):
        check_types(inner, pair_template(inner, path), path)
