"""Canonical, type-tagged keys and their hash, equal in numpy and in Spark SQL.

A row's bucket, its split, its place in a shard and its part of the multiset hash all derive from one hash of its key.
Spark computes it where rows are scattered and counted, numpy where they are sorted and verified, so both must produce
the same numbers whatever the width of an integer column or the engine that wrote it. The hash is a chain of 64-bit
xxHash values, which is what Spark's ``xxhash64(a, b, ...)`` computes (each value is hashed with the hash so far as
its seed, starting from 42), over

    domain (string), seed (long), then for each key column: its tag (long) and its value, unless the tag is NULL

| tag | Arrow types | canonical value | Spark expression |
|---|---|---|---|
| 0 NULL | null | none | ``CAST(NULL AS ...)`` is skipped by xxhash64 |
| 1 BOOLEAN | bool | 0 or 1 as long | ``CAST(c AS BIGINT)`` |
| 2 INTEGER | int8..int64, uint8..uint32 | long | ``CAST(c AS BIGINT)`` |
| 3 FLOAT | float16..float64 | bits of the double; one NaN, no -0.0 | ``CAST(c AS DOUBLE)`` |
| 4 DECIMAL | decimal128 | its plain text | ``replace(format_number(c, scale), ',', '')`` |
| 5 DATE | date32 | days since 1970-01-01 as long | ``CAST(unix_date(c) AS BIGINT)`` |
| 6 TIMESTAMP | timestamp | microseconds since 1970-01-01 as long | ``unix_micros(c)`` |
| 7 STRING | string, large_string | UTF-8 bytes | ``c`` |
| 8 BINARY | binary, fixed_size_binary (a UUID: its 16 bytes) | bytes | ``c`` |
| 9 LIST | list of one of 1 to 8 | length as long, then the values that are not null | ``size(c)``, each element |

A key column is INTEGER, DATE, STRING or BINARY. The other tags exist for tables without a key, where the whole row
stands in. Hashes are unsigned here and signed in Spark: the same 64 bits.
"""

import enum
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from mltrain.errors import TableError

Hashes = NDArray[np.uint64]

_SPARK_SEED = 42
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_MULTISET_MODULUS = 1 << 128
_NAN_BITS = 0x7FF8000000000000

SHARD_DOMAIN = "mltrain/shard"
SPLIT_DOMAIN = "mltrain/split"
MULTISET_DOMAINS = ("mltrain/multiset/high", "mltrain/multiset/low")


class Tag(enum.IntEnum):
    """What kind of value follows in the canonical encoding."""

    NULL = 0
    BOOLEAN = 1
    INTEGER = 2
    FLOAT = 3
    DECIMAL = 4
    DATE = 5
    TIMESTAMP = 6
    STRING = 7
    BINARY = 8
    LIST = 9


KEY_TAGS = frozenset({Tag.INTEGER, Tag.DATE, Tag.STRING, Tag.BINARY})
_ELEMENT_TAGS = frozenset(Tag) - {Tag.NULL, Tag.LIST}


def tag_of(name: str, type_: pa.DataType) -> Tag:
    """The tag of a column.

    Raises:
        TableError: rows cannot be told apart by values of this type.
    """
    if pa.types.is_boolean(type_):
        return Tag.BOOLEAN
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return Tag.INTEGER
    if pa.types.is_floating(type_):
        return Tag.FLOAT
    if pa.types.is_decimal(type_):
        return Tag.DECIMAL
    if pa.types.is_date32(type_):
        return Tag.DATE
    if pa.types.is_timestamp(type_):
        return Tag.TIMESTAMP
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return Tag.STRING
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return Tag.BINARY
    if isinstance(type_, pa.BaseExtensionType):
        return tag_of(name, type_.storage_type)
    if _is_list(type_) and tag_of(name, type_.value_type) in _ELEMENT_TAGS:
        return Tag.LIST
    raise TableError(
        f"column {name!r} has type {type_}, by which rows cannot be told apart; "
        "name a key of integers, strings, dates or UUIDs (dataset.key)"
    )


