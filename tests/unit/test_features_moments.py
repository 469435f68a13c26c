import json
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain.errors import TableError
from mltrain.features.moments import Moments, exact_sum

FLOATS = st.floats(-1e300, 1e300)
MODEST = st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100)


def moments(values: list[float]) -> Moments:
    return Moments.of("x", np.array(values, dtype=np.float64), np.ones(len(values), dtype=bool))


@given(st.lists(FLOATS, max_size=60))
def test_a_sum_of_floats_is_exact(values: list[float]) -> None:
    assert exact_sum(np.array(values, dtype=np.float64)) == sum(map(Fraction, values), Fraction(0))


@given(st.lists(MODEST, min_size=1, max_size=40), st.integers(0, 40))
def test_moments_are_exact_and_do_not_depend_on_how_the_rows_are_cut(values: list[float], cut: int) -> None:
    whole = moments(values)
    assert whole.squares == sum((Fraction(x) ** 2 for x in values), Fraction(0))
    assert moments(values[cut:]) + moments(values[:cut]) == whole
    assert Moments.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert whole.mean == float(sum(map(Fraction, values), Fraction(0)) / len(values))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60))
def test_moments_of_single_precision_are_exact(values: list[float]) -> None:
    found = moments(values)
    assert found.total == sum(map(Fraction, values), Fraction(0))
    assert found.squares == sum((Fraction(x) ** 2 for x in values), Fraction(0))


def test_a_million_values_near_each_other_keep_their_deviation() -> None:
    values = 1.7e9 + np.random.default_rng(7).normal(size=100_000)
    found = Moments.of("x", values, np.ones(len(values), dtype=bool))
    assert found.deviation == pytest.approx(statistics.pstdev(map(Fraction, values[:])), rel=1e-14)


def test_missing_values_count_and_do_nothing_else() -> None:
    found = Moments.of("x", np.array([1.0, 0.0, 3.0]), np.array([True, False, True]))
    assert (found.count, found.missing, found.low, found.high, found.mean) == (2, 1, 1.0, 3.0, 2.0)
    assert found + Moments.of("x", np.zeros(2), np.zeros(2, dtype=bool)) == Moments(
        2, 3, 1.0, 3.0, Fraction(4), Fraction(10)
    )
    assert Moments.from_json(Moments(missing=3).to_json()) == Moments(missing=3)


@pytest.mark.parametrize("value", [2e150, -math.inf])
def test_numbers_whose_squares_leave_the_range_are_refused(value: float) -> None:
    with pytest.raises(TableError, match="column 'x' holds .*beyond"):
        moments([1.0, value])
