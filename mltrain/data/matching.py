"""Which rows of two tables have the same key."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mltrain.data.keys import Hashes

NONE = -1


def match(left: pa.Table, left_hashes: Hashes, right: pa.Table, right_hashes: Hashes) -> NDArray[np.int64]:
    """For each row of ``right`` the row of ``left`` with the same key, or -1.

    Args:
        left: key columns without nulls, no key twice.
        left_hashes: ``[rows]``, from :func:`mltrain.data.keys.hash_rows`, alike for both sides.
        right: the same columns, of types that cast to those of ``left``.
        right_hashes: ``[rows]``.
    """
    found = np.full(len(right_hashes), NONE, np.int64)
    if not len(left_hashes) or not len(right_hashes):
        return found
    order = np.argsort(left_hashes, kind="stable")
    ordered = left_hashes[order]
    first = np.searchsorted(ordered, right_hashes, side="left")
    count = np.searchsorted(ordered, right_hashes, side="right") - first
    right = right.cast(left.schema)
    # Different keys with one hash are rare: as many rounds as the commonest hash has keys.
    for turn in range(int(count.max())):
        rows = np.flatnonzero((count > turn) & (found == NONE))
        candidates = order[first[rows] + turn]
        same = _equal(left, candidates, right, rows)
        found[rows[same]] = candidates[same]
    return found


def _equal(
    left: pa.Table, left_rows: NDArray[np.int64], right: pa.Table, right_rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the rows, pair by pair, are equal in all columns."""
    same = np.ones(len(left_rows), np.bool_)
    for name in left.schema.names:
        columns = (left[name].take(pa.array(left_rows)), right[name].take(pa.array(right_rows)))
        same &= np.asarray(pc.equal(*columns))
    return same
