"""Shards: Arrow IPC files of one record batch, packed for gathering and mapped without a copy.

Columns of one dtype lie side by side in one row-major matrix (``matrix/<dtype>``, a FixedSizeList), features first.
Ragged columns are Arrow lists, that is offsets and values. Carried columns are plain Arrow columns, and so is the
fingerprint of each row, where the schema has them. Two numbers name
a shard: its *blob*, the xxh3-128 of the file's bytes, is its name in storage and what a reader checks; its *digest*,
a SHA-256 of the logical content, is what the dataset's digest covers, and does not change with Arrow's padding or
metadata.
"""

import dataclasses
import hashlib
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mltrain.data import ipc, keys
from mltrain.data.schema import FINGERPRINT, Column, Schema, arrow_type
from mltrain.data.statistics import ShardStatistics, describe
from mltrain.errors import DamagedError

Columns: TypeAlias = pa.Table | pa.RecordBatch | Mapping[str, Any]

_VERIFY_CHUNK_BYTES = 8 << 20
FINGERPRINT_FIELD = pa.field("fingerprint", pa.int64(), nullable=False)
_FINGERPRINTS = Column(FINGERPRINT, "keep", "carried", "int64")


@dataclasses.dataclass(frozen=True)
class EncodedShard:
    """A shard ready for storage.

    Attributes:
        buffer: the file's bytes.
        blob: their xxh3-128 in hex: the name ``shards/blobs/<blob>.arrow`` and the checksum.
        digest: SHA-256 of the logical content, in hex.
        rows: number of rows.
        multiset: order-free hash of the keys of its rows (see ``mltrain.data.keys``).
        statistics: what ``dataset show`` prints.
    """

    buffer: pa.Buffer
    blob: str
    digest: str
    rows: int
    multiset: int
    statistics: ShardStatistics

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return int(self.buffer.size)


def blob_path(blob: str) -> str:
    """Where a blob lies below the root."""
    return f"shards/blobs/{blob}.arrow"


def checksum(data: Any) -> str:
    """The xxh3-128 of the bytes of a buffer, in hex."""
    return xxhash.xxh3_128_hexdigest(data)


def write_shard(columns: Columns, schema: Schema, *, identity: pa.Table | pa.RecordBatch | None = None) -> EncodedShard:
    """Encodes rows, in the order given, as a shard. Equal input gives equal bytes.

    Args:
        columns: name to values for every column of ``schema``: Arrow arrays or numpy arrays; ``[rows, width]`` or
            FixedSizeList for wide columns, Arrow lists for ragged ones. Only carried columns may hold nulls.
            :data:`~mltrain.data.schema.FINGERPRINT` too, where the schema has fingerprints.
        schema: what the columns are.
        identity: what the multiset hash counts; by default the key columns. Required when the schema has no key.

    Raises:
        ValueError: a column is missing, has nulls, or another shape or type than the schema says.
    """
    matrices = pack_matrices(columns, schema)
    return write_packed(matrices, columns, schema, identity=identity)


def pack_matrices(columns: Columns, schema: Schema) -> dict[str, NDArray[Any]]:
    """The columns that shards keep in matrices, one matrix a dtype, ``[rows, width]``, in the order of the schema.

    Args:
        columns: as for :func:`write_shard`; ragged and carried columns are not looked at.
        schema: what the columns are.

    Raises:
        ValueError: as for :func:`write_shard`.
    """
    arrays = {
        column.name: _array(columns, column) for column in schema.columns if not (column.ragged or column.carried)
    }
    rows = _rows(arrays)
    return {dtype: _pack_matrix(arrays, schema, dtype, rows) for dtype in schema.matrices}


