"""Rows to shards: a row is transformed and packed where it is read, and goes to the task of its bucket, which sorts,
encodes and stores.

Between the two, a row is one run of bytes a dtype and what tells it from others, not a value a column: Spark's cost of
moving it is by the value.
Tasks write straight to storage, under names that are hashes of content, so a repeated or speculative attempt writes the
same object. A task answers a row per shard; only answers of attempts that Spark counted reach the manifest.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.data import keys
from mltrain.data.layout import choose_buckets
from mltrain.data.manifest import ShardEntry
from mltrain.data.publish import put_shard
from mltrain.data.schema import FINGERPRINT, Matrix, Schema
from mltrain.data.shard import EncodedShard, Shard, pack_matrices, write_packed
from mltrain.errors import BuildError, TableError
from mltrain.features import parcels
from mltrain.features.census import SPLIT
from mltrain.features.derived import Derived, row_hash
from mltrain.features.engine import rows_per_batch_at_most
from mltrain.features.problems import one_each, repeated_keys
from mltrain.features.rows import Rows
from mltrain.features.sql import Batches, map_in_arrow, spare_modules
from mltrain.storage import Store
from mltrain.transforms import FittedTransforms

HASH = "__mltrain_hash"
PLACE = "__mltrain_place"
_MATRIX, _RAGGED, _PROBLEM = "__mltrain_matrix_", "__mltrain_ragged_", "__mltrain_problem"
SHARD_SEED = 0
"""Of the hash that says where a row lies. It is not the split's seed: a new split keeps rows in their buckets."""

_EXAMPLES = 5
# More shards than this have as many rows as this, or are refused; what is asked for is kept to a factor of 1.41.
_MANY_SHARDS, _FEW_ROWS, _ENOUGH_ROWS = 1024, 500, 1000

Answer = dict[str, object]
"""What a task says of a shard, as plain data: its entry, or what is wrong."""
_PACKED_BYTES = 1 << 25
_MAX_ARRAY_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Places:
    """Which Spark partition a (split, bucket) is.

    Attributes:
        splits: split names in canonical order.
        buckets: buckets of each split, a power of two.
    """

    splits: tuple[str, ...]
    buckets: tuple[int, ...]

    @classmethod
    def plan(cls, rows: Mapping[str, int], rows_per_shard: int) -> "Places":
        """From the rows of each split alone: the cluster has no say."""
        return cls(tuple(rows), tuple(choose_buckets(n, rows_per_shard) for n in rows.values()))

    def problems(self, rows: Mapping[str, int], rows_per_shard: int) -> list[str]:
        """Shards that are many and tiny cost more than their rows: a file, a task and a line of the manifest each."""
        total = sum(rows.values())
        if self.count <= _MANY_SHARDS or total >= self.count * _FEW_ROWS:
            return []
        return [
            f"rows_per_shard: {rows_per_shard:,} would cut {total:,} rows into {self.count:,} shards, "
            f"{total / self.count:.1f} rows each; set dataset.rows_per_shard to {_ENOUGH_ROWS} or more, or leave it out"
        ]

    @property
    def count(self) -> int:
        """Partitions."""
        return sum(self.buckets)

    def locate(self, place: int) -> tuple[str, int]:
        """Split and bucket of a partition."""
        for split, buckets in zip(self.splits, self.buckets, strict=True):
            if place < buckets:
                return split, place
            place -= buckets
        raise ValueError(f"there are {self.count} places")

    def derived(self) -> Derived:
        """A row's partition: the top bits of its :data:`HASH`, after the places of earlier splits."""
        starts = np.cumsum((0, *self.buckets[:-1]), dtype=np.uint64)
        # The lowest bit goes first: a number is not shifted by all of its 64 bits.
        shifts = np.array([64 - buckets.bit_length() for buckets in self.buckets], np.uint64)

        def place(rows: pa.RecordBatch) -> pa.Array:
            splits = rows.column(SPLIT).to_numpy()
            hashes = rows.column(HASH).to_numpy().view(np.uint64) >> np.uint64(1)
            return pa.array((starts[splits] + (hashes >> shifts[splits])).astype(np.int32))

        return Derived(self.sql(), (SPLIT, HASH), place)

    def sql(self) -> str:
        """The same in Spark SQL."""
        arms, start = [], 0
        for position, buckets in enumerate(self.buckets):
            bits = buckets.bit_length() - 1
            bucket = f"CAST(shiftrightunsigned({HASH}, {64 - bits}) AS INT)" if bits else "0"
            arms.append(f"WHEN {position} THEN {start} + {bucket}")
            start += buckets
        return f"CASE {SPLIT} {' '.join(arms)} END"


