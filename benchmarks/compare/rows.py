"""The rows of the comparison: the same for every tool."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOATS, INTS = 13, 26
CARDINALITY = 1000
ROW_BYTES = 4 * (1 + FLOATS + INTS)
# Rows that are made, and written, at a time.
PART = 131072
# Rows that the tools with a buffer shuffle in: fewer than the 3 x 131,072 of our window for these rows.
SHUFFLE_BUFFER = 262144


class Part(NamedTuple):
    """Consecutive rows: labels ``[n]``, floats ``[n, 13]``, ints ``[n, 26]``."""

    first: int
    labels: NDArray[np.float32]
    floats: NDArray[np.float32]
    ints: NDArray[np.int32]

    def columns(self) -> dict[str, NDArray[Any]]:
        """The same, an array a column."""
        columns: dict[str, NDArray[Any]] = {"y": self.labels}
        columns |= {f"x{i}": np.ascontiguousarray(self.floats[:, i]) for i in range(FLOATS)}
        return columns | {f"c{i}": np.ascontiguousarray(self.ints[:, i]) for i in range(INTS)}


def parts(rows: int) -> Iterator[Part]:
    """All rows, a part at a time. They do not depend on ``rows``, except that there are so many."""
    for first in range(0, rows, PART):
        rng = np.random.default_rng([first])
        count = min(PART, rows - first)
        labels = rng.integers(0, 2, PART).astype(np.float32)
        floats, ints = rng.random((PART, FLOATS), np.float32), rng.integers(0, CARDINALITY, (PART, INTS), np.int32)
        yield Part(first, labels[:count], floats[:count], ints[:count])


def positives(rows: int) -> int:
    """How many labels are 1: what an epoch must add up to."""
    return sum(int(part.labels.sum()) for part in parts(rows))