def write_packed(
    matrices: Mapping[str, NDArray[Any]],
    others: Columns,
    schema: Schema,
    *,
    identity: pa.Table | pa.RecordBatch | None = None,
) -> EncodedShard:
    """Encodes rows that are packed already: the bytes are those of :func:`write_shard` for the same rows.

    Args:
        matrices: from :func:`pack_matrices`; rows in the shard's order.
        others: ragged and carried columns by name, and the fingerprints where the schema has them.
        schema: what the columns are.
        identity: what the multiset hash counts; by default the key columns.

    Raises:
        ValueError: a column is missing, has nulls, or another length or type than the schema says.
    """
    arrays = {column.name: _array(others, column) for column in (*schema.ragged, *schema.carried)}
    if schema.fingerprints:
        arrays[FINGERPRINT] = _array(others, _FINGERPRINTS)
    rows = _rows({**{f"matrix {dtype}": matrix for dtype, matrix in matrices.items()}, **arrays})
    if identity is None:
        if not schema.key:
            raise ValueError("a dataset without a key needs identity= for its multiset hash")
        identity = pa.table({name: arrays[name] for name in schema.key})
    batch = _record_batch(arrays, matrices, schema)
    buffer = ipc.encode(batch)
    return EncodedShard(
        buffer=buffer,
        blob=checksum(buffer),
        digest=content_digest(batch, schema),
        rows=rows,
        multiset=keys.multiset(identity),
        statistics=describe(schema, matrices, {c.name: arrays[c.name] for c in schema.ragged}),
    )


class Shard:
    """An open shard: views of a mapped file, valid as long as they are referenced.

    Attributes:
        rows: number of rows.
        batch: the record batch as stored.
    """

    def __init__(self, mapped: mmap.mmap, schema: Schema) -> None:
        buffer = pa.py_buffer(mapped)
        self.batch = ipc.decode(buffer)
        self.rows: int = self.batch.num_rows
        self.schema = schema
        self._mapped = mapped
        self._address: int = buffer.address

    def matrix(self, dtype: str) -> NDArray[Any]:
        """The packed columns of one dtype, ``[rows, width]``, without a copy."""
        width = self.schema.matrices[dtype].width
        if self.rows == 0:
            return np.empty((0, width), np.dtype(dtype))
        # Through the mapping, because Arrow marks its buffers read-only and torch warns about such arrays.
        offset = self.batch.column(f"matrix/{dtype}").values.buffers()[1].address - self._address
        flat = np.frombuffer(self._mapped, np.dtype(dtype), self.rows * width, offset)
        return flat.reshape(self.rows, width)

    def ragged(self, name: str) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Offsets ``[rows + 1]`` and values of a ragged column, without a copy."""
        array = self.batch.column(f"ragged/{name}")
        dtype = np.dtype(self.schema.column(name).dtype)
        if len(array.values) == 0:
            return np.zeros(self.rows + 1, np.int32), np.empty(0, dtype)
        offsets = np.frombuffer(array.buffers()[1], np.int32, self.rows + 1)
        return offsets, np.frombuffer(array.values.buffers()[1], dtype, len(array.values))

    def carried(self, name: str) -> pa.Array:
        """A key or kept column."""
        return self.batch.column(f"carried/{name}")

    def fingerprints(self) -> pa.Array:
        """The fingerprint of each row, int64; only where the schema has them."""
        return self.batch.column(FINGERPRINT_FIELD.name)

    def table(self, names: tuple[str, ...]) -> pa.Table:
        """Columns by name as plain Arrow columns (a copy of what matrices pack)."""
        return pa.table({name: self._plain(self.schema.column(name)) for name in names})

    def _plain(self, column: Column) -> pa.Array:
        if column.carried:
            return self.carried(column.name)
        if column.ragged:
            return self.batch.column(f"ragged/{column.name}")
        where = self.schema.matrices[column.dtype].slices[column.name]
        flat = pa.array(np.ascontiguousarray(self.matrix(column.dtype)[:, where]).reshape(-1))
        return flat if column.width == 1 else pa.FixedSizeListArray.from_arrays(flat, column.width)


def open_shard(path: Path, schema: Schema, *, blob: str, size_bytes: int, verify: bool = True) -> Shard:
    """Maps a shard and checks it against its name.

    Args:
        path: the local file.
        schema: the dataset's schema.
        blob: expected xxh3-128 of the file.
        size_bytes: expected length of the file.
        verify: hash the whole file; without it only length and format are checked.

    Raises:
        DamagedError: length, checksum or format is not what the manifest says.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size_bytes or found == 0:
            raise DamagedError(f"shard {path} has {found} bytes; the manifest says {size_bytes}")
        # Private pages: tensors over them count as writable, and a stray write never reaches the file.
        mapped = mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_COPY)
    if verify:
        actual = file_checksum(mapped)
        if actual != blob:
            raise DamagedError(f"shard {path} is damaged: its bytes hash to {actual}; the manifest says {blob}")
    try:
        shard = Shard(mapped, schema)
    except pa.ArrowException as error:
        raise DamagedError(f"shard {path} is not an Arrow file of this format: {error}") from error
    expected = arrow_schema(schema)
    if not shard.batch.schema.equals(expected):
        raise DamagedError(
            f"shard {path} holds {shard.batch.schema.names}; the dataset's schema wants {expected.names}"
        )
    return shard


