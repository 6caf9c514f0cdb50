from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from vecgate.bench import texts


@pytest.fixture(scope="module")
def tokens(minilm: Path) -> Tokenizer:
    found = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


@pytest.mark.parametrize(("make", "low", "high"), [(texts.query, 8, 30), (texts.chunk, 100, 256)])
def test_texts_are_as_long_as_they_should_be(make: object, low: int, high: int, tokens: Tokenizer) -> None:
    assert callable(make)
    rng = Random(1)
    lengths = sorted(len(tokens.encode(make(rng)).ids) for _ in range(300))
    assert low * 0.85 <= lengths[6]
    assert lengths[-7] <= high * 1.1
    assert lengths[-1] - lengths[0] > (high - low) / 2


def test_a_text_has_about_the_tokens_asked_for(tokens: Tokenizer) -> None:
    for wanted in (8, 64, 256):
        lengths = [len(tokens.encode(texts.of_tokens(Random(seed), wanted)).ids) for seed in range(50)]
        assert 0.85 * wanted < sum(lengths) / 50 < 1.15 * wanted


def test_three_of_five_mixed_texts_are_questions() -> None:
    rng = Random(2)
    assert 0.5 < sum(texts.mixed(rng).endswith("?") for _ in range(500)) / 500 < 0.7


def test_a_seed_makes_the_same_texts_again() -> None:
    assert [texts.mixed(Random(7)) for _ in range(2)] == [texts.mixed(Random(7))] * 2
    assert texts.mixed(Random(7)) != texts.mixed(Random(8))