@dataclass(frozen=True)
class Encoder:
    """What a task does with the rows of one shard.

    Attributes:
        store: the root.
        places: the partitions.
        transforms: fitted on the training split.
        schema: of the dataset.
        identity: columns that tell rows apart, in order.
        keyed: they are a key, so no two rows may share it.
    """

    store: Store
    places: Places
    transforms: FittedTransforms
    schema: Schema
    identity: tuple[str, ...]
    keyed: bool

    def pack(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Source rows as they travel: place, hash and carried columns, matrices as bytes, ragged columns.

        Raises:
            TableError: a value that cannot be represented.
        """
        made = self.transforms.apply(rows)
        arrays = {name: rows.column(name) for name in (PLACE, HASH, *self.kept)}
        for dtype, matrix in pack_matrices(made, self.schema).items():
            arrays[f"{_MATRIX}{dtype}"] = _as_bytes(matrix)
        arrays |= {f"{_RAGGED}{one.name}": made.column(one.name) for one in self.schema.ragged}
        return pa.RecordBatch.from_pydict({**arrays, _PROBLEM: pa.nulls(rows.num_rows, pa.string())})

    def encode(self, rows: pa.Table) -> EncodedShard:
        """Packed rows in any order become a shard."""
        identity = rows.select(list(self.identity))
        order = keys.sort_order(identity, rows.column(HASH).to_numpy().view(np.uint64))
        taken = pa.array(order)
        matrices = {
            dtype: _from_bytes(rows.column(f"{_MATRIX}{dtype}"), matrix).take(order, axis=0)
            for dtype, matrix in self.schema.matrices.items()
        }
        others = {one.name: rows.column(f"{_RAGGED}{one.name}").take(taken) for one in self.schema.ragged}
        others |= {carried.name: _stored(rows.column(carried.name)).take(taken) for carried in self.schema.carried}
        if self.schema.fingerprints:
            others[FINGERPRINT] = rows.column(FINGERPRINT).take(taken)
        return write_packed(matrices, others, self.schema, identity=None if self.keyed else identity)

    def packed_again(self, shard: Shard, kinds: pa.Schema) -> pa.Table:
        """The rows of a stored shard as they travelled, but for their place; ``kinds`` are the types."""
        key = pa.table({name: shard.carried(name) for name in self.identity})
        hashes = keys.hash_rows(key, domain=keys.SHARD_DOMAIN, seed=SHARD_SEED)
        columns: dict[str, Any] = {HASH: hashes.view(np.int64), FINGERPRINT: shard.fingerprints()}
        columns |= {carried.name: shard.carried(carried.name) for carried in self.schema.carried}
        columns |= {f"{_RAGGED}{one.name}": shard.batch.column(f"ragged/{one.name}") for one in self.schema.ragged}
        for dtype, matrix in self.schema.matrices.items():
            rows = max(1, _MAX_ARRAY_BYTES // 2 // matrix.row_bytes)
            parts = [_as_bytes(shard.matrix(dtype)[start : start + rows]) for start in range(0, shard.rows, rows)]
            columns[f"{_MATRIX}{dtype}"] = pa.chunked_array(parts, pa.binary())
        return pa.table(columns).select(kinds.names).cast(kinds)

    @property
    def kept(self) -> tuple[str, ...]:
        """Source columns that travel as they are: those that tell rows apart, and those that shards keep."""
        fingerprint = [FINGERPRINT] if self.schema.fingerprints else []
        return tuple(dict.fromkeys((*self.identity, *(one.name for one in self.schema.carried), *fingerprint)))

    def travelling(self, source: pa.Schema) -> pa.Schema:
        """What :meth:`pack` makes of source columns of a schema."""
        kinds = {PLACE: pa.int32(), HASH: pa.int64(), **{name: source.field(name).type for name in self.kept}}
        kinds |= {f"{_MATRIX}{dtype}": pa.binary() for dtype in self.schema.matrices}
        kinds |= {f"{_RAGGED}{one.name}": pa.list_(pa.int32()) for one in self.schema.ragged}
        return pa.schema({**kinds, _PROBLEM: pa.string()})

    def complaint(self, source: pa.Schema, problem: str) -> pa.RecordBatch:
        """A row that carries a problem to the driver, by way of the first shard's task."""
        return pa.RecordBatch.from_pylist([{PLACE: 0, _PROBLEM: problem}], self.travelling(source))

    def duplicates(self, rows: pa.Table) -> list[tuple[object, ...]]:
        """Keys that more than one of the rows have. Rows of one key are always in one bucket."""
        if not self.keyed:
            return []
        return keys.duplicates(rows.select(list(self.identity)), rows.column(HASH).to_numpy().view(np.uint64))

    def store_shard(self, shard: EncodedShard) -> None:
        """Puts a shard where its content says, unless it is there, whole, already."""
        put_shard(self.store, shard)


def scatter(rows: Rows, identity: pa.Schema, encoder: Encoder) -> tuple[list[ShardEntry], list[str]]:
    """Builds and stores all shards.

    Args:
        rows: source columns, those of ``identity``, the split's position, and the fingerprint where the schema has it.
        identity: the columns that tell rows apart.
        encoder: what to do with a shard's rows.

    Returns:
        An entry for every shard, and what tasks found wrong with the table: duplicate keys, values that cannot be
        represented. Where they found something, entries are missing.

    Raises:
        BuildError: two tasks answered for one bucket.
    """
    names = dict.fromkeys((*encoder.kept, *encoder.transforms.inputs))

    def answer(place: int, rows: pa.Table) -> Answer:
        split, bucket = encoder.places.locate(place)
        return shard_answer(encoder, rows, split=split, increment=0, bucket=bucket)

    def packed(batches: Batches) -> Batches:
        spare_modules()
        return parcels.wrap(pack(encoder)(batches), PLACE)

    hashed_rows = rows.with_derived(HASH, shard_hash(identity))
    travelling = hashed_rows.map((*names, HASH), {PLACE: encoder.places.derived()}, packed, parcels.schema(PLACE))
    return gather(travelling, encoder.places.count, encoder.identity, answer)


def shard_hash(identity: pa.Schema) -> Derived:
    """What says where a row lies, from the columns that tell rows apart."""
    return row_hash(identity, domain=keys.SHARD_DOMAIN, seed=SHARD_SEED)


def pack(encoder: Encoder) -> Callable[[Batches], Batches]:
    """A task that packs source rows, which have :data:`PLACE` and :data:`HASH`."""

    def run(batches: Batches) -> Batches:
        rows = max(1, _PACKED_BYTES // max(1, sum(matrix.row_bytes for matrix in encoder.schema.matrices.values())))
        for batch in batches:
            for start in range(0, batch.num_rows, rows):
                try:
                    yield encoder.pack(batch.slice(start, rows))
                except TableError as error:
                    yield encoder.complaint(batch.schema, str(error))

    return run


def gather(
    packed: DataFrame, places: int, key: Sequence[str], answer: Callable[[int, pa.Table], Answer]
) -> tuple[list[ShardEntry], list[str]]:
    """Hands the packed rows of each place to ``answer``, in one task, and collects what it says.

    Args:
        packed: rows as they travel, or parcels of them.
        places: number of places.
        key: names of the columns that tell rows apart, for messages.
        answer: makes a shard of a place's rows.

    Returns:
        As :func:`scatter`.

    Raises:
        BuildError: two tasks answered for one bucket.
    """
    tasks = packed.repartitionById(places, F.col(PLACE))
    with rows_per_batch_at_most(packed.sparkSession, parcels.PER_BATCH):
        answers = map_in_arrow(tasks, _by_place(answer), "answer string").toArrow()
    found = [json.loads(answer) for answer in answers["answer"].to_pylist()]
    entries = [ShardEntry.from_json(answer) for answer in found if "blob" in answer]
    if len({(entry.split, entry.increment, entry.bucket) for entry in entries}) != len(entries):
        raise BuildError(
            "Spark handed the rows of one bucket to two tasks: is adaptive execution splitting partitions?"
        )
    return entries, _problems(found, key)


def _by_place(answer: Callable[[int, pa.Table], Answer]) -> Callable[[Batches], Batches]:
    def run(batches: Batches) -> Batches:
        received = [rows for batch in batches for rows in parcels.unwrap(batch) if rows.num_rows]
        if not received:
            return
        table = pa.Table.from_batches(received)
        received.clear()
        found = pc.unique(table[_PROBLEM]).drop_null().to_pylist()
        answers: list[Answer] = [{"problem": problem} for problem in found]
        if not found:
            places = table[PLACE].to_numpy()
            for place in np.unique(places):
                mine = table if places.min() == places.max() else table.filter(pa.array(places == place))
                answers.append(answer(int(place), mine.drop_columns([PLACE, _PROBLEM])))
        yield pa.record_batch({"answer": pa.array([json.dumps(answer) for answer in answers])})

    return run


def shard_answer(encoder: Encoder, rows: pa.Table, *, split: str, increment: int, bucket: int) -> Answer:
    """Makes and stores a shard of packed rows: its entry as plain data, or what is wrong with the rows."""
    arrays = [name for name in rows.schema.names if not name.startswith(_MATRIX)]
    if too_long := [name for name in arrays if rows[name].nbytes > _MAX_ARRAY_BYTES]:
        raise BuildError(
            f"split {split!r}, bucket {bucket}: more than 2 GiB in column {too_long[0]!r}; lower dataset.rows_per_shard"
        )
    if repeated := encoder.duplicates(rows):
        return {
            "duplicates": len(repeated),
            "examples": [str(key[0] if len(key) == 1 else key) for key in repeated[:_EXAMPLES]],
        }
    shard = encoder.encode(rows)
    encoder.store_shard(shard)
    return ShardEntry.of(shard, split=split, increment=increment, bucket=bucket).to_json()


def _as_bytes(matrix: NDArray[Any]) -> pa.Array:
    """The rows of a matrix as binary values, without a copy."""
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width * matrix.itemsize)
    return pa.BinaryArray.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(matrix)])


