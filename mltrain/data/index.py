"""The shards of a dataset as columns: no Python object a shard."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.data import ipc
from mltrain.errors import DamagedError


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """All shards in canonical order (split, increment, bucket), a column a field.

    Attributes:
        split: position of the shard's split among the manifest's splits, int16.
        increment, bucket: int32.
        rows, size_bytes: int64.
        blob: ``[n, 16]`` bytes.
        digest: ``[n, 32]`` bytes.
        multiset: ``[n, 16]`` bytes, big-endian.
    """

    split: NDArray[np.int16]
    increment: NDArray[np.int32]
    bucket: NDArray[np.int32]
    rows: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    blob: NDArray[np.uint8]
    digest: NDArray[np.uint8]
    multiset: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rows)

    def blob_name(self, shard: int) -> str:
        """The blob of a shard, in hex."""
        return str(self.blob[shard].tobytes().hex())

    def to_buffer(self) -> pa.Buffer:
        """The index as an Arrow file."""
        arrays = [_column(getattr(self, field.name), field.type) for field in _INDEX_SCHEMA]
        return ipc.encode(pa.RecordBatch.from_arrays(arrays, schema=_INDEX_SCHEMA))

    @classmethod
    def from_buffer(cls, buffer: pa.Buffer) -> "ShardIndex":
        """The inverse of :meth:`to_buffer`, without a copy."""
        batch = ipc.decode(buffer)
        if not batch.schema.equals(_INDEX_SCHEMA):
            raise DamagedError(f"a shard index has the columns {batch.schema.names}, not {_INDEX_SCHEMA.names}")
        return cls(**{field.name: _numpy(batch.column(field.name)) for field in _INDEX_SCHEMA})


_INDEX_SCHEMA = pa.schema(
    [
        pa.field("split", pa.int16(), nullable=False),
        pa.field("increment", pa.int32(), nullable=False),
        pa.field("bucket", pa.int32(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("blob", pa.binary(16), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("multiset", pa.binary(16), nullable=False),
    ]
)


def _column(values: NDArray[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_binary(type_):
        return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    return pa.array(values, type_)


def _numpy(array: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width).reshape(len(array), width)
    # Not to_numpy(): it imports pandas, which takes longer than all the rest of opening a dataset.
    return np.frombuffer(array.buffers()[1] or b"", array.type.to_pandas_dtype(), len(array))
