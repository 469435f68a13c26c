"""Rows of one place as one value: what Spark's shuffle costs is by the value, not by the byte.

A task sorts the rows that it has in hand by place, and those of one place travel together. Columns of one width lie
side by side, row after row, so a row is sorted by one copy and all of a task's parcels are one run of bytes; the other
columns are an Arrow stream beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.features.sql import Batches

PER_BATCH = 1 << 12
"""So many parcels are 1 GiB at most, unless a row is larger than a parcel: Arrow's arrays end at 2 GiB."""

_ROWS, _REST = "__mltrain_rows", "__mltrain_rest"
_HELD_BYTES, _PARCEL_BYTES = 1 << 26, 1 << 18
_ANY_WIDTH, _ALL_NULL = 0, -1

Bytes = NDArray[np.uint8]


def schema(place: str) -> str:
    """What Spark calls a frame of parcels."""
    return f"{place} int, {_REST} binary, {_ROWS} binary"


def wrap(batches: Batches, place: str) -> Batches:
    """Rows as parcels.

    Args:
        batches: of one schema.
        place: the column that says which rows belong together: an int32, never null.
    """
    held: _Held | None = None
    layout: _Layout | None = None
    for batch in (batch for batch in batches if batch.num_rows):
        layout = _Layout.of(batch, layout)
        for start in range(0, batch.num_rows, layout.room):
            part = batch.slice(start, layout.room)
            if held is not None and not held.takes(layout, part):
                yield held.parcels()
                held = None
            held = held or _Held(layout, place)
            held.add(part)
    if held is not None:
        yield held.parcels()


def note(place: str, number: int, content: str) -> pa.RecordBatch:
    """A word to the driver that travels as a parcel does, and is none."""
    return pa.record_batch({place: pa.array([number], pa.int32()), _REST: [b""], _ROWS: [content.encode()]})


def notes(batch: pa.RecordBatch | pa.Table) -> list[str]:
    """What a batch of :func:`note` says."""
    return [content.decode() for content in batch.column(_ROWS).to_pylist()]


def unwrap(batch: pa.RecordBatch) -> Batches:
    """The rows again, of a batch of parcels; a batch of rows is itself."""
    if _ROWS not in batch.schema.names:
        yield batch
        return
    rests, rows = batch.column(_REST), batch.column(_ROWS)
    ends = _offsets(rows)
    start = 0
    while start < len(rests):
        end = start + 1
        # Parcels of a task that have nothing but columns of one width all have the same rest: they are opened as one.
        while end < len(rests) and rests[end] == rests[start]:
            end += 1
        with pa.ipc.open_stream(rests[start].as_buffer()) as stream:
            layout, others = _Layout.described(stream.schema), stream.read_all()
        if layout.others:
            end = start + 1
        inside = np.frombuffer(rows.buffers()[2] or b"", np.uint8)[ends[start] : ends[end]]
        yield layout.restored(inside.reshape(-1, layout.width), others)
        start = end


