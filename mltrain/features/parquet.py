"""A table's Parquet files, read inside tasks instead of by Spark's scan.

A file of which it is not certain that it means the same here as to Spark is not read here.
"""

import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mltrain.errors import BuildError, NotFoundError, StorageError
from mltrain.features.deleted import deleted_rows
from mltrain.features.sql import Batches
from mltrain.features.stored import Stored
from mltrain.storage import ObjectFile, Store

_SMALL_BYTES = 1 << 18
_UNREADABLE = re.compile(r"mltrain\.features\.parquet\.UnreadableError: (.*)")


class UnreadableError(BuildError):
    """Tasks cannot read a file with the certainty that they read what Spark would."""


def unreadable(error: Exception) -> str | None:
    """Why a task could not read a file, if that is why Spark failed."""
    found = _UNREADABLE.search(str(error))
    return found and found.group(1)


@dataclass(frozen=True)
class Part:
    """Row groups of a file: those that start in a range of its bytes.

    Attributes:
        path: below the table's directory.
        size: of the file, in bytes.
        partition: values of the table's partition columns.
        deleted: the deletion vector of rows that are not there, as the table's log describes it.
        among: another, if only rows that it has are wanted.
        start: first byte.
        end: the byte after the last.
    """

    path: str
    size: int
    partition: Sequence[Any]
    deleted: Mapping[str, Any] | None
    among: Mapping[str, Any] | None
    start: int
    end: int


@dataclass(frozen=True)
class Files:
    """What tasks need to read a table.

    Attributes:
        store: the table's directory.
        schema: the table's columns.
        columns: those that any task wants.
        partitioned: columns whose values are those of a file's partition.
        todays_calendar: so are dates in files that do not say which.
        rows_per_batch: at most.
        tasks: for each task the parts of files that it reads, as compressed JSON.
    """

    store: Store
    schema: pa.Schema
    columns: tuple[str, ...]
    partitioned: tuple[str, ...]
    todays_calendar: bool
    rows_per_batch: int
    tasks: tuple[bytes, ...]

    def check(self, part: Part) -> None:
        """Looks at a file, before all tasks look at theirs.

        Raises:
            UnreadableError: it cannot be read.
        """
        try:
            self._open(part, _Seen())
        except StorageError as error:
            raise UnreadableError(str(error)) from error

    def read(self, task: int, columns: Sequence[str]) -> Batches:
        """The rows of a task, in the same order each time.

        Raises:
            UnreadableError: of a file it is not certain what it means, or it is gone.
        """
        parts = (Part(*part) for part in json.loads(zlib.decompress(self.tasks[task])))
        seen = _Seen()
        return together((rows for part in parts for rows in self._read(part, columns, seen)), self.rows_per_batch)

    def _read(self, part: Part, columns: Sequence[str], seen: "_Seen") -> Batches:
        file = self._open(part, seen)
        there = [name for name in columns if name not in self.partitioned and name in seen.columns]
        chosen = self._chosen(part)
        for group, first, rows in _groups(file, part):
            if not chosen.any(first, rows):
                continue
            position = first
            for batch in self._batches(file, group, rows, there):
                if (left := chosen.of(self._rows(batch, part, columns), position)).num_rows:
                    yield left
                position += batch.num_rows
            if position != first + rows:
                raise BuildError(f"{self.store.join(part.path)}: row group {group} lacks rows")

    def _batches(self, file: pq.ParquetFile, group: int, rows: int, columns: list[str]) -> Batches:
        if columns and rows <= self.rows_per_batch:
            # Of a few rows an iterator costs more than they do.
            yield from file.read_row_group(group, columns, use_threads=False).combine_chunks().to_batches()
        else:
            yield from file.iter_batches(self.rows_per_batch, row_groups=[group], columns=columns, use_threads=False)

    def _chosen(self, part: Part) -> "_Chosen":
        deleted, among = (self._deleted(one) if one else None for one in (part.deleted, part.among))
        if among is None:
            return _Chosen(np.empty(0, np.int64) if deleted is None else deleted, wanted=False)
        return _Chosen(among if deleted is None else np.setdiff1d(among, deleted), wanted=True)

    def _deleted(self, descriptor: Mapping[str, Any]) -> NDArray[np.int64]:
        try:
            return deleted_rows(self.store, descriptor)
        except NotFoundError as error:
            raise UnreadableError(f"a deletion vector is gone: {error}") from error

    def _rows(self, batch: pa.RecordBatch, part: Part, columns: Sequence[str]) -> pa.RecordBatch:
        """A batch of a file's own columns as rows of the table."""
        arrays = []
        stored = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in columns:
            kind = self.schema.field(name).type
            if name in self.partitioned:
                value = part.partition[self.partitioned.index(name)]
                arrays.append(pa.repeat(pa.scalar(value, kind), batch.num_rows))
            elif name in stored:
                arrays.append(_as(stored[name], kind))
            else:
                arrays.append(pa.nulls(batch.num_rows, kind))
        return pa.RecordBatch.from_arrays(arrays, names=list(columns)) if arrays else batch

    def _open(self, part: Part, seen: "_Seen") -> pq.ParquetFile:
        where = self.store.join(part.path)
        small = part.size <= _SMALL_BYTES
        try:
            source: Any
            if small:
                source = pa.BufferReader(self.store.get_range(part.path, 0, part.size))
            else:
                source = pa.PythonFile(ObjectFile(self.store, part.path, part.size), mode="r")
            file = pq.ParquetFile(source, coerce_int96_timestamp_unit="us", pre_buffer=not small)
        except (pa.ArrowException, OSError, NotFoundError) as error:
            raise UnreadableError(f"{where}: {error}") from error
        if (schema := _described(file)) == seen.schema:
            return file
        stored = Stored.of(file)
        for name in self.columns:
            if name in self.partitioned:
                continue
            if problem := stored.problem(self.schema.field(name), self.todays_calendar):
                raise UnreadableError(f"{where}: column {name!r} {problem}")
        seen.schema, seen.columns = schema, stored.fields.keys()
        return file


