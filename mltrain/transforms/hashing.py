"""XXH64 of values: the same number on every machine, version and engine.

Algorithm: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md (0.1.1).
"""

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)

Hashes = NDArray[np.uint64]


def hash_integers(values: NDArray[np.int64], seed: int = 0) -> Hashes:
    """XXH64 of each value's eight little-endian bytes, [n] -> [n]."""
    with np.errstate(over="ignore"):
        lane = _rotate(values.view(np.uint64) * _P2, 31) * _P1
        mixed = (np.uint64(seed) + _P5 + np.uint64(8)) ^ lane
        mixed = _rotate(mixed, 27) * _P1 + _P4
        mixed ^= mixed >> np.uint64(33)
        mixed *= _P2
        mixed ^= mixed >> np.uint64(29)
        mixed *= _P3
        mixed ^= mixed >> np.uint64(32)
    return mixed


def hash_strings(values: pa.Array, seed: int = 0) -> Hashes:
    """XXH64 of each string's UTF-8 bytes, [n] -> [n]. Nulls hash as the empty string."""
    encoded = values.cast(pa.binary()).dictionary_encode()
    hashed = np.fromiter(
        (xxhash.xxh64_intdigest(text, seed) for text in encoded.dictionary.to_pylist()),
        dtype=np.uint64,
        count=len(encoded.dictionary),
    )
    if not len(hashed):
        return np.full(len(values), xxhash.xxh64_intdigest(b"", seed), dtype=np.uint64)
    codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    result: Hashes = hashed[codes]
    if values.null_count:
        result[np.asarray(values.is_null())] = xxhash.xxh64_intdigest(b"", seed)
    return result


def _rotate(values: Hashes, bits: int) -> Hashes:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))
