"""The order of samples: a pure function of (dataset digest, seed, epoch, global batch size, position).

An epoch lays the N rows of a split in a line and deals the line out to lanes, windows and steps:

1. *Line*: the shards, sorted by a keyed hash of their canonical position.
2. *Lanes*: the line is cut into C equal parts (the first N mod C lanes are one row longer; a cut may fall inside a
   shard). Position p is row ``p div C`` of lane ``p mod C``: a bijection between positions and the line.
3. *Windows*: inside a lane, every K consecutive shard fragments form a window; a last window of fewer than K/2 joins
the
   one before. The rows of a window of m are permuted by a Feistel network on ``a * b >= m`` (:func:`permute`).
4. *Steps*: step s owns the positions [sG, (s+1)G), taken lane by lane. Of the g positions of a step (G, fewer in the
   last) rank r of W takes [floor(r g / W), floor((r + 1) g / W)), ordered by canonical row number.

So a row's step depends on no number of workers, neighbouring ranks read neighbouring lanes, and nothing is stored:
(digest, seed, epoch, step) is the whole state. Every number below is an integer of fixed width and comes from
BLAKE2b, the splitmix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014) or a
32-bit mix, never from a generator of a library, whose streams may change between versions.
``tests/unit/test_data_order.py`` pins the result with golden values: changing them means a new order, and a new name
in ``_VERSION``.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_U32 = NDArray[np.uint32]
_U64 = NDArray[np.uint64]

_VERSION = "mltrain-order-1"
ROUNDS = 4
_VECTOR_PIECES = 8


@dataclasses.dataclass(frozen=True)
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

    def share(self, step: int, batch_size: int, rank: int, world_size: int) -> list[Segment]:
        """What one rank reads in one step, in delivery order."""

    def upcoming(self, step: int, batch_size: int, rank: int, world_size: int) -> Sequence[int]:
        """Shards that the rank reads from about this step on, in the order of need: what to prefetch."""


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
    """The canonical order: position p is canonical row p."""

    def __init__(self, sizes: Sequence[int] | NDArray[np.int64]) -> None:
        self._starts = _prefix(np.asarray(sizes, np.int64))
        self.total = int(self._starts[-1])

    def share(self, step: int, batch_size: int, rank: int, world_size: int) -> list[Segment]:
        """What one rank reads in one step: consecutive rows."""
        first, _, start, stop = share_bounds(step, self.total, batch_size, rank, world_size)
        return self.segments(first + start, first + stop)

    def segments(self, start: int, stop: int) -> list[Segment]:
        """The canonical rows [start, stop), by shard."""
        result = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            low, high = int(self._starts[shard]), min(stop, int(self._starts[shard + 1]))
            if high > start:
                result.append(Segment(shard, slice(start - low, high - low), high - start))
            start = high
            shard += 1
        return result

    def upcoming(self, step: int, batch_size: int, rank: int, world_size: int) -> Sequence[int]:
        """The shard of this step's share and the next two."""
        first, _, start, _ = share_bounds(step, self.total, batch_size, rank, world_size)
        shard = int(np.searchsorted(self._starts, first + start, side="right")) - 1
        return range(shard, min(shard + 3, len(self._starts) - 1))


