"""Rows of one place as one value: what Spark's shuffle costs is by the value, not by the byte.

A task sorts the rows that it has in hand by place, and those of one place travel together, as an Arrow stream.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mltrain.features.sql import Batches

PER_BATCH = 1 << 12
"""So many parcels are 1 GiB at most, unless a row is larger than a parcel: Arrow's arrays end at 2 GiB."""

_ROWS = "__mltrain_rows"
_HELD_BYTES, _PARCEL_BYTES = 1 << 26, 1 << 18


def schema(place: str) -> str:
    """What Spark calls a frame of parcels."""
    return f"{place} int, {_ROWS} binary"


def wrap(batches: Batches, place: str) -> Batches:
    """Rows as parcels.

    Args:
        batches: of one schema.
        place: the column that says which rows belong together.
    """
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.nbytes for one in held) >= _HELD_BYTES:
            yield _sorted(held, place)
            held.clear()
    if held:
        yield _sorted(held, place)


def note(place: str, number: int, content: str) -> pa.RecordBatch:
    """A word to the driver that travels as a parcel does, and is none."""
    return pa.record_batch({place: pa.array([number], pa.int32()), _ROWS: pa.array([content.encode()])})


def notes(batch: pa.RecordBatch | pa.Table) -> list[str]:
    """What a batch of :func:`note` says."""
    return [content.decode() for content in batch.column(_ROWS).to_pylist()]


def unwrap(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows again, of a batch of parcels; a batch of rows is itself."""
    if _ROWS not in batch.schema.names:
        yield batch
        return
    for parcel in batch.column(_ROWS):
        yield from pa.ipc.open_stream(parcel.as_buffer())


def _sorted(batches: list[pa.RecordBatch], place: str) -> pa.RecordBatch:
    (rows,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    places = rows.column(place).to_numpy()
    # Numbers of 16 bits are sorted by counting.
    order = np.argsort(places.astype(np.uint16) if places.max() < 1 << 16 else places, kind="stable")
    rows, places = rows.take(pa.array(order)), places[order]
    starts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
    sink, ends, found = pa.BufferOutputStream(), [0], []
    for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
        for part in _parts(rows.slice(start, end - start)):
            with pa.ipc.new_stream(sink, part.schema) as writer:
                writer.write_batch(part)
            ends.append(sink.tell())
            found.append(int(places[start]))
    buffers = [None, pa.py_buffer(np.array(ends, np.int32)), sink.getvalue()]
    parcels = pa.Array.from_buffers(pa.binary(), len(found), buffers)
    return pa.record_batch({place: pa.array(found, pa.int32()), _ROWS: parcels})


def _parts(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows, in parts that are no longer than a parcel."""
    if rows.nbytes <= _PARCEL_BYTES or rows.num_rows == 1:
        yield rows
        return
    half = rows.num_rows // 2
    yield from _parts(rows.slice(0, half))
    yield from _parts(rows.slice(half))
