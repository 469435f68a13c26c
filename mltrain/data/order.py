"""The order of samples: a pure function of (dataset digest, seed, epoch, global batch size, position).

An epoch lays the N rows of a split in a line and deals the line out to lanes, windows and steps:

1. *Line*: the shards, sorted by a keyed hash of their canonical position.
2. *Lanes*: the line is cut into C equal parts (the first N mod C lanes are one row longer; a cut may fall inside a
   shard). Position p is row ``p div C`` of lane ``p mod C``: a bijection between positions and the line.
3. *Windows*: inside a lane, every K consecutive shard fragments form a window; a last window of fewer than K/2 joins
   the one before.
4. *Dealing*: a window of m rows is rotated by a random amount and cut into B blocks of S = m div B or S + 1 rows, B
   being the positions of a lane in a step (at most m / 2), and dealt like cards: *slice* t takes one row of every
   block, row ``(P(t) + h(j)) mod size`` of block j; slice S takes the last row of the longer blocks. P is a Feistel
   permutation of the slices (:func:`permute`), h a hash of window and block. The indices of a window run through
   slice 0, slice 1, ...
5. *Steps*: step s owns the positions [sG, (s+1)G), taken lane by lane. Of the g positions of a step (G, fewer in the
   last) rank r of W takes [floor(r g / W), floor((r + 1) g / W)), ordered by their place in the line.

The build has put the rows of a shard in the order of a hash, so a slice is a stratified random sample of its window;
what changes from epoch to epoch is which rows meet. Dealing costs a few additions a row, and a slice comes out sorted,
where a permutation of single rows has to be computed and sorted anew in every step.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltrain.data.dealing import ROUNDS, U32, block_table, dealt, describe_blocks, longer_block, mix64, permute, radices
from mltrain.data.shares import Rows, Segment, prefix, ranks, share_bounds

_VERSION = "mltrain-order-2"
# Blocks of a window and rows of a block fit 16 bits, so that products of them fit 32.
_MAX_BLOCKS = (1 << 16) - 1
# Long pieces, which are few, are dealt one at a time, from tables of their windows' blocks.
_LONG_PIECE = 1024
_TABLES = 64


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Some windows, an element each.

    Attributes:
        start: where they start in the line.
        size: m, their rows.
        blocks: B.
        slices: S.
        longer: how many of 65536 blocks are one row longer, rounded up.
        rotation: of their rows, below m.
        block_key: for h.
        round_keys: ``[ROUNDS, windows]``, for P.
        fragment_starts: where the shards that they hold start in the line, ascending.
        fragment_shards: those shards.
    """

    start: Rows
    size: Rows
    blocks: Rows
    slices: Rows
    longer: U32
    rotation: U32
    block_key: U32
    round_keys: U32
    fragment_starts: Rows
    fragment_shards: list[int]