@dataclass
class _Seen:
    """The last file that could be read: others of a table are mostly like it, and to look through columns takes time.

    Attributes:
        schema: from :func:`_described`.
        columns: their names.
    """

    schema: object = None
    columns: Collection[str] = ()


@dataclass(frozen=True)
class _Chosen:
    """Rows of a file: those at some ascending positions, or all others."""

    positions: NDArray[np.int64]
    wanted: bool

    def any(self, first: int, rows: int) -> bool:
        """Whether some of the rows from ``first`` on may be among them."""
        return not self.wanted or bool(np.diff(np.searchsorted(self.positions, (first, first + rows)))[0])

    def of(self, batch: pa.RecordBatch, position: int) -> pa.RecordBatch:
        """Those of a batch that starts at a position of its file."""
        low, high = np.searchsorted(self.positions, (position, position + batch.num_rows))
        if low == high and not self.wanted:
            return batch
        left = np.full(batch.num_rows, not self.wanted)
        left[self.positions[low:high] - position] = self.wanted
        return batch.filter(pa.array(left))


def together(batches: Batches, rows: int) -> Batches:
    """The same rows in batches of about so many: those of small files cost what their number costs."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        held.append(batch)
        missing -= batch.num_rows
        if missing <= 0:
            yield from _one(held)
            held, missing = [], rows
    if held:
        yield from _one(held)


def _one(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) == 1:
        return batches
    joined: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def _described(file: pq.ParquetFile) -> object:
    """All that a file says of its columns, as something that can be compared."""
    # Two schemas of Parquet count as equal to pyarrow if their leaves are, whatever these are parts of.
    return repr(file.schema).partition("\n")[2], file.metadata.metadata


def _groups(file: pq.ParquetFile, part: Part) -> Iterator[tuple[int, int, int]]:
    """The part's row groups: number, position of the first row in the file, rows."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        described = file.metadata.row_group(group)
        if part.start <= _offset(described) < part.end:
            yield group, first, described.num_rows
        first += described.num_rows


def _offset(group: Any) -> int:
    """Where a row group starts."""
    if not group.num_columns:
        return 0
    column = group.column(0)
    starts = [column.data_page_offset]
    if column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    return int(min(starts))


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(kind) and array.type == pa.timestamp("us"):
        return array.view(kind)
    return pc.cast(array, kind)