class ShuffledEpoch:
    """The order of one epoch, with C lanes and windows of K shard fragments.

    Costs O(shards log shards) to make, independent of rows and steps; any step is then found directly.

    Args:
        sizes: rows of each shard of the split, in canonical order.
        lanes: C.
        window: K.
        digest: the dataset's digest.
        split: the split's name.
        seed: the user's seed.
        epoch: from 0.
    """

    def __init__(
        self,
        sizes: Sequence[int] | NDArray[np.int64],
        *,
        lanes: int,
        window: int,
        digest: str,
        split: str,
        seed: int,
        epoch: int,
    ) -> None:
        counts = np.asarray(sizes, np.int64)
        line_key, window_key = _keys(digest, split, seed, epoch)
        self.total = int(counts.sum())
        self.lanes = lanes
        scores = mix64(np.arange(len(counts), dtype=np.uint64), line_key)
        self._line = np.argsort(scores, kind="stable")
        self._line_starts = _prefix(counts[self._line])
        quotient, longer = divmod(self.total, lanes)
        lane = np.arange(lanes + 1, dtype=np.int64)
        self._lane_starts = lane * quotient + np.minimum(lane, longer)
        self._window_starts, window_lanes = cut_windows(self._line_starts, self._lane_starts, window)
        sizes_of_windows = np.diff(self._window_starts)
        self._radices = radices(sizes_of_windows)
        self._window_keys = _round_keys(window_lanes, len(sizes_of_windows), window_key)
        # Consecutive steps lie in the same windows.
        self._cuts = functools.lru_cache(maxsize=4)(self._find_cuts)

    def share(self, step: int, batch_size: int, rank: int, world_size: int) -> list[Segment]:
        """What one rank reads in one step, by shard in canonical order, rows ascending."""
        windows, starts, stops = self._pieces(step, batch_size, rank, world_size)
        line_rows = self._permuted(windows, starts, stops)
        line_rows.sort()
        return self._by_shard(line_rows, windows)

    def upcoming(self, step: int, batch_size: int, rank: int, world_size: int) -> Sequence[int]:
        """Shards of the windows that this step's share lies in, then of the windows after those."""
        windows, _, _ = self._pieces(step, batch_size, rank, world_size)
        now = np.unique(windows)
        following = np.setdiff1d(np.minimum(now + 1, len(self._window_starts) - 2), now)
        shards = [int(self._line[i]) for group in (now, following) for i in self._fragments(group)]
        return list(dict.fromkeys(shards))

    def line_position(self, positions: Rows) -> Rows:
        """Place in the permuted line of each position: the definition, which :meth:`share` computes faster."""
        lane, offset = positions % self.lanes, positions // self.lanes
        place = self._lane_starts[lane] + offset
        window = np.searchsorted(self._window_starts, place, side="right") - 1
        start = self._window_starts[window]
        index = (place - start).astype(np.uint32)
        sizes = (self._window_starts[window + 1] - start).astype(np.uint32)
        a, b = self._radices[0][window], self._radices[1][window]
        permuted = permute(index, sizes, a, b, self._window_keys[:, window])
        return np.asarray(start + permuted, np.int64)

    def canonical_rows(self, positions: Rows) -> Rows:
        """Canonical row number of each position of the epoch."""
        place = self.line_position(positions)
        fragment = np.searchsorted(self._line_starts, place, side="right") - 1
        counts = np.empty(len(self._line), np.int64)
        counts[self._line] = np.diff(self._line_starts)
        return _prefix(counts)[self._line[fragment]] + place - self._line_starts[fragment]

    def _pieces(self, step: int, batch_size: int, rank: int, world_size: int) -> tuple[Rows, Rows, Rows]:
        """The share as ranges (window, start, stop) of the line before windows are permuted, each inside one window."""
        first, end, low, high = share_bounds(step, self.total, batch_size, rank, world_size)
        lane = np.arange(self.lanes, dtype=np.int64)
        begin = (first - lane + self.lanes - 1) // self.lanes
        counts = (end - lane + self.lanes - 1) // self.lanes - begin
        before = np.cumsum(counts) - counts
        base = self._lane_starts[:-1] + begin
        start = base + np.minimum(np.maximum(low - before, 0), counts)
        stop = base + np.minimum(np.maximum(high - before, 0), counts)
        chosen = stop > start
        start, stop = start[chosen], stop[chosen]
        window = np.searchsorted(self._window_starts, start, side="right") - 1
        spans = np.searchsorted(self._window_starts, stop - 1, side="right") - window
        if np.all(spans == 1):
            return window, start, stop
        window = np.repeat(window, spans) + _ranks(spans)
        start = np.maximum(np.repeat(start, spans), self._window_starts[window])
        return window, start, np.minimum(np.repeat(stop, spans), self._window_starts[window + 1])

    def _permuted(self, windows: Rows, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Places in the permuted line of the ranges [start, stop), each inside one window."""
        lengths = stops - starts
        # Half the width sorts in half the time.
        out = np.empty(int(lengths.sum()), np.uint32 if self.total < 1 << 32 else np.int64)
        base = self._window_starts[windows]
        sizes = (self._window_starts[windows + 1] - base).astype(np.uint32)
        a, b = self._radices[0][windows], self._radices[1][windows]
        keys = self._window_keys[:, windows]
        if len(windows) > _VECTOR_PIECES:
            index = (np.repeat(starts - base, lengths) + _ranks(lengths)).astype(np.uint32)
            each = np.repeat(np.arange(len(windows)), lengths)
            permuted = permute(index, sizes[each], a[each], b[each], keys[:, each])
            np.add(permuted, base[each], out=out, casting="unsafe")
            return out
        end = 0
        for i in range(len(windows)):
            index = np.arange(starts[i] - base[i], stops[i] - base[i], dtype=np.uint32)
            end += len(index)
            permuted = permute(index, sizes[i], a[i], b[i], keys[:, i])
            np.add(permuted, base[i], out=out[end - len(index) : end], casting="unsafe")
        return out

    def _fragments(self, windows: Rows) -> Rows:
        """Positions in the line of the shards that windows hold."""
        first = np.searchsorted(self._line_starts, self._window_starts[windows], side="right") - 1
        last = np.searchsorted(self._line_starts, self._window_starts[windows + 1] - 1, side="right") - 1
        counts = last - first + 1
        return np.unique(np.repeat(first, counts) + _ranks(counts))

    def _by_shard(self, line_rows: NDArray[Any], windows: Rows) -> list[Segment]:
        """Cuts ascending places in the line at shards and puts the pieces in canonical order."""
        starts, shards, canonical = self._cuts(windows.tobytes())
        bounds = np.append(np.searchsorted(line_rows, starts.astype(line_rows.dtype)), len(line_rows)).tolist()
        line_rows = line_rows.astype(np.int64)
        segments = []
        for i in canonical:
            low, high = bounds[i], bounds[i + 1]
            if high > low:
                rows = line_rows[low:high]
                rows -= starts[i]
                segments.append(Segment(shards[i], rows, high - low))
        return segments

    def _find_cuts(self, windows: bytes) -> tuple[Rows, list[int], list[int]]:
        """Of the shards that windows hold: starts in the line, shards, and their canonical order."""
        fragments = self._fragments(np.frombuffer(windows, np.int64))
        shards = self._line[fragments]
        return self._line_starts[fragments], shards.tolist(), np.argsort(shards, kind="stable").tolist()


def cut_windows(line_starts: Rows, lane_starts: Rows, window: int) -> tuple[Rows, Rows]:
    """Cuts every lane into windows of ``window`` fragments; a last one of fewer than half joins the one before.

    Args:
        line_starts: where each shard starts in the line, and N.
        lane_starts: where each lane starts, and N.
        window: K.

    Returns:
        Where each window starts, and N; and the lane of each window.
    """
    total = line_starts[-1]
    fragments = np.unique(np.concatenate([line_starts, lane_starts]))
    fragments = fragments[fragments < total]
    lanes = np.searchsorted(lane_starts, fragments, side="right") - 1
    first = np.searchsorted(lanes, lanes)
    per_lane = np.searchsorted(lanes, lanes, side="right") - first
    windows = -(-per_lane // window)
    rest = per_lane - (windows - 1) * window
    windows -= (rest * 2 < window) & (windows > 1)
    place = np.arange(len(fragments)) - first
    opens = (place % window == 0) & (place // window < windows)
    return np.append(fragments[opens], total), lanes[opens]


def radices(sizes: Rows) -> tuple[_U32, _U32]:
    """(a, b) with ``a * b >= size``, both about the square root, so that few indices have to walk."""
    root = np.sqrt(sizes.astype(np.float64))
    a = np.maximum(np.ceil(root), 1).astype(np.int64)
    return a.astype(np.uint32), (-(-sizes // a)).astype(np.uint32)


def permute(index: _U32, size: Any, a: Any, b: Any, keys: Any) -> _U32:
    """A keyed permutation of [0, size): a Feistel network over mixed radices.

    An index is ``left * b + right``. A round adds a hash of one half to the other, modulo that one's radix
    (generalised Feistel, Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). Indices that land at or
    above ``size``, fewer than one in sqrt(size), are put through again (cycle-walking), which keeps it a bijection.

    Args:
        index: uint32, each below its size.
        size: rows of the window: one uint32, or one an index. At most 2**32 - 2**17.
        a: radix of the left half, likewise; at most 2**16.
        b: radix of the right half, likewise.
        keys: ``[ROUNDS]`` or ``[ROUNDS, n]`` uint32.
    """
    out: _U32 = _feistel(index, a, b, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        each = [value if np.ndim(value) == 0 else value[outside] for value in (size, a, b)]
        walked = _feistel(out[outside], each[1], each[2], keys if np.ndim(keys) == 1 else keys[:, outside])
        out[outside] = walked
        outside = outside[walked >= each[0]]
        # Only those still outside go on; sizes are taken again by their index.
    return out


def mix64(values: _U64, key: int) -> _U64:
    """The splitmix64 finaliser of ``key + (value + 1) * golden ratio``."""
    with np.errstate(over="ignore"):
        z = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _feistel(index: _U32, a: Any, b: Any, keys: Any) -> _U32:
    left: _U32 = index // b
    right: _U32 = index - left * b
    scratch = np.empty_like(index)
    for number in range(0, ROUNDS, 2):
        _round(left, right, keys[number], a, scratch)
        _round(right, left, keys[number + 1], b, scratch)
    # The half that was mixed last leads. The other way round, indices that are b apart stay neighbours once in b times.
    np.multiply(right, a, out=right)
    np.add(right, left, out=right)
    return right


def _round(target: _U32, source: _U32, key: Any, radix: Any, scratch: _U32) -> None:
    """target = (target + hash(source) scaled to [0, radix)) mod radix, in place."""
    np.add(source, key, out=scratch)
    scratch *= np.uint32(0x9E3779B1)
    scratch ^= scratch >> np.uint32(15)
    scratch *= np.uint32(0x85EBCA77)
    scratch >>= np.uint32(16)
    scratch *= radix
    scratch >>= np.uint32(16)
    target += scratch
    # Both are below the radix, so one subtraction suffices; below zero it wraps to a large number.
    np.subtract(target, radix, out=scratch)
    np.minimum(target, scratch, out=target)


def _keys(digest: str, split: str, seed: int, epoch: int) -> tuple[int, int]:
    text = "\0".join([_VERSION, digest, split, str(int(seed)), str(int(epoch))])
    raw = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _round_keys(window_lanes: Rows, count: int, key: int) -> _U32:
    """``[ROUNDS, windows]`` keys, from (epoch key, lane, window of the lane)."""
    place = np.arange(count) - np.searchsorted(window_lanes, window_lanes)
    identity = (window_lanes.astype(np.uint64) << np.uint64(32)) | place.astype(np.uint64)
    mixed = [mix64(identity, key ^ number) for number in range(ROUNDS)]
    return np.stack([(m >> np.uint64(32)).astype(np.uint32) for m in mixed])


def _prefix(counts: Rows) -> Rows:
    out = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    return out


def _ranks(counts: Rows) -> Rows:
    """0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1, ..."""
    ends = np.cumsum(counts)
    starts: Rows = np.repeat(ends - counts, counts)
    return np.arange(len(starts)) - starts
