"""Canonical keys: hashes, order, duplicates, multisets."""

import datetime
import decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import keys
from mltrain.errors import TableError


def spark_chain(*values: int | str | bytes) -> int:
    """What Spark's xxhash64 does: each value is hashed with the hash so far as its seed."""
    seed = 42
    for value in values:
        raw = value.to_bytes(8, "little", signed=True) if isinstance(value, int) else value
        seed = xxhash.xxh64_intdigest(raw.encode() if isinstance(raw, str) else raw, seed=seed)
    return seed


def hashes(**columns: Any) -> list[int]:
    return [int(h) for h in keys.hash_rows(pa.table(columns), domain="d", seed=9)]


def test_hashes_follow_the_documented_chain() -> None:
    day = datetime.date(2026, 1, 2)
    days = (day - datetime.date(1970, 1, 1)).days
    assert hashes(a=[7]) == [spark_chain("d", 9, 2, 7)]
    assert hashes(a=["ä"]) == [spark_chain("d", 9, 7, "ä")]
    assert hashes(a=[day]) == [spark_chain("d", 9, 5, days)]
    assert hashes(a=[b"\x01" * 16]) == [spark_chain("d", 9, 8, b"\x01" * 16)]
    assert hashes(a=[7], b=["x"]) == [spark_chain("d", 9, 2, 7, 7, "x")]
    assert hashes(a=pa.array([None, 7])) == [spark_chain("d", 9, 0), spark_chain("d", 9, 2, 7)]
    assert hashes(a=[[5, None, 6]]) == [spark_chain("d", 9, 9, 3, 5, 6)]
    assert hashes(a=[decimal.Decimal("1.50")]) == [spark_chain("d", 9, 4, "1.50")]


@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_width_of_integers_does_not_matter(values: list[int]) -> None:
    assert hashes(a=pa.array(values, pa.int32())) == hashes(a=pa.array(values, pa.int64()))


def test_floats_have_one_zero_and_one_nan() -> None:
    other_nan = np.array([0x7FF8000000000123], np.int64).view(np.float64)[0]
    result = hashes(a=np.array([0.0, -0.0, float("nan"), other_nan]))
    assert result[0] == result[1] and result[2] == result[3]
    assert hashes(a=np.array([1.5], np.float32)) == hashes(a=np.array([1.5]))


def test_types_are_told_apart() -> None:
    day = datetime.date(1970, 1, 8)
    assert len({hashes(a=[7])[0], hashes(a=["7"])[0], hashes(a=[day])[0], hashes(a=[7.0])[0], hashes(a=[True])[0]}) == 5


def test_values_do_not_run_into_each_other() -> None:
    assert hashes(a=["ab"], b=["c"]) != hashes(a=["a"], b=["bc"])
    assert hashes(a=pa.array([None], pa.int64()), b=[7]) != hashes(a=[7], b=pa.array([None], pa.int64()))


@given(values=st.lists(st.tuples(st.integers(0, 50), st.text(max_size=3)), min_size=1, max_size=60, unique=True))
@settings(max_examples=50, deadline=None)
def test_the_multiset_hash_forgets_order_and_nothing_else(values: list[tuple[int, str]]) -> None:
    def of(rows: list[tuple[int, str]]) -> int:
        table = pa.table(
            {"a": pa.array([r[0] for r in rows], pa.int64()), "b": pa.array([r[1] for r in rows], pa.string())}
        )
        return keys.multiset(table)

    whole = of(values)
    assert of(values[::-1]) == whole
    assert keys.add_multisets(of(values[:5]), of(values[5:])) == whole
    assert of(values[1:]) != whole
    assert of([*values[1:], values[-1]]) != whole or len(values) == 1


def test_rows_of_one_hash_are_ordered_by_value_and_duplicates_named() -> None:
    table = pa.table({"a": ["b", "a", "b", "c"], "n": [1, 2, 1, 3]})
    same = np.zeros(4, np.uint64)
    order = keys.sort_order(table, same)
    assert [table["a"][int(i)].as_py() for i in order] == ["a", "b", "b", "c"]
    assert keys.duplicates(table, same) == [("b", 1)]
    assert keys.duplicates(table, keys.hash_rows(table, domain="d", seed=0)) == [("b", 1)]


@pytest.mark.parametrize(
    "type_", [pa.float64(), pa.bool_(), pa.timestamp("us"), pa.list_(pa.int64()), pa.decimal128(5, 2)]
)
def test_a_key_column_of_another_type_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(TableError, match="key column 'k' has type"):
        keys.check_key_column("k", type_)


def test_rows_with_maps_cannot_be_told_apart() -> None:
    with pytest.raises(TableError, match=r"name a key of integers, strings, dates or UUIDs \(dataset.key\)"):
        keys.tag_of("m", pa.map_(pa.string(), pa.int64()))


def test_the_hash_never_changes() -> None:
    table = pa.table({"i": [1, -2], "s": ["x", "größer"], "d": pa.array([0, 20000], pa.int32()).cast(pa.date32())})
    assert keys.hash_rows(table, domain=keys.SHARD_DOMAIN, seed=0).tolist() == GOLDEN
    assert keys.multiset(table) == GOLDEN_MULTISET


GOLDEN = [7979052396716755295, 5561745937642195768]
GOLDEN_MULTISET = 239241142955932132992776799006338348356
