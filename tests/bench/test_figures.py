from statistics import quantiles

from hypothesis import given
from hypothesis import strategies as st

from vecgate.bench.figures import overlap, percentile, spread

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=200).map(sorted)
SHARES = st.floats(0, 1)


@given(VALUES, SHARES)
def test_a_percentile_was_measured_and_so_large_a_share_is_not_above_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) <= share * len(values)


@given(VALUES, SHARES, SHARES)
def test_percentiles_rise(values: list[float], a: float, b: float) -> None:
    assert percentile(values, min(a, b)) <= percentile(values, max(a, b))


@given(st.permutations(range(1, 101)))
def test_percentiles_of_a_hundred(values: list[int]) -> None:
    ordered = sorted(values)
    assert [percentile(ordered, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile(ordered, 0.25) <= quantiles(ordered, n=4)[0]


@given(st.floats(0, 10), st.floats(0.001, 10), st.floats(0, 10), st.floats(0.001, 10))
def test_the_shares_in_windows_side_by_side_make_one(begin: float, length: float, at: float, window: float) -> None:
    end = begin + length
    inside = overlap(begin, end, at, at + window)
    outside = overlap(begin, end, -1.0, at) + overlap(begin, end, at + window, 100.0)
    assert 0 <= inside <= 1
    assert abs(inside + outside - 1) < 1e-6


def test_a_request_of_no_length_is_in_the_window_or_not() -> None:
    assert [overlap(t, t, 1.0, 2.0) for t in (0.5, 1.0, 2.0)] == [0.0, 1.0, 0.0]


def test_a_spread_is_the_median_and_the_range() -> None:
    found = spread([3.0, 1.0, 8.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (3.0, 1.0, 8.0)
    assert spread([]) is None
