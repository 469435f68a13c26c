"""Vocabularies: which id a value has. Id 0 is reserved for values that are missing or were not seen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from mltrain.errors import DamagedError, TableError
from mltrain.transforms.numbers import integers

INLINE_LIMIT = 4096
INLINE_BYTES = 1 << 20
"""A vocabulary with more entries, or longer ones, is stored as a content-addressed blob."""

_TABLE_SIZE = 1 << 18

Ids = NDArray[np.int32]


def is_vocabulary_type(kind: pa.DataType) -> bool:
    """Whether :func:`terms` accepts the type."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
    )


def terms(name: str, column: pa.Array) -> pa.Array:
    """A column as the terms a vocabulary holds: strings stay strings, everything else becomes int64. Nulls stay null.

    Raises:
        TableError: the type is neither.
    """
    kind = column.type
    if not is_vocabulary_type(kind):
        raise TableError(
            f"column {name!r} has type {kind}: a vocabulary holds strings, integers, bools, dates or timestamps"
        )
    if pa.types.is_string(kind):
        return column
    if pa.types.is_large_string(kind):
        return column.cast(pa.string())
    return pa.array(integers(name, column), mask=np.asarray(column.is_null()))


@dataclass(frozen=True)
class Vocabulary:
    """Terms in the order of their ids, without nulls: ``terms[i]`` has id ``i + 1``."""

    terms: pa.Array

    @property
    def cardinality(self) -> int:
        """Number of ids, 0 included."""
        return len(self.terms) + 1

    def ids(self, name: str, values: pa.Array) -> Ids:
        """Ids of a column's values, [n]; 0 for null and unseen.

        Raises:
            TableError: the values are numbers and the terms strings, or the reverse.
        """
        if values.type != self.terms.type:
            raise TableError(f"column {name!r} holds {values.type} but its vocabulary holds {self.terms.type}")
        if not len(self.terms) or not len(values):
            return np.zeros(len(values), dtype=np.int32)
        if pa.types.is_string(values.type):
            encoded = values.dictionary_encode()
            found = pc.index_in(encoded.dictionary, self.terms)
            table = found.fill_null(-1).to_numpy(zero_copy_only=False) + 1
            if not len(table):
                return np.zeros(len(values), dtype=np.int32)
            codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            ids: Ids = table[codes].astype(np.int32, copy=False)
        else:
            ids = self._integer_ids(values.fill_null(0).to_numpy(zero_copy_only=False))
        if values.null_count:
            ids[np.asarray(values.is_null())] = 0
        return ids

    def _integer_ids(self, values: NDArray[np.int64]) -> Ids:
        if self._table is not None:
            # One look-up is 20 times faster than a binary search among a thousand terms.
            low, table = self._table
            inside = (values >= low) & (values < low + len(table))
            return table[np.where(inside, values - low, 0)] * inside
        ordered, order = self._sorted
        place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
        return np.where(ordered[place] == values, order[place] + 1, 0).astype(np.int32)

    @cached_property
    def _table(self) -> tuple[int, Ids] | None:
        """The smallest term, and the id of every number from there to the largest term; None where they are many."""
        values = self.terms.to_numpy(zero_copy_only=False)
        low, high = int(values.min()), int(values.max())
        if high - low >= max(_TABLE_SIZE, 8 * len(values)):
            return None
        table = np.zeros(high - low + 1, dtype=np.int32)
        table[values - low] = np.arange(1, len(values) + 1)
        return low, table

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        values = self.terms.to_numpy(zero_copy_only=False)
        order = np.argsort(values, kind="stable")
        return values[order], order

    def to_json(self, blobs: dict[str, bytes]) -> dict[str, Any]:
        """JSON form. A large vocabulary goes into ``blobs`` (content hash -> bytes) and the JSON names it."""
        kind = "string" if pa.types.is_string(self.terms.type) else "int64"
        if len(self.terms) <= INLINE_LIMIT and self.terms.nbytes <= INLINE_BYTES:
            return {"type": kind, "terms": self.terms.to_pylist()}
        name = terms_hash(self.terms)
        blobs[name] = _blob(self.terms)
        return {"type": kind, "size": len(self.terms), "blob": name}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], blob: Callable[[str], bytes]) -> "Vocabulary":
        """The inverse of :meth:`to_json`. ``blob`` reads a named blob.

        Raises:
            DamagedError: a blob is not what its name says.
        """
        kind = pa.string() if value["type"] == "string" else pa.int64()
        if "blob" not in value:
            return cls(pa.array(value["terms"], kind))
        try:
            with pa.ipc.open_file(pa.BufferReader(blob(value["blob"]))) as reader:
                found = reader.get_batch(0).column(0)
            # Before anything reads it: damaged offsets point outside of the file.
            found.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"vocabulary {value['blob']} is damaged: {error}") from error
        if found.type != kind or terms_hash(found) != value["blob"]:
            raise DamagedError(f"vocabulary {value['blob']} is damaged: its terms have another hash")
        return cls(found)


def terms_hash(terms: pa.Array) -> str:
    """XXH3-128 of the terms in hex, the name of their blob: of the values, not of Arrow's encoding of them."""
    strings = pa.types.is_string(terms.type)
    hasher = xxhash.xxh3_128(f"mltrain-vocabulary-1 {'string' if strings else 'int64'} {len(terms)}\n".encode())
    if strings:
        hasher.update(pc.binary_length(terms).to_numpy().astype("<i8"))
        hasher.update("".join(terms.to_pylist()).encode())
    else:
        hasher.update(terms.to_numpy().astype("<i8", copy=False))
    return hasher.hexdigest()


def _blob(values: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([values], names=["terms"])
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def ranked(
    values: pa.Array, counts: NDArray[np.int64], *, min_count: int = 1, max_size: int | None = None
) -> Vocabulary:
    """The vocabulary of counted terms: most frequent first, equal counts by value (bytes, or number).

    Args:
        values: distinct terms, without nulls.
        counts: how often each occurs.
        min_count: rarer terms are left out.
        max_size: at most this many terms stay.
    """
    keep = np.flatnonzero(counts >= min_count)
    values, counts = values.take(pa.array(keep)), counts[keep]
    if pa.types.is_string(values.type):
        # Arrow sorts strings by their bytes, wherever and in whatever locale it runs.
        by_value = pc.array_sort_indices(values).to_numpy()
    else:
        by_value = np.argsort(values.to_numpy(), kind="stable")
    order = by_value[np.argsort(-counts[by_value], kind="stable")]
    return Vocabulary(values.take(pa.array(order[:max_size])))
