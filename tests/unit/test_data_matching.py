"""Rows of two tables matched by key."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import keys
from mltrain.data.matching import match

_KEYS = st.lists(st.tuples(st.integers(-3, 40), st.sampled_from(["", "a", "b", "é"])), unique=True, max_size=30)


def _table(rows: list[tuple[int, str]], integer: pa.DataType) -> pa.Table:
    numbers, texts = [row[0] for row in rows], [row[1] for row in rows]
    return pa.table({"n": pa.array(numbers, integer), "t": pa.array(texts, pa.string())})


@settings(deadline=None)
@given(left=_KEYS, right=_KEYS, bits=st.sampled_from([0, 2, 64]))
def test_every_row_finds_the_row_with_its_key_even_where_hashes_collide(
    left: list[tuple[int, str]], right: list[tuple[int, str]], bits: int
) -> None:
    # Another width of integers is the same key; few bits of the hash make many keys collide.
    tables = _table(left, pa.int64()), _table(right, pa.int32())
    hashes = [keys.hash_rows(table, domain="test", seed=0) & np.uint64((1 << bits) - 1) for table in tables]
    expected = [left.index(row) if row in left else -1 for row in right]
    assert match(tables[0], hashes[0], tables[1], hashes[1]).tolist() == expected