def check_key_column(name: str, type_: pa.DataType) -> None:
    """Refuses a key column whose type is not an integer, a string, a date or a UUID (16 bytes).

    Raises:
        TableError: the type has no canonical key encoding.
    """
    if tag_of(name, type_) not in KEY_TAGS:
        raise TableError(
            f"key column {name!r} has type {type_}; a key is made of integers, strings, dates or UUIDs: "
            "choose other columns for dataset.key, or leave it out and the whole row stands in"
        )


def hash_rows(columns: pa.Table | pa.RecordBatch, *, domain: str, seed: int) -> Hashes:
    """Hash of each row over all columns of ``columns``, in their order.

    Args:
        columns: the key columns (or, without a key, the whole row).
        domain: what the hash is for; one seed gives unrelated hashes in different domains.
        seed: a signed 64-bit number.

    Returns:
        One uint64 a row. Spark's ``hash_sql`` gives the same 64 bits as a signed long.
    """
    start = xxhash.xxh64_intdigest(domain.encode(), seed=_SPARK_SEED)
    start = xxhash.xxh64_intdigest(int(seed).to_bytes(8, "little", signed=True), seed=start)
    hashes = np.full(columns.num_rows, start, np.uint64)
    for field in columns.schema:
        column = columns.column(field.name)
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        hashes = _fold(field.name, array, hashes)
    return hashes


def hash_sql(schema: pa.Schema, *, domain: str, seed: int) -> str:
    """A Spark SQL expression over the columns of ``schema`` that equals :func:`hash_rows` as a signed long."""
    parts = [f"'{domain}'", f"CAST({int(seed)} AS BIGINT)"]
    for field in schema:
        tag = tag_of(field.name, field.type)
        column = "`" + field.name.replace("`", "``") + "`"
        parts.append(f"CAST(IF({column} IS NULL, {int(Tag.NULL)}, {int(tag)}) AS BIGINT)")
        parts.extend(_value_sql(column, field.type, tag))
    return f"xxhash64({', '.join(parts)})"


def chain(hashes: Hashes, lists: Sequence[pa.Array]) -> Hashes:
    """Hashes that cover also which elements of lists are null, [n] -> [n].

    Spark's ``xxhash64(hash, transform(list, x -> x IS NULL), ...)`` gives the same 64 bits as a signed long.
    """
    chained = _hash_long(hashes.view(np.int64), np.full(len(hashes), _SPARK_SEED, np.uint64))
    for array in lists:
        null = pc.list_flatten(array).is_null().to_numpy(zero_copy_only=False)
        for rows, chosen in _by_rank(pc.list_parent_indices(array).to_numpy(zero_copy_only=False)):
            chained[rows] = _hash_int(null[chosen], chained[rows])
    return chained


def sort_order(columns: pa.Table | pa.RecordBatch, hashes: Hashes) -> NDArray[np.int64]:
    """The order of rows in a shard: by hash, rows of one hash by their canonical values."""
    order = np.argsort(hashes, kind="stable")
    return _order_ties(columns, hashes, order)[0]


def duplicates(columns: pa.Table | pa.RecordBatch, hashes: Hashes) -> list[tuple[Any, ...]]:
    """The keys that occur more than once, each given once."""
    order = np.argsort(hashes, kind="stable")
    return _order_ties(columns, hashes, order)[1]


def multiset(columns: pa.Table | pa.RecordBatch) -> int:
    """Order-free hash of the rows: the sum of their 128-bit hashes modulo 2**128.

    A row's hash is ``high * 2**64 + low`` of two signed 64-bit hashes: those that Spark computes by
    :func:`multiset_sql`, and whose sums :func:`combine_multiset` combines.
    """
    high, low = (signed_sum(hash_rows(columns, domain=domain, seed=0)) for domain in MULTISET_DOMAINS)
    return combine_multiset(high, low)


def multiset_sql(schema: pa.Schema) -> tuple[str, str]:
    """Two Spark SQL expressions, the high and the low hash of a row: their sums are for :func:`combine_multiset`."""
    high, low = (hash_sql(schema, domain=domain, seed=0) for domain in MULTISET_DOMAINS)
    return high, low