class ShuffledEpoch:
    """The order of one epoch, with C lanes and windows of K shard fragments.

    Costs O(shards log shards) to make, independent of rows and steps; any step is then found directly.

    Args:
        sizes: rows of each shard of the split, in canonical order.
        batch_size: G.
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
        batch_size: int,
        *,
        lanes: int,
        window: int,
        digest: str,
        split: str,
        seed: int,
        epoch: int,
    ) -> None:
        counts = np.asarray(sizes, np.int64)
        line_key, self._window_key = _keys(digest, split, seed, epoch)
        self.total = int(counts.sum())
        self._batch_size = batch_size
        self._lanes = lanes
        # No two scores are equal: the mix is a bijection.
        self._line = np.argsort(mix64(np.arange(len(counts), dtype=np.uint64), line_key))
        self._line_starts = prefix(counts[self._line])
        quotient, longer = divmod(self.total, lanes)
        lane = np.arange(lanes + 1, dtype=np.int64)
        self._lane_starts = lane * quotient + np.minimum(lane, longer)
        self._window_starts = cut_windows(self._line_starts, self._lane_starts, window)
        # Consecutive steps lie in the same windows.
        self._windows = functools.lru_cache(maxsize=4)(self._describe)
        self._tables = functools.lru_cache(maxsize=_TABLES)(block_table)

    def shares(self, wanted: range, rank: int, world_size: int) -> list[list[Segment]]:
        """What one rank reads in each of some consecutive steps: by place in the line, so by shard, rows ascending."""
        ends, numbers, start, stop = self._pieces(wanted, rank, world_size)
        windows, window = self._at_hand(numbers)
        places = self._places(windows, window, start - windows.start[window], stop - windows.start[window])
        result = []
        first = 0
        for end in ends:
            result.append(_by_shard(places[first:end], windows))
            first = end
        return result

    def upcoming(self, wanted: range, rank: int, world_size: int) -> Sequence[int]:
        """Shards of the windows that the first step's share lies in, then of those that follow in the same lanes.

        Where ranks share a lane, only those that these steps read.
        """
        _, numbers, start, _ = self._pieces(wanted[:1], rank, world_size)
        now = np.unique(numbers)
        following = now + 1
        # The next lane's first window was somebody's at the start of the epoch.
        opens_lane = np.isin(self._window_starts[following], self._lane_starts)
        following = np.setdiff1d(following[~opens_lane], now)
        shared = self._shared_lanes(wanted[:1], rank, world_size, start)
        fragments = []
        for group in (now, following):
            part = np.isin(self._lane_of(self._window_starts[group]), shared)
            fragments.append(self._fragments(group[~part]))
            if np.any(part):
                fragments.append(self._read_fragments(wanted, rank, world_size, shared, group[part]))
        return list(dict.fromkeys(self._line[np.concatenate(fragments)].tolist()))

    def line_position(self, positions: Rows) -> Rows:
        """Place in the line of each position."""
        lane, offset = positions % self._lanes, positions // self._lanes
        undealt = self._lane_starts[lane] + offset
        windows, window = self._at_hand(np.searchsorted(self._window_starts, undealt, side="right") - 1)
        index = undealt - windows.start[window]
        return self._places(windows, window, index, index + 1).astype(np.int64)

    def canonical_rows(self, positions: Rows) -> Rows:
        """Canonical row number of each position of the epoch."""
        place = self.line_position(positions)
        fragment = np.searchsorted(self._line_starts, place, side="right") - 1
        counts = np.empty(len(self._line), np.int64)
        counts[self._line] = np.diff(self._line_starts)
        return prefix(counts)[self._line[fragment]] + place - self._line_starts[fragment]

    def _pieces(
        self, wanted: range, rank: int, world_size: int, lanes: Rows | None = None
    ) -> tuple[list[int], Rows, Rows, Rows]:
        """Shares, or what they have of some lanes, as ranges (window, start, stop) of the line before it is dealt.

        Returns:
            The rows of whole shares up to the end of each step, and the ranges, step by step and lane by lane, each
            inside one window.
        """
        bounds = np.array([share_bounds(s, self.total, self._batch_size, rank, world_size) for s in wanted], np.int64)
        first, end, low, high = bounds.T[:, :, None]
        lane = np.arange(self._lanes, dtype=np.int64) if lanes is None else lanes
        begin = (first - lane + self._lanes - 1) // self._lanes
        counts = (end - lane + self._lanes - 1) // self._lanes - begin
        before = self._in_lanes_before(end, lane) - self._in_lanes_before(first, lane)
        base = self._lane_starts[lane] + begin
        start = base + np.clip(low - before, 0, counts)
        stop = base + np.clip(high - before, 0, counts)
        chosen = stop > start
        start, stop = start[chosen], stop[chosen]
        window = np.searchsorted(self._window_starts, start, side="right") - 1
        spans = np.searchsorted(self._window_starts, stop - 1, side="right") - window
        if np.any(spans > 1):
            window = np.repeat(window, spans) + ranks(spans)
            start = np.maximum(np.repeat(start, spans), self._window_starts[window])
            stop = np.minimum(np.repeat(stop, spans), self._window_starts[window + 1])
        return np.cumsum(bounds[:, 3] - bounds[:, 2]).tolist(), window, start, stop

    def _places(self, windows: _Windows, window: Rows, start: Rows, stop: Rows) -> NDArray[Any]:
        """Places in the line of the index ranges [start, stop) of windows, one after the other."""
        window, turn, start, stop = _by_slice(windows, window, start, stop)
        blocks, slices = windows.blocks[window], windows.slices[window]
        last = turn == slices
        shift = permute(
            np.where(last, 0, turn).astype(np.uint32),
            slices.astype(np.uint32),
            *radices(slices),
            windows.round_keys[:, window],
        )
        return self._deal(
            (start - turn * blocks).astype(np.uint32),
            stop - start,
            last,
            windows.start[window].astype(np.uint32 if self.total < 1 << 32 else np.int64),
            np.where(last, slices, shift).astype(np.uint32),
            windows,
            window,
        )

    def _deal(
        self,
        first: U32,
        lengths: Rows,
        last: NDArray[np.bool_],
        origin: NDArray[Any],
        shift: U32,
        windows: _Windows,
        window: Rows,
    ) -> NDArray[Any]:
        """Places in the line of pieces, one after the other.

        Args:
            first: number in its slice of each piece's first row.
            lengths: rows of each piece.
            last: whether its slice is the last one, of the longer blocks alone.
            origin: where its window starts in the line.
            shift: P(t) of its slice, S for the last one.
            windows: the windows at hand.
            window: which of them.
        """
        size = windows.size.astype(np.uint32)
        each = (windows.slices.astype(np.uint32), windows.longer, windows.block_key, windows.rotation)
        out = np.empty(int(lengths.sum()), origin.dtype)
        if len(first) * _LONG_PIECE > len(out):
            number = np.repeat(first, lengths) + ranks(lengths).astype(np.uint32)
            where = np.repeat(window, lengths)
            of_last = np.flatnonzero(np.repeat(last, lengths))
            number[of_last] = longer_block(number[of_last], windows.longer[where[of_last]])
            table = describe_blocks(number, *(values[where] for values in each))
            np.add(dealt(*table, np.repeat(shift, lengths), size[where]), np.repeat(origin, lengths), out=out)
            return out
        end = 0
        for i, (low, length, w) in enumerate(zip(first.tolist(), lengths.tolist(), window.tolist(), strict=True)):
            table = self._tables(int(windows.blocks[w]), *(int(values[w]) for values in each))
            taken: slice | U32 = slice(low, low + length)
            if last[i]:
                taken = longer_block(np.arange(low, low + length, dtype=np.uint32), windows.longer[w])
            rows, hashed, begin = (column[taken] for column in table)
            np.add(dealt(rows, hashed, begin, shift[i], size[w]), origin[i], out=out[end : end + length])
            end += length
        return out

    def _in_lanes_before(self, positions: Rows, lane: Rows) -> Rows:
        """How many of the positions below each are in lanes below this one."""
        return positions // self._lanes * lane + np.minimum(positions % self._lanes, lane)

    def _lane_of(self, places: Rows) -> Rows:
        """Lanes that places of the line lie in."""
        return np.searchsorted(self._lane_starts, places, side="right") - 1

    def _shared_lanes(self, step: range, rank: int, world_size: int, start: Rows) -> Rows:
        """Lanes of which a rank reads a part in a step, and others the rest; ``start`` is where its ranges do."""
        # A share is taken lane by lane: only its first and its last can be shared.
        lanes = np.unique(self._lane_of(start[[0, -1]])) if len(start) else start
        rows = []
        for share in ((rank, world_size), (0, 1)):
            _, _, begin, end = self._pieces(step, *share, lanes)
            rows.append(np.bincount(self._lane_of(begin), end - begin, self._lanes))
        return lanes[rows[0][lanes] < rows[1][lanes]]

    def _read_fragments(self, wanted: range, rank: int, world_size: int, lanes: Rows, among: Rows) -> Rows:
        """Positions in the line of the shards that a rank reads in some steps, of some windows of some lanes."""
        _, numbers, start, stop = self._pieces(wanted, rank, world_size, lanes)
        chosen = np.isin(numbers, among)
        windows, window = self._at_hand(numbers[chosen])
        begin = windows.start[window]
        window, _, start, stop = _by_slice(windows, window, start[chosen] - begin, stop[chosen] - begin)
        # A slice goes through the blocks in turn: between its first row and its last one are all others.
        low, high = (self._places(windows, window, index, index + 1).astype(np.int64) for index in (start, stop - 1))
        # Unless they lie around the end of the window, as it is rotated.
        around, begin = high < low, windows.start[window]
        last = np.where(around, begin + windows.size[window] - 1, high)
        low, high = np.append(low, begin[around]), np.append(last, high[around])
        first, last = (np.searchsorted(self._line_starts, end, side="right") - 1 for end in (low, high))
        counts = last - first + 1
        return np.unique(np.repeat(first, counts) + ranks(counts))

    def _at_hand(self, numbers: Rows) -> tuple[_Windows, Rows]:
        """The windows of these numbers, each once, and where each number is among them."""
        used, window = np.unique(numbers, return_inverse=True)
        return self._windows(used.tobytes()), window

    def _describe(self, used: bytes) -> _Windows:
        numbers = np.frombuffer(used, np.int64)
        start = self._window_starts[numbers]
        size = self._window_starts[numbers + 1] - start
        a_step = min(-(-self._batch_size // self._lanes), _MAX_BLOCKS)
        blocks = np.maximum(np.minimum(a_step, size // 2), -(-size // _MAX_BLOCKS))
        slices = size // blocks
        identity = numbers.astype(np.uint64)
        rotation, *keys = (mix64(identity, self._window_key ^ n) >> np.uint64(32) for n in range(ROUNDS + 2))
        fragments = self._fragments(numbers)
        return _Windows(
            start=start,
            size=size,
            blocks=blocks,
            slices=slices,
            longer=(-(-(size - blocks * slices << 16) // blocks)).astype(np.uint32),
            rotation=(rotation * size.astype(np.uint64) >> np.uint64(32)).astype(np.uint32),
            block_key=keys[0].astype(np.uint32),
            round_keys=np.stack(keys[1:]).astype(np.uint32),
            fragment_starts=self._line_starts[fragments],
            fragment_shards=self._line[fragments].tolist(),
        )

    def _fragments(self, windows: Rows) -> Rows:
        """Positions in the line of the shards that windows hold."""
        first = np.searchsorted(self._line_starts, self._window_starts[windows], side="right") - 1
        last = np.searchsorted(self._line_starts, self._window_starts[windows + 1] - 1, side="right") - 1
        counts = last - first + 1
        return np.unique(np.repeat(first, counts) + ranks(counts))


def _by_slice(windows: _Windows, window: Rows, start: Rows, stop: Rows) -> tuple[Rows, Rows, Rows, Rows]:
    """Cuts the index ranges [start, stop) of windows where a slice ends: (window, number of the slice, start, stop)."""
    blocks, slices = windows.blocks[window], windows.slices[window]
    turn = np.minimum(start // blocks, slices)
    spans = np.minimum((stop - 1) // blocks, slices) - turn + 1
    if np.any(spans > 1):
        turn = np.repeat(turn, spans) + ranks(spans)
        window, blocks, slices, start, stop = (np.repeat(each, spans) for each in (window, blocks, slices, start, stop))
        start = np.maximum(start, turn * blocks)
        stop = np.where(turn < slices, np.minimum(stop, (turn + 1) * blocks), stop)
    return window, turn, start, stop


def _by_shard(places: NDArray[Any], windows: _Windows) -> list[Segment]:
    """Sorts places in the line and cuts them at shards."""
    # They are a few ascending runs already, which a merge sort only has to put in order.
    places.sort(kind="stable")
    bounds = np.searchsorted(places, windows.fragment_starts.astype(places.dtype))
    counts = np.append(bounds[1:], len(places)) - bounds
    rows = places - np.repeat(windows.fragment_starts, counts)
    return [
        Segment(shard, rows[low : low + count], count)
        for shard, low, count in zip(windows.fragment_shards, bounds.tolist(), counts.tolist(), strict=True)
        if count
    ]


def cut_windows(line_starts: Rows, lane_starts: Rows, window: int) -> Rows:
    """Cuts every lane into windows of ``window`` fragments; a last one of fewer than half joins the one before.

    Args:
        line_starts: where each shard starts in the line, and N.
        lane_starts: where each lane starts, and N.
        window: K.

    Returns:
        Where each window starts, and N.
    """
    fragments = np.sort(np.concatenate([line_starts, lane_starts]))
    fragments = fragments[:-1][np.diff(fragments) > 0]
    first = np.unique(np.searchsorted(fragments, lane_starts))
    per_lane = np.diff(first)
    windows = -(-per_lane // window)
    windows -= ((per_lane - (windows - 1) * window) * 2 < window) & (windows > 1)
    opens = np.repeat(first[:-1], windows) + ranks(windows) * window
    return np.append(fragments[opens], line_starts[-1])


def _keys(digest: str, split: str, seed: int, epoch: int) -> tuple[int, int]:
    text = "\0".join([_VERSION, digest, split, str(int(seed)), str(int(epoch))])
    raw = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
