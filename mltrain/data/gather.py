"""Collecting the rows of a step from mapped shards into buffers that are used again and again."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from mltrain.data.batch import Batch, Ragged
from mltrain.data.schema import Column, Schema
from mltrain.data.shard import Shard
from mltrain.data.shares import Segment
from mltrain.data.source import ShardSource


class Slot:
    """The buffers of a bundle in the ring: those of its batches lie side by side.

    Args:
        layout: the stored columns.
        dtypes: the matrices that are read.
        ragged: the ragged columns that are read.
        rows: the largest share of a step.
        steps: of a bundle.
        row_numbers: whether row numbers are asked for.
        pinned: page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        layout: Schema,
        dtypes: Sequence[str],
        ragged: Sequence[Column],
        rows: int,
        steps: int,
        row_numbers: bool,
        pinned: bool,
    ) -> None:
        matrices = {
            dtype: torch.empty(
                (steps * rows, layout.matrices[dtype].width), dtype=getattr(torch, dtype), pin_memory=pinned
            )
            for dtype in dtypes
        }
        self.arrays: dict[str, NDArray[Any]] = {dtype: tensor.numpy() for dtype, tensor in matrices.items()}
        self.rows = rows
        self.parts = [
            Part(
                {dtype: tensor[step * rows : (step + 1) * rows] for dtype, tensor in matrices.items()},
                ragged,
                rows,
                row_numbers,
                pinned,
            )
            for step in range(steps)
        ]


class Part:
    """The buffers of one batch.

    Args:
        matrices: dtype to its rows of the slot's.
        ragged: the ragged columns that are read.
        rows: the largest share.
        row_numbers: whether row numbers are asked for.
        pinned: page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        matrices: dict[str, torch.Tensor],
        ragged: Sequence[Column],
        rows: int,
        row_numbers: bool,
        pinned: bool,
    ) -> None:
        self.matrices = matrices
        self.row_numbers = torch.empty(rows, dtype=torch.int64, pin_memory=pinned) if row_numbers else None
        self.offsets = {c.name: torch.zeros(rows + 1, dtype=torch.int64, pin_memory=pinned) for c in ragged}
        self.values = {c.name: torch.empty(0, dtype=getattr(torch, c.dtype), pin_memory=pinned) for c in ragged}
        self.pinned = pinned
        self.copied: torch.cuda.Event | None = None

    def room(self, name: str, size: int) -> torch.Tensor:
        """A buffer for the values of a ragged column; grows by half when it must."""
        if len(self.values[name]) < size:
            dtype = self.values[name].dtype
            self.values[name] = torch.empty(size + size // 2, dtype=dtype, pin_memory=self.pinned)
        return self.values[name]


class Gatherer:
    """Fills slots from shards.

    Args:
        source: opens shards.
        first_shard: position in the index of the split's first shard.
        first_rows: canonical row number of the first row of each shard of the split.
        layout: the stored columns.
        selected: the columns to expose.
        touched: positions in the split of the shards that were read are added to it.
    """

    def __init__(
        self,
        source: ShardSource,
        first_shard: int,
        first_rows: NDArray[np.int64],
        layout: Schema,
        selected: Schema,
        touched: set[int],
    ) -> None:
        self.source = source
        self.layout = layout
        self.selected = selected
        self.dtypes = read_dtypes(selected)
        self._ragged_names = [column.name for column in selected.ragged]
        self._touched = touched
        self._first_shard = first_shard
        self._first_rows = first_rows
        # Those of the last step: the next one mostly reads the same. Others are unmapped when the source drops them.
        self._open: dict[int, _OpenShard] = {}

    def at_hand(self, segments: Sequence[Segment]) -> bool:
        """Whether all shards of some segments are open already."""
        for segment in segments:
            if segment.shard not in self._open and not self.source.at_hand(self._first_shard + segment.shard):
                return False
        return True

    def open(self, segments: Sequence[Segment]) -> list["Piece"]:
        """Maps what segments lie in; may wait for storage. One thread at a time."""
        self._open = {segment.shard: self._open.get(segment.shard) or self._map(segment.shard) for segment in segments}
        return [(segment, *self._open[segment.shard]) for segment in segments]

    def fill(
        self, slot: Slot, bundle: Sequence[Sequence["Piece"]], *, epoch: int, first: int, global_rows: Sequence[int]
    ) -> list[Batch]:
        """Copies the rows of opened segments, in order, into a slot; batches are views of it. Any thread may.

        Args:
            slot: where to.
            bundle: what each step reads.
            epoch: of the steps.
            first: number of the first of them.
            global_rows: rows of each step, over all ranks.
        """
        for matrices, rows, start, stop in _copies(bundle, slot.rows):
            for dtype, matrix in matrices:
                _take(matrix, rows, slot.arrays[dtype][start:stop])
        steps = zip(slot.parts, bundle, global_rows, strict=False)
        return [self._batch(part, pieces, epoch, first + n, rows) for n, (part, pieces, rows) in enumerate(steps)]

    def _batch(self, part: "Part", pieces: Sequence["Piece"], epoch: int, step: int, global_rows: int) -> Batch:
        """The batch over a part whose matrices are filled; fills the rest."""
        rows = 0
        ends = dict.fromkeys(self._ragged_names, 0)
        for segment, shard, _ in pieces:
            start, rows = rows, rows + segment.count
            for name in ends:
                ends[name] = _take_ragged(shard, name, segment, part, start, ends[name])
            if part.row_numbers is not None:
                self._number(part.row_numbers[start:rows].numpy(), segment)
        views = {dtype: matrix if len(matrix) == rows else matrix[:rows] for dtype, matrix in part.matrices.items()}
        ragged = {name: Ragged(part.values[name][:end], part.offsets[name][: rows + 1]) for name, end in ends.items()}
        numbers = None if part.row_numbers is None else part.row_numbers[:rows]
        return Batch(self.selected, self.layout, views, ragged, numbers, rows, global_rows, epoch, step)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Starts to download shards of the split."""
        self.source.prefetch(self._first_shard + shard for shard in shards)

    def _map(self, number: int) -> "_OpenShard":
        shard = self.source.shard(self._first_shard + number)
        self._touched.add(number)
        return shard, [(dtype, shard.matrix(dtype)) for dtype in self.dtypes]

    def _number(self, out: NDArray[np.int64], segment: Segment) -> None:
        rows = segment.rows
        inside = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        np.add(inside, self._first_rows[segment.shard], out=out)