def signed_sum(hashes: NDArray[np.int64] | Hashes) -> int:
    """The exact sum of hashes as signed numbers, for up to 2**31 of them."""
    signed = hashes.view(np.int64)
    high = int(np.sum(signed >> 32, dtype=np.int64))
    low = int(np.sum(signed & 0xFFFFFFFF, dtype=np.int64))
    return (high << 32) + low


def combine_multiset(high_sum: int, low_sum: int) -> int:
    """The multiset hash from the sums of the signed high and low hashes of all rows."""
    return ((high_sum << 64) + low_sum) % _MULTISET_MODULUS


def add_multisets(*values: int) -> int:
    """The multiset hash of the union of disjoint sets of rows."""
    return sum(values) % _MULTISET_MODULUS


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _value_sql(column: str, type_: pa.DataType, tag: Tag) -> list[str]:
    if tag in (Tag.BOOLEAN, Tag.INTEGER):
        return [f"CAST({column} AS BIGINT)"]
    if tag is Tag.FLOAT:
        return [f"CAST({column} AS DOUBLE)"]
    if tag is Tag.DECIMAL:
        # Unlike a cast, never in scientific notation, whatever spark.sql.ansi.enabled says.
        return [f"replace(format_number({column}, {type_.scale}), ',', '')"]
    if tag is Tag.DATE:
        return [f"CAST(unix_date({column}) AS BIGINT)"]
    if tag is Tag.TIMESTAMP and type_.tz is None:
        return [f"timestampdiff(MICROSECOND, TIMESTAMP_NTZ'1970-01-01 00:00:00', {column})"]
    if tag is Tag.TIMESTAMP:
        return [f"unix_micros({column})"]
    if tag is Tag.LIST:
        values = _elements_sql(column, type_.value_type, tag_of(column, type_.value_type))
        return [f"CAST(IF({column} IS NULL, NULL, size({column})) AS BIGINT)", values]
    return [column]


def _elements_sql(column: str, type_: pa.DataType, tag: Tag) -> str:
    if canonical := {Tag.BOOLEAN: "BIGINT", Tag.INTEGER: "BIGINT", Tag.FLOAT: "DOUBLE"}.get(tag):
        return f"CAST({column} AS ARRAY<{canonical}>)"
    (element,) = _value_sql("x", type_, tag)
    return column if element == "x" else f"transform({column}, x -> {element})"


