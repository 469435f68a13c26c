"""What a rank reads in a step, whatever the order: the bounds of shares, and the canonical order itself."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Rows of one shard, in the order in which they are delivered.

    Attributes:
        shard: canonical position of the shard in its split.
        rows: row numbers inside the shard, ascending: an array, or a slice when they are consecutive.
        count: how many there are.
    """

    shard: int
    rows: Rows | slice
    count: int


class EpochOrder(Protocol):
    """The order of one epoch."""

    total: int

    def shares(self, wanted: range, rank: int, world_size: int) -> list[list[Segment]]:
        """What one rank reads in each of some consecutive steps, in delivery order."""

    def upcoming(self, wanted: range, rank: int, world_size: int) -> Sequence[int]:
        """Shards to prefetch before the first of these consecutive steps, in the order of need."""


def steps(total: int, batch_size: int) -> int:
    """Steps an epoch; the last one may be short."""
    return -(-total // batch_size)


def share_bounds(step: int, total: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int, int, int]:
    """(first position, end position) of a step and (start, stop) of a rank's share among them."""
    first = step * batch_size
    end = min(first + batch_size, total)
    if not 0 <= first < end:
        raise IndexError(f"step {step} of an epoch of {steps(total, batch_size)} steps")
    size = end - first
    return first, end, rank * size // world_size, (rank + 1) * size // world_size


class SequentialEpoch:
    """The canonical order: position p is canonical row p.

    Args:
        sizes: rows of each shard of the split, in canonical order.
        batch_size: G.
    """

    def __init__(self, sizes: Sequence[int] | NDArray[np.int64], batch_size: int) -> None:
        self._starts = prefix(np.asarray(sizes, np.int64))
        self._batch_size = batch_size
        self.total = int(self._starts[-1])

    def shares(self, wanted: range, rank: int, world_size: int) -> list[list[Segment]]:
        """What one rank reads in each step: consecutive rows."""
        bounds = [share_bounds(s, self.total, self._batch_size, rank, world_size) for s in wanted]
        ends = [(first + start, first + stop) for first, _, start, stop in bounds]
        shards = np.searchsorted(self._starts, [start for start, _ in ends], side="right") - 1
        return [self._segments(shard, *end) for shard, end in zip(shards.tolist(), ends, strict=True)]

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The canonical rows [start, stop), by shard."""
        return self._segments(int(np.searchsorted(self._starts, start, side="right")) - 1, start, stop)

    def _segments(self, shard: int, start: int, stop: int) -> list[Segment]:
        """The same; ``shard`` is where they begin."""
        result = []
        while start < stop:
            low, high = int(self._starts[shard]), min(stop, int(self._starts[shard + 1]))
            if high > start:
                result.append(Segment(shard, slice(start - low, high - low), high - start))
            start = high
            shard += 1
        return result

    def upcoming(self, wanted: range, rank: int, world_size: int) -> Sequence[int]:
        """The shards that the rank reads in these steps."""
        bounds = np.array([share_bounds(s, self.total, self._batch_size, rank, world_size) for s in wanted], np.int64)
        first, start, stop = bounds[:, 0], bounds[:, 2], bounds[:, 3]
        low = np.searchsorted(self._starts, first + start, side="right") - 1
        high = np.searchsorted(self._starts, first + stop, side="left")
        counts = np.maximum(high - low, 0)
        shards: list[int] = np.unique(np.repeat(low, counts) + ranks(counts)).tolist()
        return shards


def prefix(counts: Rows) -> Rows:
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def ranks(counts: Rows) -> Rows:
    """0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1, ..."""
    ends = np.cumsum(counts)
    starts: Rows = np.repeat(ends - counts, counts)
    return np.arange(len(starts)) - starts
