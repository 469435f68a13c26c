"""Growing a dataset: of a later table only those rows are encoded that the base does not have, or has otherwise.

Every row of a dataset with a key carries a *fingerprint*, a hash of the source values that it was made from.
:mod:`~mltrain.features.compare` finds out what differs by keys and fingerprints:

- a row that the base lacks goes into a new increment, with shards of its own;
- a row with another fingerprint is encoded again, in the shard where it was;
- a row that the table has no longer leaves its shard.

All other shards stay as they are, and so do the fitted transforms.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import IntegerType, LongType, StructField, StructType

from mltrain.data.manifest import Manifest, ShardEntry, decode_statistics
from mltrain.data.matching import NONE, match
from mltrain.data.schema import FINGERPRINT
from mltrain.data.shard import blob_path, checksum, open_shard
from mltrain.data.verify import is_intact
from mltrain.errors import DamagedError, NotFoundError
from mltrain.features import parcels
from mltrain.features.census import SPLIT
from mltrain.features.compare import GONE, READ, SHARD, TASK, Growth, hashes_of
from mltrain.features.derived import Derived, append
from mltrain.features.inherit import FRESH
from mltrain.features.rows import Rows
from mltrain.features.scatter import HASH, PLACE, Answer, Encoder, Places, gather, pack, shard_answer, shard_hash
from mltrain.features.sql import Batches, column, map_in_arrow
from mltrain.storage import Store

_BROADCAST_ROWS = 1 << 20
_FEW_SHARDS = 16
_CHECKS = 16


def grow(
    rows: Rows, identity: pa.Schema, found: DataFrame, growth: Growth, base: Manifest, encoder: Encoder
) -> tuple[list[ShardEntry], list[str]]:
    """Encodes what changed, and stores it.

    Args:
        rows: those that were compared, with the position of the split and the fingerprint.
        identity: the key columns.
        found: from :func:`~mltrain.features.compare.differences`.
        growth: from :func:`~mltrain.features.compare.summary`.
        base: the dataset to grow from.
        encoder: with the base's transforms, and the places of the new increment.

    Returns:
        Entries of all shards that were made, and what tasks found wrong.
    """
    place = _place(encoder, growth)

    def packed(batches: Batches) -> Batches:
        return parcels.wrap(pack(encoder)(append(batch, {PLACE: place}) for batch in batches), PLACE)

    names = tuple(dict.fromkeys((*encoder.kept, *encoder.transforms.inputs)))
    wanted = found.where(f"{TASK} >= {READ}")
    if rows.files is None:
        joined = _joined(rows.frame, names, _unwrapped(wanted, identity, rows.frame.schema), identity, growth)
        travelling = map_in_arrow(joined, packed, parcels.schema(PLACE))
    else:
        numbered = wanted.withColumn(TASK, F.expr(f"{TASK} - {READ}"))
        values = {HASH: shard_hash(identity)}
        travelling = rows.map_chosen(numbered, TASK, (SHARD,), (*names, SPLIT), values, packed, parcels.schema(PLACE))
    leave = _leave(place, encoder.travelling(_kinds(rows, encoder.kept)))
    leaving = map_in_arrow(found.where(f"{TASK} = {GONE}"), leave, parcels.schema(PLACE))
    places = len(growth.touched) + encoder.places.count
    return gather(travelling.union(leaving), places, encoder.identity, _answer(encoder, growth, base))


def lost(store: Store, base: Manifest, *, read: bool) -> dict[int, str]:
    """Shards of the base that are not in storage, or not in their length: position in its index to path.

    Args:
        store: the root.
        base: the dataset.
        read: all of them are read, and their checksums compared.
    """

    def problem(shard: int) -> bool:
        name, size = base.index.blob_name(shard), int(base.index.size_bytes[shard])
        if read:
            return not is_intact(store, name, size)
        meta = store.head(blob_path(name))
        return meta is None or meta.size_bytes != size

    with ThreadPoolExecutor(_CHECKS) as pool:
        found = list(pool.map(problem, range(len(base.index))))
    return {shard: store.join(blob_path(base.index.blob_name(shard))) for shard, bad in enumerate(found) if bad}


def untouched(store: Store, base: Manifest, growth: Growth, lost: Collection[int]) -> Iterator[ShardEntry]:
    """The base's entries that stay as they are, with their statistics; without those of shards that are lost.

    Raises:
        DamagedError: the statistics are missing or damaged.
    """
    path = blob_path(base.statistics_blob.name)
    try:
        data = store.get(path)
    except NotFoundError as error:
        raise DamagedError(f"{store.join(path)} is missing; {FRESH} to repair it") from error
    if checksum(data) != base.statistics_blob.name:
        raise DamagedError(f"{store.join(path)} is damaged; {FRESH} to repair it")
    touched = {*growth.touched, *lost}
    for shard, (entry, mine) in enumerate(zip(base.entries(), decode_statistics(data), strict=True)):
        if shard not in touched:
            yield dataclasses.replace(entry, statistics=mine)


def advice(manifest: Manifest, rows_per_shard: int) -> str | None:
    """Every growth adds shards, and small ones: when a fresh build would have half as many it is time for one."""
    fresh = Places.plan({split.name: split.rows for split in manifest.splits}, rows_per_shard).count
    if len(manifest.index) < 2 * fresh + _FEW_SHARDS:
        return None
    return (
        f"the dataset has grown to {len(manifest.index)} shards, and a fresh build would have about {fresh}: {FRESH} "
        "when it is convenient, which fits the transforms anew, too"
    )


def _place(encoder: Encoder, growth: Growth) -> Derived:
    """Where a row goes: to the shard that has it, or to one of the new increment."""
    touched, new = np.array(growth.touched, np.int64), encoder.places.derived().arrow
    assert new is not None
    first = len(touched)

    def place(rows: pa.RecordBatch) -> pa.Array:
        places = new(rows).to_numpy() + np.int32(first)
        shards = rows.column(SHARD)
        known = shards.is_valid().to_numpy(zero_copy_only=False)
        places[known] = np.searchsorted(touched, shards.drop_null().to_numpy())
        return pa.array(places)

    return Derived("", (SPLIT, HASH, SHARD), place)


def _joined(
    frame: DataFrame, names: tuple[str, ...], found: DataFrame, identity: pa.Schema, growth: Growth
) -> DataFrame:
    """The rows of the table that were found, where Spark reads them."""
    if sum(growth.added) + growth.changed.total() <= _BROADCAST_ROWS:
        found = F.broadcast(found)
    # Joined under names of our own: a key's may hold anything.
    aliases = {name: f"__mltrain_key_{i}" for i, name in enumerate(identity.names)}
    keyed = [F.expr(column(name)).alias(alias) for name, alias in aliases.items()]
    read = frame.select(*(F.expr(column(name)) for name in names), *keyed, SPLIT)
    # By split too: a table without a rule against it may have a key once in each.
    by = [*aliases.values(), SPLIT]
    return read.join(found.select(*keyed, SPLIT, HASH, SHARD), by).drop(*aliases.values())


def _unwrapped(found: DataFrame, identity: pa.Schema, kinds: StructType) -> DataFrame:
    """Parcels of rows as rows: key, split, hash and shard."""
    fields = [StructField(name, kinds[name].dataType) for name in identity.names]
    fields += [StructField(SPLIT, IntegerType()), StructField(HASH, LongType()), StructField(SHARD, IntegerType())]
    names = [field.name for field in fields]

    def rows(batches: Batches) -> Batches:
        return (one.select(names) for batch in batches for one in parcels.unwrap(batch))

    return map_in_arrow(found, rows, StructType(fields))


def _kinds(rows: Rows, names: Sequence[str]) -> pa.Schema:
    """Columns as tasks receive them."""
    zone = "UTC" if rows.files else rows.frame.sparkSession.conf.get("spark.sql.session.timeZone")
    kinds = {name: rows.frame.schema[name].dataType for name in names}
    return pa.schema({name: to_arrow_type(kind, timezone=zone) for name, kind in kinds.items()})


def _leave(place: Derived, travelling: pa.Schema) -> Callable[[Batches], Batches]:
    """Rows that are gone on their way to their shard: of them only the key travels."""

    def rows(batches: Batches) -> Batches:
        for one in (one for batch in batches for one in parcels.unwrap(batch)):
            placed = append(one, {PLACE: place})
            there = {name: placed.column(name) for name in placed.schema.names if name in travelling.names}
            absent = {f.name: pa.nulls(one.num_rows, f.type) for f in travelling if f.name not in there}
            yield pa.record_batch({**there, **absent}).select(travelling.names).cast(travelling)

    return lambda batches: parcels.wrap(rows(batches), PLACE)


def _answer(encoder: Encoder, growth: Growth, base: Manifest) -> Callable[[int, pa.Table], Answer]:
    """What becomes of a shard that was touched, or of one of the new increment."""

    def answer(place: int, rows: pa.Table) -> Answer:
        if place >= len(growth.touched):
            split, bucket = encoder.places.locate(place - len(growth.touched))
            return shard_answer(encoder, rows, split=split, increment=len(base.split(split).buckets), bucket=bucket)
        entry = base.entry(growth.touched[place])
        rows = _together(encoder, base, entry, rows)
        if not len(rows):
            return {}
        return shard_answer(encoder, rows, split=entry.split, increment=entry.increment, bucket=entry.bucket)

    return answer


def _together(encoder: Encoder, base: Manifest, entry: ShardEntry, rows: pa.Table) -> pa.Table:
    """The packed rows of a touched shard: those that stay, and those that come in the place of others."""
    path = blob_path(entry.blob)
    with tempfile.TemporaryDirectory(prefix="mltrain-grow-") as folder:
        local = Path(folder) / "shard.arrow"
        try:
            encoder.store.download(path, local)
            shard = open_shard(local, base.schema, blob=entry.blob, size_bytes=entry.size_bytes)
        except (NotFoundError, DamagedError) as error:
            raise DamagedError(
                f"shard {encoder.store.join(path)} of dataset.base is missing or damaged ({error}); {FRESH}"
            ) from error
        before = encoder.packed_again(shard, rows.schema)
    key = list(encoder.identity)
    stays = match(rows.select(key), hashes_of(rows), before.select(key), hashes_of(before)) == NONE
    # Of a row that is gone only its key travels.
    comes = rows[FINGERPRINT].is_valid()
    return pa.concat_tables([before.filter(pa.array(stays)), rows.filter(comes)])