_Matrices: TypeAlias = list[tuple[str, NDArray[Any]]]
_OpenShard: TypeAlias = tuple[Shard, _Matrices]
Piece: TypeAlias = tuple[Segment, Shard, _Matrices]


def read_dtypes(selected: Schema) -> tuple[str, ...]:
    """The matrices that selected columns lie in."""
    return tuple(selected.matrices)


def _copies(
    bundle: Sequence[Sequence[Piece]], share: int
) -> Iterator[tuple[_Matrices, NDArray[np.int64] | slice, int, int]]:
    """What to copy where: (matrices, their rows, start and stop in the slot).

    Consecutive rows of a shard that come one after the other in the slot, as those of a sequential pass, are one copy.

    Args:
        bundle: what each step reads.
        share: rows from a step to the next in the slot.
    """
    held: tuple[_Matrices, NDArray[np.int64] | slice, int, int] | None = None
    for number, pieces in enumerate(bundle):
        stop = number * share
        for segment, _, matrices in pieces:
            start, stop = stop, stop + segment.count
            rows = segment.rows
            if held is not None:
                before = held[1]
                if (
                    isinstance(rows, slice)
                    and isinstance(before, slice)
                    and held[0] is matrices
                    and (before.stop, held[3]) == (rows.start, start)
                ):
                    held = matrices, slice(before.start, rows.stop), held[2], stop
                    continue
                yield held
            held = matrices, rows, start, stop
    if held is not None:
        yield held


def _take(matrix: NDArray[Any], rows: NDArray[np.int64] | slice, out: NDArray[Any]) -> None:
    """Copies rows. NumPy without Python's lock: torch wants threads of its own, which training needs, and is slower."""
    if isinstance(rows, slice):
        np.copyto(out, matrix[rows])
    else:
        # Clipping changes no row number, but spares a buffer.
        matrix.take(rows, 0, out, "clip")


def _take_ragged(shard: Shard, name: str, segment: Segment, part: Part, position: int, end: int) -> int:
    """Appends the lists of a segment to a part's values and offsets; returns where the values now end."""
    offsets, values = shard.ragged(name)
    rows = np.arange(segment.rows.start, segment.rows.stop) if isinstance(segment.rows, slice) else segment.rows
    starts = offsets[rows].astype(np.int64)
    lengths = offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    held = part.values[name][:end]
    room = part.room(name, end + total)
    if room.data_ptr() != held.data_ptr() and end:
        room[:end] = held
    index = np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
    np.take(values, index, out=room[end : end + total].numpy(), mode="clip")
    out = part.offsets[name].numpy()
    np.add(ends, end, out=out[position + 1 : position + 1 + len(ends)])
    return end + total
