import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from mltrain.errors import TableError
from mltrain.transforms import (
    Categorical,
    ClassLabel,
    Field,
    Hashed,
    IdList,
    Indicator,
    MultiLabel,
    Numeric,
    RegressionLabel,
    Vector,
    Vocabulary,
    Weight,
)
from mltrain.transforms.columns import MAX_BUCKETS
from mltrain.transforms.hashing import hash_integers, hash_strings
from mltrain.transforms.vocabulary import ranked

CITIES = Vocabulary(pa.array(["Rome", "Oslo", "Łódź"]))
LONG = "long" * 50_000
ODD = Vocabulary(pa.array(["", "a\0", "\0", "é", LONG]))
CENTS = Numeric("x", 0.0, decimal_scale=2)
NUMBERS = Vocabulary(pa.array([70, -3, 2**60]))
SMALL = Vocabulary(pa.array([5, -7, 0]))


def decimals(*values: str | None, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([None if value is None else Decimal(value) for value in values], kind)


def test_a_missing_number_becomes_the_fill_value_before_it_is_scaled() -> None:
    out = Numeric("x", fill=4.0, center=2.0, scale=2.0).apply(pa.array([2.0, None, math.nan, 6.0]))
    assert out.type == pa.float32()
    assert out.to_pylist() == [0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("column", "numbers"),
    [
        (pa.array([True, False]), [1, 0]),
        (pa.array([-128, 127], pa.int8()), [-128, 127]),
        (pa.array([2**24, -(2**24)], pa.int64()), [2**24, -(2**24)]),
        (pa.array([0.1, -1.5], pa.float64()), [np.float32(0.1), -1.5]),
        (pa.array([datetime.date(1970, 1, 3), datetime.date(1969, 12, 31)]), [2, -1]),
        (pa.array([1_500_000, -500_000], pa.timestamp("us", tz="Europe/Rome")), [1.5, -0.5]),
        (pa.array([2_000, 500], pa.timestamp("ms")), [2.0, 0.5]),
    ],
)
def test_every_scalar_type_stands_for_its_documented_number(column: Any, numbers: Any) -> None:
    assert Numeric("x", fill=0.0).apply(column).to_pylist() == numbers


@pytest.mark.parametrize(
    "kind", [None, pa.decimal32(9, 4), pa.decimal64(18, 3), pa.decimal128(38, 10), pa.decimal256(76, 2)]
)
def test_a_decimal_counts_whole_units_of_its_declared_scale(kind: Any) -> None:
    column = decimals("19.99", None, "-0.50", "167772.16" if kind is None or kind.precision > 9 else "1", kind=kind)
    expected = [1999.0, 250.0, -50.0, 2.0**24 if kind is None or kind.precision > 9 else 100.0]
    transform = Numeric("x", fill=250.0, decimal_scale=2)
    assert transform.apply(column).to_pylist() == expected
    assert transform.apply(column.slice(2)).to_pylist() == expected[2:]
    assert Numeric("x", 0.0, center=1000.0, scale=4.0, decimal_scale=3).apply(decimals("1.25")).to_pylist() == [62.5]
    assert Numeric("x", 0.0, 2.0**53, 2.0, 0).apply(decimals(str(2**53), f"-{2**53}")).to_pylist() == [0.0, -(2.0**53)]


def test_an_indicator_is_one_where_there_is_no_value() -> None:
    columns = [pa.array([1.0, None, math.nan]), pa.array(["", None, "a"]), pa.array([[], None, [None]])]
    columns.append(decimals("1.5", None, "0"))
    made = [Indicator("x").apply(column).to_pylist() for column in columns]
    assert made == [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    assert Indicator("x").field() == Field("x__missing", "feature", "indicator", "float32")


def test_a_missing_vector_may_be_zeros() -> None:
    transform = Vector("x", 2, missing="impute")
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float32(), 2)):
        assert transform.apply(pa.array([[1, 2], None, [3, 4]], kind)).to_pylist() == [[1, 2], [0, 0], [3, 4]]
        assert transform.apply(pa.array([[1, 2], None, None], kind).slice(1)).to_pylist() == [[0, 0], [0, 0]]


