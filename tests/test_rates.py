"""rates.py: what a key may ask for, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecgate.errors import RateLimited
from vecgate.rates import EVERYBODY, Exhausted, Rates


def seven() -> int:
    return 7


def taken(rates: Rates, who: str, *moments_s: float) -> list[bool]:
    """Which of the requests at these moments were let in."""
    found = []
    for now_s in moments_s:
        try:
            rates.take(who, now_s, seven)
            found.append(True)
        except Exhausted:
            found.append(False)
    return found


def test_without_limits_all_is_let_in_and_nothing_said() -> None:
    rates = Rates(None, None)
    assert all(taken(rates, "a", *range(1000)))
    assert rates.told("a", 0.0) == []


def test_a_minutes_requests_at_once_then_one_as_each_is_earned() -> None:
    rates = Rates(6, None)
    assert taken(rates, "a", *[0.0] * 7) == [True] * 6 + [False]
    assert taken(rates, "a", 9.9, 10.0, 10.0, 20.0) == [False, True, False, True]
    assert taken(rates, "a", *[3600.0] * 7) == [True] * 6 + [False]  # an idle hour saves up no more than a minute's


def test_a_refusal_says_how_long_to_wait_and_the_limit() -> None:
    rates = Rates(6, None)
    taken(rates, "a", *[0.0] * 6)
    with pytest.raises(RateLimited, match=r"6 requests a minute of this key.*VECGATE_RATE_LIMIT.*in 8 s\.") as refused:
        rates.take("a", 2.5, seven)
    assert refused.value.retry_after_s == 8
    assert taken(rates, "a", 2.5 + 7, 2.5 + 8) == [False, True]


def test_a_minute_is_the_longest_wait() -> None:
    rates = Rates(1, None)
    taken(rates, "a", 0.0)
    with pytest.raises(RateLimited) as refused:
        rates.take("a", 0.0, seven)
    assert refused.value.retry_after_s == 60


def test_one_keys_rate_is_not_anothers() -> None:
    rates = Rates(1, None)
    assert taken(rates, "a", 0.0, 0.0) == [True, False]
    assert taken(rates, "b", 0.0) == [True]


def test_headers_say_what_is_left() -> None:
    rates = Rates(60, None)
    taken(rates, "a", 0.0, 0.0)
    names = ("limit", "remaining", "reset")
    told = dict(rates.told("a", 0.5))
    assert [told[f"x-ratelimit-{name}-requests".encode()] for name in names] == [b"60", b"58", b"2s"]
    assert dict(rates.told("b", 0.5))[b"x-ratelimit-remaining-requests"] == b"60"


def test_so_many_at_once_and_one_more_when_one_ends() -> None:
    rates = Rates(None, 2)
    for _ in range(2):
        rates.take("a", 0.0, seven)
        rates.began("a")
    with pytest.raises(Exhausted, match=r"2 requests of this key.*VECGATE_KEY_CONCURRENCY.*7 s") as refused:
        rates.take("a", 0.0, seven)
    assert (refused.value.reason, refused.value.retry_after_s) == ("key_concurrency", 7)
    assert taken(rates, "b", 0.0) == [True]
    rates.ended("a")
    assert taken(rates, "a", 0.0) == [True]


def test_what_is_refused_for_its_company_takes_no_rate() -> None:
    rates = Rates(2, 1)
    rates.take("a", 0.0, seven)
    rates.began("a")
    assert taken(rates, "a", 0.0, 0.0, 0.0) == [False] * 3
    rates.ended("a")
    assert taken(rates, "a", 0.0, 0.0) == [True, False]


def test_without_keys_the_words_are_everybodys() -> None:
    rates = Rates(1, None)
    rates.take(EVERYBODY, 0.0, seven)
    with pytest.raises(RateLimited, match="of all clients together are used up"):
        rates.take(EVERYBODY, 0.0, seven)


@given(st.integers(1, 100), st.lists(st.floats(0, 300), max_size=300).map(sorted))
def test_never_more_than_two_minutes_worth_in_any_minute(per_minute: int, moments_s: list[float]) -> None:
    let_in = [at for at, passed in zip(moments_s, taken(Rates(per_minute, None), "a", *moments_s)) if passed]
    for begin in let_in:
        assert sum(begin <= at < begin + 60 for at in let_in) <= 2 * per_minute
