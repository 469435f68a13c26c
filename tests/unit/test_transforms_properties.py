"""Random columns beside plain Python: what is stored is the documented number, or the column is refused."""

import math
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.errors import TableError
from mltrain.transforms import Categorical, Hashed, IdList, Indicator, Numeric, Vector, Vocabulary

INT64 = st.integers(-(2**63), 2**63 - 1)
WHOLE = (
    st.integers(-(2**25), 2**25) | st.sampled_from([2**24, 2**24 + 1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]) | INT64
)
FLOATS = st.floats(width=64) | st.sampled_from([math.nan, math.inf, -0.0, 1e-300, 3.5e38])
TEXT = st.text(max_size=5) | st.sampled_from(["", "\0", "a\0", "e\u0301", "é"])


def refused(transform: Any, column: pa.Array, *vocabulary: Vocabulary) -> bool:
    with pytest.raises(TableError, match="'x'"):
        transform.apply(column, *vocabulary)
    return True


def array(values: list[Any], kind: pa.DataType, skipped: int) -> pa.Array:
    """A column that starts within its buffers, as slices of batches do."""
    return pa.array([*values[:skipped], *values], kind).slice(len(values[:skipped]))


def nearest(value: float) -> float:
    """The nearest float32; too large a number raises."""
    if math.isinf(value):
        raise OverflowError
    return float(struct.unpack("<f", struct.pack("<f", value))[0]) + 0.0


def check(transform: Numeric, values: list[Any], column: pa.Array, exact: Callable[[Any], Fraction | None]) -> None:
    """Compares with ``exact``, the number that a value stands for: None where it has none."""
    held = [None if value is None else exact(value) for value in values]
    scaled = (transform.center, transform.scale) != (0.0, 1.0)
    whole = not pa.types.is_floating(column.type)
    expected = []
    for value, number in zip(values, held, strict=True):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            expected.append(nearest((transform.fill - transform.center) / transform.scale))
            continue
        if number is None or abs(number) > (2**53 if scaled and whole else 2**24 if whole else math.inf):
            assert refused(transform, column)
            return
        try:
            stored = nearest((float(number) - transform.center) / transform.scale)
        except OverflowError:
            assert refused(transform, column)
            return
        if whole and not scaled and Fraction(stored) != number:
            assert refused(transform, column)
            return
        expected.append(stored)
    assert transform.apply(column).to_pylist() == expected


SCALES = st.sampled_from([(0.0, 1.0), (3.5, 0.1), (-1e9, 7e5)])


@settings(deadline=None)
@given(st.lists(st.none() | WHOLE), SCALES, st.integers(0, 3))
def test_integers(values: list[int | None], scale: tuple[float, float], skipped: int) -> None:
    check(Numeric("x", 2.5, *scale), values, array(values, pa.int64(), skipped), Fraction)


@settings(deadline=None)
@given(st.lists(st.none() | FLOATS), SCALES, st.integers(0, 3))
def test_floats(values: list[float | None], scale: tuple[float, float], skipped: int) -> None:
    check(
        Numeric("x", 2.5, *scale),
        values,
        array(values, pa.float64(), skipped),
        lambda value: Fraction(value) if math.isfinite(value) else None,
    )


@settings(deadline=None)
@given(
    st.lists(st.none() | st.integers(-(10**8), 10**8) | st.integers(-(10**37), 10**37)),
    st.integers(0, 8),
    st.integers(0, 8),
    SCALES,
    st.integers(0, 3),
)
def test_decimals(values: list[int | None], places: int, declared: int, scale: tuple[float, float], skip: int) -> None:
    decimals = [None if value is None else Decimal(f"{value}E-{places}") for value in values]

    def units(value: Decimal) -> Fraction | None:
        number = Fraction(value) * 10**declared
        return number if number.denominator == 1 else None

    column = array(decimals, pa.decimal128(38, places), skip)
    check(Numeric("x", 2.5, *scale, decimal_scale=declared), decimals, column, units)


@settings(deadline=None)
@given(
    st.lists(st.none() | st.integers(-(10**7), 10**7).map(lambda n: n * 15625) | INT64),
    SCALES,
    st.sampled_from([None, "UTC", "Asia/Kolkata"]),
)
def test_timestamps(values: list[int | None], scale: tuple[float, float], zone: str | None) -> None:
    def seconds(value: int) -> Fraction | None:
        return Fraction(value, 10**6) if abs(value) <= 2**53 else None

    check(Numeric("x", 2.5, *scale), values, pa.array(values, pa.int64()).cast(pa.timestamp("us", zone)), seconds)


@settings(deadline=None)
@given(st.lists(st.none() | TEXT), st.lists(TEXT, unique=True), st.integers(2, 2**31), st.integers(0, 3))
def test_strings(values: list[str | None], terms: list[str], buckets: int, skipped: int) -> None:
    column = array(values, pa.string(), skipped)
    known = Vocabulary(pa.array(terms, pa.string()))
    ids = {term: i + 1 for i, term in enumerate(terms)}
    assert Categorical("x", "v").apply(column, known).to_pylist() == [ids.get(value, 0) for value in values]  # type: ignore[arg-type]
    hashed = [v if v is None else 1 + xxhash.xxh64_intdigest(v.encode()) % (buckets - 1) for v in values]
    assert Hashed("x", buckets).apply(column).to_pylist() == [value or 0 for value in hashed]
    assert Indicator("x").apply(column).to_pylist() == [float(value is None) for value in values]


@settings(deadline=None)
@given(
    st.lists(st.none() | st.lists(st.none() | WHOLE, max_size=6)),
    st.lists(WHOLE, unique=True),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_lists(values: list[list[int | None] | None], terms: list[int], longest: int, skipped: int) -> None:
    column = array(values, pa.list_(pa.int64()), skipped)
    known = Vocabulary(pa.array(terms, pa.int64()))
    ids = {term: i + 1 for i, term in enumerate(terms)}
    expected = [[ids.get(one, 0) for one in row or []][-longest:] for row in values]  # type: ignore[arg-type]
    assert IdList("x", "v", longest).apply(column, known).to_pylist() == expected
    if any(row is None or None in row for row in values):
        assert refused(IdList("x", "v", longest, "refuse"), column, known)


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | FLOATS, min_size=2, max_size=2)), st.booleans(), st.integers(0, 3))
def test_vectors(values: list[list[float | None] | None], impute: bool, skipped: int) -> None:
    column = array(values, pa.list_(pa.float64()), skipped)
    transform = Vector("x", 2, "impute" if impute else "refuse")
    numbers = [one for row in values for one in row or []]
    missing = any(row is None for row in values) and not impute
    if missing or not all(one is not None and abs(one) <= 3.4e38 for one in numbers):
        assert refused(transform, column)
    else:
        assert transform.apply(column).to_pylist() == [
            [nearest(one or 0.0) for one in row or [0.0, 0.0]] for row in values
        ]
