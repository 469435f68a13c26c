"""Values that a task wants of every row besides its columns: as Spark SQL, and on Arrow batches, with one meaning.

Where Spark scans the table it computes them; where tasks read the table's files themselves they do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mltrain.data import keys
from mltrain.features.sql import column, literal
from mltrain.transforms.vocabulary import is_vocabulary_type

HASH_BITS = 63


@dataclass(frozen=True)
class Derived:
    """A value of a row.

    Attributes:
        sql: in Spark SQL.
        reads: columns that it is made from.
        arrow: of the rows of a batch; None where only Spark can tell.
    """

    sql: str
    reads: tuple[str, ...] = ()
    arrow: Callable[[pa.RecordBatch], pa.Array] | None = None


def constant(value: bool) -> Derived:
    """The same for every row."""
    return Derived(str(value).lower(), (), lambda rows: pa.array(np.full(rows.num_rows, value)))


def row_hash(identity: pa.Schema, *, domain: str, seed: int) -> Derived:
    """The 64 bits of :func:`mltrain.data.keys.hash_rows`, as a signed long."""
    names = identity.names

    def hashed(rows: pa.RecordBatch) -> pa.Array:
        return pa.array(keys.hash_rows(rows.select(names), domain=domain, seed=seed).view(np.int64))

    return Derived(keys.hash_sql(identity, domain=domain, seed=seed), tuple(names), hashed)


def hash63_sql(identity: pa.Schema, seed: int, domain: str) -> str:
    """The upper 63 bits of the identity's hash: a long that is never negative."""
    return f"shiftrightunsigned({keys.hash_sql(identity, domain=domain, seed=seed)}, 1)"


def below(identity: pa.Schema, seed: int, domain: str, bound: int) -> Derived:
    """Whether :func:`hash63_sql` is less than a bound."""
    names = identity.names

    def chosen(rows: pa.RecordBatch) -> pa.Array:
        return pa.array(_hash63(rows.select(names), seed, domain) < np.uint64(bound))

    return Derived(f"{hash63_sql(identity, seed, domain)} < {bound}", tuple(names), chosen)


def share(identity: pa.Schema, seed: int, domain: str, bounds: Sequence[int]) -> Derived:
    """How many of the bounds :func:`hash63_sql` has reached; bounds ascend."""
    names, limits = identity.names, np.array(bounds, np.uint64)

    def reached(rows: pa.RecordBatch) -> pa.Array:
        hashes = _hash63(rows.select(names), seed, domain)
        return pa.array(np.searchsorted(limits, hashes, side="right").astype(np.int32))

    return Derived(
        cases([f"{hash63_sql(identity, seed, domain)} < {bound}" for bound in bounds]), tuple(names), reached
    )


def cases(conditions: Sequence[str]) -> str:
    """The position of the first condition that holds, or their number."""
    if not conditions:
        return "0"
    arms = " ".join(f"WHEN {condition} THEN {position}" for position, condition in enumerate(conditions))
    return f"CASE {arms} ELSE {len(conditions)} END"


def position(name: str, values: Sequence[str]) -> Derived:
    """The place of a string among some; null where it is none of them."""
    known = pa.array(values, pa.string())

    def place(rows: pa.RecordBatch) -> pa.Array:
        return pc.index_in(rows.column(name), known, skip_nulls=True)

    arms = " ".join(f"WHEN {literal(value)} THEN {i}" for i, value in enumerate(values))
    return Derived(f"CASE CAST({column(name)} AS STRING) {arms} END", (name,), place)


def is_missing(name: str, kind: pa.DataType) -> Derived:
    """Whether a column is null or NaN, or a list of terms with a null among them."""
    quoted = column(name)
    if pa.types.is_floating(kind):
        return Derived(
            f"({quoted} IS NULL OR isnan({quoted}))",
            (name,),
            lambda rows: pc.is_null(rows.column(name), nan_is_null=True),
        )
    if pa.types.is_list(kind) and is_vocabulary_type(kind.value_type):
        return Derived(
            f"({quoted} IS NULL OR exists({quoted}, one -> one IS NULL))",
            (name,),
            lambda rows: _holes(rows.column(name)),
        )
    return Derived(f"{quoted} IS NULL", (name,), lambda rows: pc.is_null(rows.column(name)))


def is_negative(name: str, kind: pa.DataType) -> Derived:
    """Whether a number is less than 0; not if it is missing."""

    def negative(rows: pa.RecordBatch) -> pa.Array:
        return pc.less(rows.column(name), pa.scalar(0, kind)).fill_null(False)

    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return Derived(f"coalesce({column(name)} < 0, false)", (name,), negative if plain else None)


def is_not_utf8(name: str, kind: pa.DataType) -> Derived:
    """Whether a string, or one of a list, is not UTF-8: engines let any bytes pass for a string."""
    if not pa.types.is_list(kind):
        sql = f"coalesce(NOT is_valid_utf8({column(name)}), false)"
        return Derived(sql, (name,), lambda rows: pa.array(_not_utf8(rows.column(name))))

    def inside(rows: pa.RecordBatch) -> pa.Array:
        lists = rows.column(name)
        wrong = np.zeros(len(lists), np.bool_)
        wrong[pc.list_parent_indices(lists).to_numpy()[_not_utf8(pc.list_flatten(lists))]] = True
        return pa.array(wrong)

    return Derived(f"coalesce(exists({column(name)}, one -> NOT is_valid_utf8(one)), false)", (name,), inside)


def _not_utf8(strings: pa.Array) -> NDArray[np.bool_]:
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([value is not None and not _decodes(value) for value in strings.cast(pa.binary()).to_pylist()])
    return np.zeros(len(strings), np.bool_)


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _holes(lists: pa.Array) -> pa.Array:
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    elements = pc.list_flatten(lists).is_null().to_numpy(zero_copy_only=False)
    missing[pc.list_parent_indices(lists).to_numpy()[elements]] = True
    return pa.array(missing)


def _hash63(rows: pa.RecordBatch, seed: int, domain: str) -> NDArray[np.uint64]:
    return keys.hash_rows(rows, domain=domain, seed=seed) >> np.uint64(1)


def append(rows: pa.RecordBatch, wanted: Mapping[str, Derived]) -> pa.RecordBatch:
    """The rows with more columns, each of which may be derived from those before it.

    Raises:
        ValueError: only Spark can tell one.
    """
    for name, one in wanted.items():
        if one.arrow is None:
            raise ValueError(f"only Spark can tell {name}")
        rows = rows.append_column(name, one.arrow(rows))
    return rows