def _fold(name: str, array: pa.Array, hashes: Hashes) -> Hashes:
    """Chains one column onto the hashes of its rows."""
    tag = tag_of(name, array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if array.null_count:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        folded = _hash_long(np.int64(Tag.NULL), hashes)
        folded[valid] = _fold(name, array.filter(pa.array(valid)), hashes[valid])
        return folded
    hashes = _hash_long(np.int64(tag), hashes)
    if tag is Tag.LIST:
        return _fold_lists(name, array, hashes)
    return _fold_values(tag, array, hashes)


def _fold_values(tag: Tag, array: pa.Array, hashes: Hashes) -> Hashes:
    if tag is Tag.FLOAT:
        return _hash_long(_double_bits(array), hashes)
    if tag is Tag.DECIMAL:
        return _hash_bytes((format(value, "f").encode() for value in array.to_pylist()), hashes)
    if tag is Tag.STRING:
        return _hash_bytes(array.cast(pa.large_string()).cast(pa.large_binary()).to_pylist(), hashes)
    if tag is Tag.BINARY:
        return _hash_bytes(array.to_pylist(), hashes)
    if tag is Tag.TIMESTAMP:
        array = array.cast(pa.timestamp("us", array.type.tz)).cast(pa.int64())
    if tag is Tag.DATE:
        array = array.cast(pa.int32())
    return _hash_long(array.cast(pa.int64()).to_numpy(zero_copy_only=False), hashes)


def _fold_lists(name: str, array: pa.Array, hashes: Hashes) -> Hashes:
    lengths = pc.list_value_length(array).cast(pa.int64()).to_numpy(zero_copy_only=False)
    hashes = _hash_long(lengths, hashes)
    parents = pc.list_parent_indices(array).to_numpy(zero_copy_only=False)
    values = pc.list_flatten(array)
    if values.null_count:
        parents = parents[values.is_valid().to_numpy(zero_copy_only=False)]
        values = values.drop_null()
    tag = tag_of(name, values.type)
    for rows, chosen in _by_rank(parents):
        hashes[rows] = _fold_values(tag, values.take(pa.array(chosen)), hashes[rows])
    return hashes


def _by_rank(parents: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For the first, second, ... elements of lists: which rows have one, and where; ``parents`` are elements' rows."""
    ranks = np.arange(len(parents)) - np.searchsorted(parents, parents)
    order = np.argsort(ranks, kind="stable")
    for chosen in np.split(order, np.cumsum(np.bincount(ranks))[:-1]) if len(ranks) else ():
        yield parents[chosen], chosen


def _double_bits(array: pa.Array) -> NDArray[np.int64]:
    doubles = array.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0
    bits = doubles.view(np.int64)
    return np.where(np.isnan(doubles), np.int64(_NAN_BITS), bits)


def _hash_bytes(values: Any, hashes: Hashes) -> Hashes:
    digest = xxhash.xxh64_intdigest
    seeds = hashes.tolist()
    return np.fromiter((digest(v, seed=s) for v, s in zip(values, seeds, strict=True)), np.uint64, len(seeds))


def _hash_long(values: NDArray[np.int64] | np.int64, seeds: Hashes) -> Hashes:
    """xxHash64 of 8 little-endian bytes, each with a seed of its own (the specification's short-input path)."""
    with np.errstate(over="ignore"):
        k = np.asarray(values, np.int64).view(np.uint64) * _PRIME_2
        k = _rotate(k, 31) * _PRIME_1
        h = (seeds + (_PRIME_5 + np.uint64(8))) ^ k
        h = _rotate(h, 27) * _PRIME_1 + _PRIME_4
        return _avalanche(h)


def _hash_int(values: NDArray[np.bool_], seeds: Hashes) -> Hashes:
    """The same of 4 bytes: 0 or 1."""
    with np.errstate(over="ignore"):
        h = (seeds + (_PRIME_5 + np.uint64(4))) ^ (values.astype(np.uint64) * _PRIME_1)
        return _avalanche(_rotate(h, 23) * _PRIME_2 + _PRIME_3)


def _avalanche(h: Hashes) -> Hashes:
    h ^= h >> np.uint64(33)
    h *= _PRIME_2
    h ^= h >> np.uint64(29)
    h *= _PRIME_3
    h ^= h >> np.uint64(32)
    return h


def _rotate(values: Hashes, bits: int) -> Hashes:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def _order_ties(
    columns: pa.Table | pa.RecordBatch, hashes: Hashes, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[tuple[Any, ...]]]:
    """Orders the (rare) rows of equal hash by canonical value, and names the keys that are equal."""
    ordered = hashes[order]
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not len(equal):
        return order, []
    repeated: list[tuple[Any, ...]] = []
    for hash_ in np.unique(ordered[equal]):
        start, stop = np.searchsorted(ordered, hash_), np.searchsorted(ordered, hash_, side="right")
        rows = order[start:stop]
        values = [tuple(v.values()) for v in columns.take(pa.array(rows)).to_pylist()]
        ranked = sorted(range(len(rows)), key=lambda i, values=values: _comparable(values[i]))  # type: ignore[misc]
        order[start:stop] = rows[ranked]
        keys = [_comparable(values[i]) for i in ranked]
        same = [i for i in range(1, len(keys)) if keys[i] == keys[i - 1] and (i == 1 or keys[i] != keys[i - 2])]
        repeated.extend(values[ranked[i]] for i in same)
    return order, repeated


def _comparable(value: Any) -> Any:
    """A total order over canonical values: nulls first, NaN after them, -0.0 equal to 0.0, text by its UTF-8 bytes."""
    if value is None:
        return (0,)
    if isinstance(value, tuple | list):
        return (1, tuple(_comparable(v) for v in value))
    if isinstance(value, float):
        return (1,) if math.isnan(value) else (2, value)
    return (2, value.encode() if isinstance(value, str) else value)