def file_checksum(mapped: mmap.mmap) -> str:
    """The xxh3-128 of a mapped file, a piece at a time so that other threads run in between."""
    hasher = xxhash.xxh3_128()
    with memoryview(mapped) as view:
        for start in range(0, len(view), _VERIFY_CHUNK_BYTES):
            hasher.update(view[start : start + _VERIFY_CHUNK_BYTES])
    return hasher.hexdigest()


def arrow_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a shard file."""
    fields = []
    for dtype, matrix in schema.matrices.items():
        packed = pa.list_(pa.field("item", _stored(dtype), nullable=False), matrix.width)
        fields.append(pa.field(f"matrix/{dtype}", packed, nullable=False))
    for column in schema.ragged:
        items = pa.list_(pa.field("item", _stored(column.dtype), nullable=False))
        fields.append(pa.field(f"ragged/{column.name}", items, nullable=False))
    fields.extend(pa.field(f"carried/{column.name}", arrow_type(column.dtype)) for column in schema.carried)
    return pa.schema([*fields, FINGERPRINT_FIELD] if schema.fingerprints else fields)


def content_digest(batch: pa.RecordBatch, schema: Schema) -> str:
    """SHA-256 of what a shard holds: little-endian values with nulls zeroed, never Arrow's padding or metadata."""
    hasher = hashlib.sha256(f"mltrain-shard-1 {batch.num_rows}".encode())
    for dtype, matrix in schema.matrices.items():
        hasher.update(f"\nmatrix {dtype} {matrix.width} {list(matrix.slices)}\n".encode())
        _digest_array(hasher, batch.column(f"matrix/{dtype}"))
    for column in schema.ragged:
        hasher.update(f"\nragged {column.dtype} {column.name}\n".encode())
        _digest_array(hasher, batch.column(f"ragged/{column.name}"))
    for column in schema.carried:
        hasher.update(f"\ncarried {column.dtype} {column.name}\n".encode())
        _digest_array(hasher, batch.column(f"carried/{column.name}"))
    return hasher.hexdigest()


def _digest_array(hasher: Any, array: pa.Array) -> None:
    """Feeds validity, then offsets and values. Nulls count as zeros and empty strings."""
    kind = array.type
    if array.null_count:
        hasher.update(np.ascontiguousarray(array.is_valid().to_numpy(zero_copy_only=False)))
        array = array.fill_null(pa.scalar(_zero(kind), kind))
    hasher.update(b"|")
    if pa.types.is_fixed_size_list(kind):
        _digest_array(hasher, array.flatten())
    elif pa.types.is_list(kind):
        hasher.update(np.ascontiguousarray(array.value_lengths().to_numpy(zero_copy_only=False), np.int64))
        _digest_array(hasher, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        hasher.update(np.diff(offsets).astype(np.int64))
        data = array.buffers()[2]
        hasher.update(b"" if data is None else memoryview(data)[int(offsets[0]) : int(offsets[-1])])
    elif pa.types.is_boolean(kind):
        hasher.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))
    elif len(array):
        width = kind.bit_width // 8
        start = array.offset * width
        hasher.update(memoryview(array.buffers()[1])[start : start + len(array) * width])


