"""Rows to shards: every row goes to the task of its bucket, which transforms, sorts, encodes and stores it.

Tasks write straight to storage, under names that are hashes of content, so a repeated or speculative attempt writes the
same object. A task answers a row per shard; only answers of attempts that Spark counted reach the manifest.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.data import keys
from mltrain.data.layout import choose_buckets
from mltrain.data.manifest import ShardEntry
from mltrain.data.schema import Schema
from mltrain.data.shard import EncodedShard, blob_path, write_shard
from mltrain.errors import BuildError, TableError
from mltrain.features.census import SPLIT
from mltrain.features.sql import column
from mltrain.storage import Store
from mltrain.transforms import FittedTransforms

HASH = "__mltrain_hash"
PLACE = "__mltrain_place"
SHARD_SEED = 0
"""Of the hash that says where a row lies. It is not the split's seed: a new split keeps rows in their buckets."""

_EXAMPLES = 5


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

    def sql(self) -> str:
        """Spark SQL for a row's partition: the top bits of its hash, after the places of earlier splits."""
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

    def encode(self, rows: pa.RecordBatch) -> EncodedShard:
        """Rows in any order become a shard.

        Raises:
            TableError: a value that cannot be represented.
        """
        identity = rows.select(list(self.identity))
        hashes = rows.column(HASH).to_numpy().view(np.uint64)
        made = self.transforms.apply(rows)
        order = pa.array(keys.sort_order(identity, hashes))
        columns = {field.name: made.column(field.name).take(order) for field in made.schema}
        columns |= {carried.name: _utc(rows.column(carried.name)).take(order) for carried in self.schema.carried}
        return write_shard(columns, self.schema, identity=None if self.keyed else identity)

    def duplicates(self, rows: pa.RecordBatch) -> list[tuple[object, ...]]:
        """Keys that more than one of the rows have. Rows of one key are always in one bucket."""
        if not self.keyed:
            return []
        return keys.duplicates(rows.select(list(self.identity)), rows.column(HASH).to_numpy().view(np.uint64))

    def store_shard(self, shard: EncodedShard) -> None:
        """Puts a shard where its content says, unless it is there already."""
        path, data = blob_path(shard.blob), memoryview(shard.buffer)
        if self.store.put_if_absent(path, data):
            return
        there = self.store.head(path)
        if there is None or there.size_bytes != shard.size_bytes:
            self.store.put(path, data)


def scatter(
    frame: DataFrame, identity: pa.Schema, encoder: Encoder, carried: Sequence[str]
) -> tuple[list[ShardEntry], list[str]]:
    """Builds and stores all shards.

    Args:
        frame: source columns, those of ``identity``, and the split's position.
        identity: the columns that tell rows apart.
        encoder: what to do with a shard's rows.
        carried: source columns that shards keep as they are.

    Returns:
        An entry for every shard, and what tasks found wrong with the table: duplicate keys, values that cannot be
        represented. Where they found something, entries are missing.

    Raises:
        BuildError: two tasks answered for one bucket.
    """
    names = dict.fromkeys((*identity.names, *encoder.transforms.inputs, *carried))
    placed = frame.select(
        *(F.col(column(name)) for name in names),
        SPLIT,
        F.expr(keys.hash_sql(identity, domain=keys.SHARD_DOMAIN, seed=SHARD_SEED)).alias(HASH),
    )
    placed = placed.withColumn(PLACE, F.expr(encoder.places.sql())).drop(SPLIT)
    answers = (
        placed.repartitionById(encoder.places.count, F.col(PLACE)).mapInArrow(_task(encoder), "answer string").toArrow()
    )
    found = [json.loads(answer) for answer in answers["answer"].to_pylist()]
    entries = [ShardEntry.from_json(answer) for answer in found if "blob" in answer]
    places = {(entry.split, entry.bucket) for entry in entries}
    if len(places) != len(entries):
        raise BuildError(
            "Spark handed the rows of one bucket to two tasks: is adaptive execution splitting partitions?"
        )
    return entries, _problems(found, encoder.identity)


def _task(encoder: Encoder) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        received = [batch for batch in batches if batch.num_rows]
        if not received:
            return
        table = pa.Table.from_batches(received)
        received.clear()
        places = table[PLACE].to_numpy()
        for place in np.unique(places):
            mine = table if len(np.unique(places)) == 1 else table.filter(pa.array(places == place))
            answer = _shard(encoder, int(place), mine)
            yield pa.record_batch({"answer": pa.array([json.dumps(answer)])})

    return run


def _shard(encoder: Encoder, place: int, table: pa.Table) -> dict[str, object]:
    split, bucket = encoder.places.locate(place)
    rows = table.drop_columns([PLACE]).combine_chunks().to_batches()
    if len(rows) != 1:
        raise BuildError(
            f"split {split!r}, bucket {bucket}: more than 2 GiB in one column; lower dataset.rows_per_shard"
        )
    if repeated := encoder.duplicates(rows[0]):
        return {
            "duplicates": len(repeated),
            "examples": [str(key[0] if len(key) == 1 else key) for key in repeated[:_EXAMPLES]],
        }
    try:
        shard = encoder.encode(rows[0])
    except TableError as error:
        return {"problem": str(error)}
    encoder.store_shard(shard)
    return ShardEntry.of(shard, split=split, increment=0, bucket=bucket).to_json()


def _problems(answers: Sequence[Mapping[str, Any]], key: Sequence[str]) -> list[str]:
    problems = sorted({answer["problem"] for answer in answers if "problem" in answer})
    if duplicates := sum(answer.get("duplicates", 0) for answer in answers):
        examples = sorted(example for answer in answers for example in answer.get("examples", ()))[:_EXAMPLES]
        problems.append(
            f"key {', '.join(key)}: {duplicates} values occur more than once, among them {', '.join(examples)}; "
            "remove the duplicates, or add a column to dataset.key"
        )
    return problems


def _utc(array: pa.Array) -> pa.Array:
    """Timestamps in UTC, whatever the session's zone: the instant is the same."""
    kind = array.type
    return array.cast(pa.timestamp(kind.unit, "UTC")) if pa.types.is_timestamp(kind) and kind.tz else array
