"""Which rows of a Parquet file a Delta table has deleted: its deletion vectors.

Format: https://github.com/delta-io/delta/blob/master/PROTOCOL.md ("Deletion Vector Format"), over 32-bit bitmaps of
https://github.com/RoaringBitmap/RoaringFormatSpec.
"""

import base64
import io
import uuid
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import BuildError
from mltrain.storage import Store

Rows = NDArray[np.int64]

_MAGIC = 1681511377
_WITH_RUNS, _WITHOUT_RUNS = 12347, 12346
_OFFSETS_FROM = 4
_LARGEST_ARRAY, _BITMAP_BYTES = 4096, 8192
_UUID_CHARACTERS = 20
# ZeroMQ's alphabet of base 85 (https://rfc.zeromq.org/spec/32/), and Python's.
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"


def deleted_rows(store: Store, descriptor: Mapping[str, Any]) -> Rows:
    """The positions in its file of the rows that a deletion vector deletes, ascending.

    Args:
        store: the table's directory.
        descriptor: from the table's log; the vector is in it, or in a file below the table's directory.

    Raises:
        BuildError: it is damaged.
    """
    name, size = descriptor["pathOrInlineDv"], descriptor["sizeInBytes"]
    if descriptor["storageType"] == "i":
        data, where = _z85(name)[:size], "in the log"
    else:
        where = _path(name)
        data = _stored(store, where, descriptor.get("offset") or 0, size)
    found = parse(data)
    if len(found) != descriptor["cardinality"]:
        raise BuildError(
            f"deletion vector {where} of {store.join('')}: it has {len(found)} rows, the log says "
            f"{descriptor['cardinality']}"
        )
    return found


def parse(data: bytes) -> Rows:
    """The numbers of a 64-bit bitmap, ascending."""
    if int.from_bytes(data[:4], "little") != _MAGIC:
        raise BuildError("a deletion vector has a format that is not known")
    source, parts = io.BytesIO(data), [np.empty(0, np.int64)]
    source.seek(4)
    for _ in range(_integer(source, 8)):
        high = _integer(source, 4)
        parts += [values.astype(np.int64) + ((high << 32) + (low << 16)) for low, values in _containers(source)]
    return np.concatenate(parts)


def _containers(source: io.BytesIO) -> Iterator[tuple[int, NDArray[Any]]]:
    """The containers of a 32-bit bitmap: the upper half that their values share, and the lower halves."""
    cookie = _integer(source, 4)
    if cookie & 0xFFFF == _WITH_RUNS:
        number = (cookie >> 16) + 1
        runs = _bits(source, -(-number // 8))
    elif cookie == _WITHOUT_RUNS:
        number = _integer(source, 4)
        runs = np.zeros(number, np.uint8)
    else:
        raise BuildError("a deletion vector has a format that is not known")
    header = _pairs(source, number)
    if cookie == _WITHOUT_RUNS or number >= _OFFSETS_FROM:
        source.seek(4 * number, io.SEEK_CUR)
    for run, (high, last) in zip(runs.tolist(), header, strict=False):
        if run:
            spans = _pairs(source, _integer(source, 2))
            yield high, np.concatenate([np.arange(start, start + more + 1) for start, more in spans])
        elif last < _LARGEST_ARRAY:
            yield high, np.frombuffer(source.read(2 * (last + 1)), "<u2")
        else:
            yield high, np.flatnonzero(_bits(source, _BITMAP_BYTES))


def _integer(source: io.BytesIO, size: int) -> int:
    return int.from_bytes(source.read(size), "little")


def _pairs(source: io.BytesIO, number: int) -> list[list[int]]:
    pairs: list[list[int]] = np.frombuffer(source.read(4 * number), "<u2").reshape(number, 2).tolist()
    return pairs


def _bits(source: io.BytesIO, size: int) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(source.read(size), np.uint8), bitorder="little")


def _stored(store: Store, path: str, offset: int, size: int) -> bytes:
    block = store.get_range(path, offset, size + 8)
    data, checksum = block[4:-4], int.from_bytes(block[-4:], "big")
    if int.from_bytes(block[:4], "big") != size or len(data) != size or zlib.crc32(data) != checksum:
        raise BuildError(f"deletion vector {store.join(path)} is damaged")
    return data


def _path(name: str) -> str:
    prefix, encoded = name[:-_UUID_CHARACTERS], name[-_UUID_CHARACTERS:]
    file = f"deletion_vector_{uuid.UUID(bytes=_z85(encoded))}.bin"
    return f"{prefix}/{file}" if prefix else file


def _z85(text: str) -> bytes:
    return base64.b85decode(text.translate(str.maketrans(_Z85, _B85)))