def _zero(kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return ""
    if pa.types.is_binary(kind):
        return b""
    if pa.types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    if pa.types.is_list(kind):
        return []
    if pa.types.is_temporal(kind):
        return pa.scalar(0, pa.int64() if kind.bit_width == 64 else pa.int32()).cast(kind).as_py()
    return False if pa.types.is_boolean(kind) else 0


def _stored(dtype: str) -> pa.DataType:
    """The Arrow type of matrix elements; bool takes a byte, as in torch and numpy."""
    return pa.uint8() if dtype == "bool" else pa.type_for_alias(dtype)


def _array(columns: Columns, column: Column) -> pa.Array:
    """One column as a contiguous Arrow array of the type that the schema says."""
    names = columns.keys() if isinstance(columns, Mapping) else columns.schema.names
    if column.name not in names:
        raise ValueError(f"column {column.name!r} is missing; there are {sorted(names)}")
    value = columns[column.name] if isinstance(columns, Mapping) else columns.column(column.name)
    if isinstance(value, np.ndarray) and value.ndim == 2:
        value = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value).reshape(-1)), value.shape[1])
    array = value if isinstance(value, pa.Array | pa.ChunkedArray) else pa.array(value)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = array.cast(_column_type(column))
    if not column.carried and (array.null_count or _elements(array).null_count):
        raise ValueError(f"column {column.name!r} holds nulls; only keys and kept columns may")
    return array


def _rows(columns: Mapping[str, Any]) -> int:
    """The number of rows that all columns have."""
    rows = len(next(iter(columns.values()), ()))
    uneven = {name: len(column) for name, column in columns.items() if len(column) != rows}
    if uneven:
        raise ValueError(f"columns of a shard differ in length: {rows} rows, but {uneven}")
    return rows


def _elements(array: pa.Array) -> pa.Array:
    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    return array.flatten() if nested else array


def _column_type(column: Column) -> pa.DataType:
    if column.carried:
        return arrow_type(column.dtype)
    element = pa.bool_() if column.dtype == "bool" else _stored(column.dtype)
    if column.ragged:
        return pa.list_(_stored(column.dtype))
    return element if column.width == 1 else pa.list_(element, column.width)


def _pack_matrix(arrays: Mapping[str, pa.Array], schema: Schema, dtype: str, rows: int) -> NDArray[Any]:
    matrix = schema.matrices[dtype]
    packed = np.empty((rows, matrix.width), np.dtype(dtype))
    for name, where in matrix.slices.items():
        values = _elements(arrays[name]).to_numpy(zero_copy_only=False)
        packed[:, where] = values.reshape(rows, where.stop - where.start)
    return packed


def _record_batch(
    arrays: Mapping[str, pa.Array], matrices: Mapping[str, NDArray[Any]], schema: Schema
) -> pa.RecordBatch:
    stored: list[pa.Array] = []
    target = arrow_schema(schema)
    for field in target:
        group, _, name = field.name.partition("/")
        if field.name == FINGERPRINT_FIELD.name:
            stored.append(arrays[FINGERPRINT])
        elif group == "matrix":
            flat = matrices[name].reshape(-1)
            values = pa.array(flat.view(np.uint8) if name == "bool" else flat)
            stored.append(pa.FixedSizeListArray.from_arrays(values, type=field.type))
        elif group == "ragged":
            stored.append(_rebased_list(arrays[name], field.type))
        else:
            stored.append(arrays[name])
    return pa.RecordBatch.from_arrays(stored, schema=target)


def _rebased_list(array: pa.ListArray, type_: pa.DataType) -> pa.ListArray:
    """The same lists with offsets that start at 0 and values that nothing else shares."""
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{offsets[-1]} ids in one shard; lower dataset.rows_per_shard")
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), array.flatten(), type=type_)
