from itertools import chain, islice

import msgspec
import pytest

from vecgate.bench import plan
from vecgate.bench.plan import MIXES, Ask


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_pool_repeats_no_text_and_is_the_same_for_the_same_seed(mix: plan.Mix) -> None:
    pool = plan.asks(mix, 3, 64)
    assert pool == plan.asks(mix, 3, 64) != plan.asks(mix, 4, 64)
    assert {len(ask.texts) for ask in pool} == {mix.texts}
    for given in [ask.texts for ask in pool] if mix.rerank else [tuple(chain.from_iterable(ask.texts for ask in pool))]:
        assert len(set(given)) == len(given)
    assert all((ask.query is not None) == mix.rerank for ask in pool)


def test_very_short_texts_differ_too() -> None:
    pool = plan.asks(plan.texts_of(2), 0)
    assert len({ask.texts for ask in pool}) == plan.POOL_TEXTS


def test_every_request_of_the_pool_comes_before_one_comes_again() -> None:
    pool = plan.asks(MIXES["batch"], 0)
    turn = list(islice(plan.in_turn(pool, 1), 2 * len(pool)))
    assert sorted(turn[: len(pool)]) == list(range(len(pool)))
    assert turn[: len(pool)] == turn[len(pool) :]


def test_bodies_are_what_openai_and_cohere_read() -> None:
    assert msgspec.json.decode(plan.body(Ask(("a",)), "m", "base64")) == {
        "model": "m",
        "input": "a",
        "encoding_format": "base64",
    }
    assert msgspec.json.decode(plan.body(Ask(("a", "b")), None, "float")) == {
        "input": ["a", "b"],
        "encoding_format": "float",
    }
    assert msgspec.json.decode(plan.body(Ask(("a", "b"), "q"), "m", "base64")) == {
        "model": "m",
        "query": "q",
        "documents": ["a", "b"],
    }