@dataclass(frozen=True)
class _Layout:
    """How the columns of a batch lie in a parcel.

    Attributes:
        schema: the columns.
        widths: the bytes of a value, if all values have so many and none is null; else one of the above.
    """

    schema: pa.Schema
    widths: tuple[int, ...]

    @classmethod
    def of(cls, batch: pa.RecordBatch, before: "_Layout | None") -> "_Layout":
        """The layout of a batch, or one that suits those before it, too."""
        widths = [_width(column) for column in batch.columns]
        known = before.widths if before else widths
        both = zip(widths, known, strict=True)
        return cls(
            batch.schema.remove_metadata(),
            tuple(mine if mine == theirs else _ANY_WIDTH for mine, theirs in both),
        )

    @classmethod
    def described(cls, rest: pa.Schema) -> "_Layout":
        """The inverse of :meth:`rest`."""
        schema = pa.ipc.read_schema(pa.py_buffer(rest.metadata[b"schema"]))
        return cls(schema, tuple(json.loads(rest.metadata[b"widths"])))

    @property
    def width(self) -> int:
        """Bytes of a row, but for columns of any width: never 0, as the place is among them."""
        return sum(width for width in self.widths if width > 0)

    @property
    def room(self) -> int:
        """Rows that are held at most."""
        return max(1, _HELD_BYTES // max(64, self.width))

    @property
    def others(self) -> list[str]:
        """Columns of any width."""
        return [name for name, width in zip(self.schema.names, self.widths, strict=True) if width == _ANY_WIDTH]

    def fixed(self) -> Iterator[tuple[str, slice]]:
        """Columns of one width, and where they lie in a row."""
        start = 0
        for name, width in zip(self.schema.names, self.widths, strict=True):
            if width > 0:
                yield name, slice(start, start + width)
                start += width

    def rest(self, others: pa.RecordBatch) -> bytes:
        """The columns of any width, and the layout, as an Arrow stream."""
        about = {"schema": self.schema.serialize().to_pybytes(), "widths": json.dumps(self.widths)}
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, others.schema.with_metadata(about)) as writer:
            if self.others:
                writer.write_batch(others)
        return bytes(sink.getvalue())

    def restored(self, rows: Bytes, others: pa.Table) -> pa.RecordBatch:
        """The batch again."""
        arrays: list[pa.Array] = []
        where = dict(self.fixed())
        for one, width in zip(self.schema, self.widths, strict=True):
            if width > 0:
                arrays.append(_array(rows[:, where[one.name]], one.type))
            elif width == _ANY_WIDTH:
                arrays.append(others.column(one.name).combine_chunks())
            else:
                arrays.append(pa.nulls(len(rows), one.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


@dataclass
class _Held:
    """Rows of one layout on their way into parcels."""

    layout: _Layout
    place: str
    _rows: Bytes = field(init=False)
    _places: list[NDArray[np.int32]] = field(default_factory=list)
    _others: list[pa.RecordBatch] = field(default_factory=list)
    _count: int = 0
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._rows = np.empty((self.layout.room, self.layout.width), np.uint8)

    def takes(self, layout: _Layout, batch: pa.RecordBatch) -> bool:
        """Whether there is room for a batch."""
        return (
            self.layout == layout
            and self._count + batch.num_rows <= self.layout.room
            and self._bytes + batch.nbytes <= _HELD_BYTES
        )

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes a batch."""
        end = self._count + batch.num_rows
        for name, where in self.layout.fixed():
            self._rows[self._count : end, where] = _values(batch.column(name), where.stop - where.start)
        self._places.append(batch.column(self.place).to_numpy())
        self._others.append(batch.select(self.layout.others))
        self._bytes += batch.nbytes
        self._count = end

    def parcels(self) -> pa.RecordBatch:
        """Everything that was taken."""
        places = np.concatenate(self._places)
        # Numbers of 16 bits are sorted by counting.
        order = np.argsort(places.astype(np.uint16) if places.max() < 1 << 16 else places, kind="stable")
        rows, places = self._rows[: self._count].take(order, axis=0), places[order]
        others = pa.Table.from_batches(self._others).combine_chunks().to_batches()
        sorted_others = others[0].take(pa.array(order)) if self.layout.others else self._others[0].slice(0, 0)
        starts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
        groups = zip(starts, [*starts[1:], len(places)], strict=True)
        cuts = [0, *(cut for start, end in groups for cut in self._cuts(sorted_others, start, end))]
        parts = pairwise(cuts)
        alone = None if self.layout.others else self.layout.rest(sorted_others)
        rests = [alone or self.layout.rest(sorted_others.slice(start, end - start)) for start, end in parts]
        offsets = np.array(cuts, np.int32) * np.int32(self.layout.width)
        data = [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
        return pa.record_batch(
            {
                self.place: pa.array(places[cuts[:-1]]),
                _REST: pa.array(rests, pa.binary()),
                _ROWS: pa.Array.from_buffers(pa.binary(), len(rests), data),
            }
        )

    def _cuts(self, others: pa.RecordBatch, start: int, end: int) -> Iterator[int]:
        """Where parcels of rows of one place end."""
        size = (end - start) * self.layout.width
        size += others.slice(start, end - start).nbytes if self.layout.others else 0
        parts = min(end - start, -(-size // _PARCEL_BYTES))
        if parts <= 1:
            yield end
            return
        ends = [start + (end - start) * part // parts for part in range(parts + 1)]
        for low, high in pairwise(ends):
            # Where rows are of one length these are small enough.
            yield from self._cuts(others, low, high) if self.layout.others else [high]


def _width(column: pa.Array) -> int:
    kind = column.type
    if len(column) and column.null_count == len(column):
        return _ALL_NULL
    if column.null_count or pa.types.is_boolean(kind):
        return _ANY_WIDTH
    if pa.types.is_primitive(kind):
        return int(kind.bit_width) // 8
    if pa.types.is_binary(kind) and len(column):
        lengths = np.diff(_offsets(column))
        return int(lengths[0]) if (lengths == lengths[0]).all() else _ANY_WIDTH
    return _ANY_WIDTH


def _values(column: pa.Array, width: int) -> Bytes:
    """The values of a column of one width, [rows, width]."""
    start = int(_offsets(column)[0]) if pa.types.is_binary(column.type) else column.offset * width
    data = np.frombuffer(column.buffers()[-1], np.uint8, len(column) * width, start)
    return data.reshape(len(column), width)


def _array(values: Bytes, kind: pa.DataType) -> pa.Array:
    rows, width = values.shape
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    if pa.types.is_binary(kind):
        buffers.insert(1, pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * np.int32(width)))
    return pa.Array.from_buffers(kind, rows, buffers)


def _offsets(column: pa.BinaryArray) -> NDArray[np.int32]:
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