def test_hashed_ids_never_wrap() -> None:
    ids = Hashed("x", MAX_BUCKETS).apply(pa.array(range(1000))).to_numpy()
    assert (ids > 0).all() and ids.max() > 2**30
    with pytest.raises(ValueError, match="2147483649 buckets"):
        Hashed("x", MAX_BUCKETS + 1)


def test_negative_zero_and_zero_have_the_same_bytes() -> None:
    out = Numeric("x", fill=0.0).apply(pa.array([-0.0, 0.0])).to_numpy()
    assert out.tobytes() == bytes(8)


@pytest.mark.parametrize(
    ("transform", "column", "message"),
    [
        (Numeric("x", 0.0), pa.array([2**24 + 1]), r"'x' holds the integer 16777217, beyond ±2\*\*24.*scale: standard"),
        (Numeric("x", 0.0, 5.0, 2.0), pa.array([2**53 + 1]), r"beyond ±2\*\*53"),
        (Numeric("x", 0.0, 5.0, 2.0), pa.array([-(2**63)]), r"beyond ±2\*\*53"),
        (Numeric("x", 0.0), pa.array([2**64 - 1], pa.uint64()), "'x': Integer value 18446744073709551615 not in range"),
        (Numeric("x", 0.0), pa.array([math.inf]), "'x' holds an infinity"),
        (Numeric("x", 0.0), pa.array([1e39]), "beyond float32's range"),
        (Numeric("x", 0.0), pa.array(["7"]), "'x' has type string, which is not a number"),
        (Numeric("x", 0.0), pa.array([None], pa.decimal128(10, 2)), "has type decimal128"),
        (Categorical("x", "x"), pa.array([1.5]), "'x' has type double: a vocabulary holds strings, integers"),
        (Categorical("x", "x"), pa.array([1]), "'x' holds int64 but its vocabulary holds string"),
        (Hashed("x", 10), pa.array([1.5]), "'x' has type double"),
        (IdList("x", "x"), pa.array(["a"]), "'x' has type string: an array is wanted"),
        (Vector("x", 2), pa.array([[1.0, 2.0], [1.0]]), "'x' has size 2 but a row holds 1 numbers"),
        (Vector("x", 2), pa.array([[1.0, None]]), "'x' holds a null or NaN among its numbers"),
        (Vector("x", 1), pa.array([[1.0], None]), "'x' has no value in 1 rows, and its option is `missing: refuse`"),
        (Vector("x", 1, missing="impute"), pa.array([[1.0], [None]]), "'x' holds a null or NaN among its numbers"),
        (Vector("x", 1, missing="impute"), pa.array([[], None], pa.list_(pa.float32())), "a row holds 0 numbers"),
        (Vector("x", 1), pa.array([[2**24 + 1]]), r"the integer 16777217, beyond ±2\*\*24, .*: cast it to double"),
        (Numeric("x", 0.0, missing="refuse"), pa.array([1.0, None, math.nan]), "'x' has no value in 2 rows"),
        (Categorical("x", "x", missing="refuse"), pa.array(["Oslo", None]), "'x' has no value in 1 rows"),
        (Hashed("x", 9, missing="refuse"), pa.array([1, None]), "'x' has no value in 1 rows"),
        (IdList("x", "x", missing="refuse"), pa.array([["Oslo"], None]), "'x' has no value in 1 rows"),
        (IdList("x", "x", missing="refuse"), pa.array([["Oslo", None]]), "no value in 1 ids among its lists"),
        (
            Numeric("x", 0.0),
            pa.array([1_600_000_001], pa.timestamp("s")),
            "'x' holds 1600000001.0 seconds since 1970, be",
        ),
        (Numeric("x", 0.0), pa.array([100], pa.timestamp("ms")), "'x' holds 0.1 seconds since 1970 which no float32"),
        (
            RegressionLabel("t", "x"),
            pa.array([100], pa.timestamp("ms")),
            "rescale it in the table, or cast it to double",
        ),
        (
            Numeric("x", 0.0, 5.0, 2.0),
            pa.array([2**53 + 1], pa.timestamp("us")),
            "a timestamp outside of the years 1684",
        ),
        (Numeric("x", 0.0), pa.array([1], pa.timestamp("ns")), "'x': Casting from .* would lose data"),
        (Numeric("x", 0.0), pa.array([2**60], pa.timestamp("s")), "'x': Casting from .* out of bounds"),
        (CENTS, decimals("1.239"), r"'x' holds 1.239, with more than 2 digits .*features.x.decimal_scale to 3"),
        (CENTS, decimals("-167772.17"), r"'x' holds -16777217 units of 0.01, beyond ±2\*\*24, which no float32"),
        (
            Numeric("x", 0.0, 5.0, 2.0, 2),
            decimals("90071992547409.93"),
            r"holds 90071992547409.93, beyond ±2\*\*53 units",
        ),
        (Numeric("x", 0.0, 5.0, 2.0, 38), decimals("9" * 38), r"beyond ±2\*\*53 units of 0.0+1, which no float"),
        (Numeric("x", 0.0, decimal_scale=0), decimals("184467440737095516.16"), "holds 184467440737095516.16, with"),
        (Numeric("x", 0.0, decimal_scale=0), decimals("18446744073709551617"), r"beyond ±2\*\*53 units of 1, which no"),
        (Vector("x", 1), pa.array([[Decimal("1.5")]]), "'x' has type decimal128.2, 1., which is not a number"),
        (RegressionLabel("t", "x"), pa.array([1.0, None]), "label 't' holds a null or NaN"),
        (
            ClassLabel("t", "x", ("a", "b"), True),
            pa.array(["a", "c"]),
            r"'t' holds 'c', which is not one of its classes",
        ),
        (ClassLabel("t", "x", ("a", "b"), True), pa.array(["a", None]), "'t' holds a null"),
        (ClassLabel("t", "x", ("a", "b"), True), pa.array([1]), r"has classes \['a', 'b'\] but its column holds int64"),
        (MultiLabel("t", "x", ("a",)), pa.array([["a"], None]), "'t' holds a null: an empty list says"),
        (MultiLabel("t", "x", ("a",)), pa.array([["z"]]), "'t' holds 'z'"),
        (Weight("w"), pa.array([1.0, -2.0]), "weight 'w' holds -2"),
        (Weight("w"), pa.array([None, 2.0]), "weight 'w' holds a null"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(transform: Any, column: Any, message: Any) -> None:
    arguments = [CITIES] if isinstance(transform, Categorical | IdList) else []
    with pytest.raises(TableError, match=message):
        transform.apply(column, *arguments)


@pytest.mark.parametrize(
    ("vocabulary", "column", "ids"),
    [
        (CITIES, pa.array(["Oslo", None, "Łódź", "Bern", "Rome", ""]), [2, 0, 3, 0, 1, 0]),
        (CITIES, pa.array(["Oslo"], pa.large_string()), [2]),
        (ODD, pa.array(["", "a", "a\0", "\0", None, "é", "e\u0301", LONG, LONG + "z"]), [1, 0, 2, 3, 0, 4, 0, 5, 0]),
        (CITIES, pa.array([None, None], pa.string()), [0, 0]),
        (CITIES, pa.array([], pa.string()), []),
        (NUMBERS, pa.array([2**60, 0, None, -3, 71, 70]), [3, 0, 0, 2, 0, 1]),
        (NUMBERS, pa.array([70, -3], pa.int16()), [1, 2]),
        (SMALL, pa.array([2**63 - 1, 5, -(2**63), None, 0, -7, 6, -8]), [0, 1, 0, 0, 3, 2, 0, 0]),
        (Vocabulary(pa.array([], pa.int64())), pa.array([1, 2]), [0, 0]),
    ],
)
def test_ids_count_from_one_and_zero_is_unseen_or_missing(vocabulary: Any, column: Any, ids: Any) -> None:
    out = Categorical("x", "x").apply(column, vocabulary)
    assert out.type == pa.int32()
    assert out.to_pylist() == ids


def test_sliced_columns_are_read_from_their_offset() -> None:
    column = pa.array(["Oslo", None, "Łódź", "Bern", "Rome"]).slice(2)
    assert Categorical("x", "x").apply(column, CITIES).to_pylist() == [3, 0, 1]
    lists = pa.array([["Rome"], ["Oslo", "Rome"], None, ["Bern"]]).slice(1)
    assert IdList("x", "x").apply(lists, CITIES).to_pylist() == [[2, 1], [], [0]]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, 2**64 - 1))
def test_the_vectorised_hash_of_integers_is_xxh64(values: Any, seed: Any) -> None:
    expected = [xxhash.xxh64_intdigest(value.to_bytes(8, "little", signed=True), seed) for value in values]
    assert hash_integers(np.array(values, dtype=np.int64), seed).tolist() == expected


@given(st.lists(st.none() | st.text(max_size=4)), st.integers(0, 2**64 - 1))
def test_the_hash_of_strings_is_xxh64_of_their_utf8(values: Any, seed: Any) -> None:
    expected = [xxhash.xxh64_intdigest((value or "").encode(), seed) for value in values]
    assert hash_strings(pa.array(values, pa.string()), seed).tolist() == expected


def test_hashed_ids_are_stable_between_releases() -> None:
    assert Hashed("x", 1_000_000).apply(pa.array(["a", None, "Łódź", "a"])).to_pylist() == [505596, 0, 999022, 505596]
    assert Hashed("x", 10).apply(pa.array([1, None, -1])).to_pylist() == [5, 0, 4]


def test_a_long_list_keeps_its_last_elements_and_a_null_one_is_empty() -> None:
    lists = pa.array([["Rome", "Oslo", "Łódź"], None, [], ["Bern", None], ["Oslo", "Rome"]])
    assert IdList("x", "x", max_length=2).apply(lists, CITIES).to_pylist() == [[2, 3], [], [], [0, 0], [2, 1]]
    assert IdList("x", "x").apply(lists, CITIES).to_pylist() == [[1, 2, 3], [], [], [0, 0], [2, 1]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.int32()), pa.list_(pa.float32(), 2)])