def _from_bytes(rows: pa.ChunkedArray, matrix: Matrix) -> NDArray[Any]:
    """The matrix again, ``[rows, width]``: not by way of one Arrow array, which holds 2 GiB at most."""
    views = [_view(chunk, matrix) for chunk in rows.chunks if len(chunk)]
    return views[0] if len(views) == 1 else np.concatenate(views)


def _view(rows: pa.BinaryArray, matrix: Matrix) -> NDArray[Any]:
    _, offsets, data = rows.buffers()
    start = int(np.frombuffer(offsets, np.int32)[rows.offset])
    flat = np.frombuffer(data, np.dtype(matrix.dtype), len(rows) * matrix.width, start)
    return flat.reshape(len(rows), matrix.width)


def _problems(answers: Sequence[Mapping[str, Any]], key: Sequence[str]) -> list[str]:
    problems = one_each(answer["problem"] for answer in answers if "problem" in answer)
    if duplicates := sum(answer.get("duplicates", 0) for answer in answers):
        examples = sorted(example for answer in answers for example in answer.get("examples", ()))[:_EXAMPLES]
        problems.append(repeated_keys(key, duplicates, examples))
    return problems


def _stored(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as shards keep them: timestamps in UTC, whatever the session's zone, and one NaN, whatever its bits."""
    kind = array.type
    element = kind.value_type if pa.types.is_list(kind) else kind
    if pa.types.is_timestamp(element) and element.tz:
        utc = pa.timestamp(element.unit, "UTC")
        return array.cast(pa.list_(kind.value_field.with_type(utc)) if pa.types.is_list(kind) else utc)
    if not pa.types.is_floating(element):
        return array
    numbers = (pc.list_flatten(array) if pa.types.is_list(kind) else array).drop_null().to_numpy()
    if not np.isnan(numbers).any():
        return array
    plain = ([_one_nan(x) for x in v] if isinstance(v, list) else _one_nan(v) for v in array.to_pylist())
    return pa.chunked_array([pa.array(plain, kind)])


def _one_nan(value: float | None) -> float | None:
    return math.nan if value != value else value  # NaN alone differs from itself