def test_a_vector_is_a_fixed_size_list(kind: Any) -> None:
    out = Vector("x", 2).apply(pa.array([[1.0, 2.0], [3.0, 4.0]], kind))
    assert out.type == pa.list_(pa.float32(), 2)
    assert out.to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
    assert len(Vector("x", 2).apply(pa.array([], kind))) == 0


def test_labels_become_places_among_their_classes() -> None:
    assert ClassLabel("t", "x", ("<=50K", ">50K"), True).apply(pa.array([">50K", "<=50K"])).to_pylist() == [1.0, 0.0]
    assert ClassLabel("t", "x", (0, 1), True).apply(pa.array([True, False])).to_pylist() == [1.0, 0.0]
    out = ClassLabel("t", "x", (30, 10, 20), False).apply(pa.array([10, 20, 30], pa.int8()))
    assert out.type == pa.int32()
    assert out.to_pylist() == [1, 2, 0]
    out = MultiLabel("t", "x", ("a", "b", "c")).apply(pa.array([["c", "a"], [], ["b", "b"]]))
    assert out.to_pylist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert RegressionLabel("t", "x").apply(pa.array([1.5, -2.0])).to_pylist() == [1.5, -2.0]
    assert Weight("w").apply(pa.array([0, 2])).to_pylist() == [0.0, 2.0]


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 5), max_size=12),
    st.integers(1, 4),
    st.none() | st.integers(1, 6),
)
def test_a_vocabulary_ranks_by_count_and_then_by_bytes(counts: Any, min_count: Any, max_size: Any) -> None:
    shuffled = sorted(counts, key=lambda term: xxhash.xxh64_intdigest(term.encode()))
    vocabulary = ranked(
        pa.array(shuffled, pa.string()),
        np.array([counts[term] for term in shuffled], dtype=np.int64),
        min_count=min_count,
        max_size=max_size,
    )
    expected = sorted((-n, term.encode()) for term, n in counts.items() if n >= min_count)[:max_size]
    assert vocabulary.terms.to_pylist() == [term.decode() for _, term in expected]
