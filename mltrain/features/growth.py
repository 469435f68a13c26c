"""Growing a dataset: of a later table only those rows are encoded that the base does not have, or has otherwise.

Every row of a dataset with a key carries a *fingerprint*, a hash of the source values that it was made from. A narrow
pass over the table (keys and fingerprints, hashed by Spark) finds its rows in the base's shards by key:

- a row that the base lacks goes into a new increment, with shards of its own;
- a row with another fingerprint is encoded again, in the shard where it was;
- a row that the table has no longer leaves its shard.

All other shards stay as they are, and so do the fitted transforms.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, IntegerType, LongType, StructField, StructType

from mltrain.data import keys
from mltrain.data.layout import choose_buckets
from mltrain.data.manifest import Manifest, ShardEntry, decode_statistics
from mltrain.data.matching import NONE, match
from mltrain.data.partial import read_identities
from mltrain.data.schema import FINGERPRINT
from mltrain.data.shard import blob_path, checksum, open_shard
from mltrain.errors import BuildError, DamagedError, NotFoundError
from mltrain.features.census import SPLIT
from mltrain.features.inherit import FRESH
from mltrain.features.scatter import (
    HASH,
    PLACE,
    SHARD_SEED,
    Answer,
    Encoder,
    Places,
    gather,
    hashed,
    pack,
    shard_answer,
)
from mltrain.features.sql import Batches, column, map_in_arrow
from mltrain.storage import Store

SHARD = "__mltrain_shard"
"""Column with the position in the base's index of the shard that has the row; null for a row that the base lacks."""
GONE = "__mltrain_gone"
"""Boolean column: the base has the row and the table has it no longer."""

_ROWS_PER_RANGE = 1 << 18
_BROADCAST_ROWS = 1 << 20
_FEW_SHARDS = 16


@dataclass(frozen=True)
class Ranges:
    """How rows meet the base's shards: the rows of one split within a range of key hashes are compared together.

    Attributes:
        store: the root.
        base: the dataset to grow from.
        places: the ranges, a power of two for each split.
    """

    store: Store
    base: Manifest
    places: Places

    @classmethod
    def of(cls, store: Store, base: Manifest) -> "Ranges":
        """Ranges of about 2**18 rows, none narrower than the narrowest bucket."""
        names = tuple(split.name for split in base.splits)
        counts = tuple(min(max(s.buckets), choose_buckets(s.rows, _ROWS_PER_RANGE)) for s in base.splits)
        return cls(store, base, Places(names, counts))

    def shards(self, number: int) -> list[int]:
        """Positions in the base's index of the shards that share hashes with a range."""
        name, place = self.places.locate(number)
        ranges = self.places.buckets[self.places.splits.index(name)]
        where = self.base.shards(name)
        buckets = np.array(self.base.split(name).buckets, np.int64)[self.base.index.increment[where]]
        bucket = self.base.index.bucket[where].astype(np.int64)
        meets = (bucket * ranges < (place + 1) * buckets) & ((bucket + 1) * ranges > place * buckets)
        return [where.start + int(shard) for shard in np.flatnonzero(meets)]

    def inside(self, number: int, hashes: keys.Hashes) -> NDArray[np.bool_]:
        """Which hashes are in a range."""
        name, place = self.places.locate(number)
        bits = self.places.buckets[self.places.splits.index(name)].bit_length() - 1
        return hashes >> np.uint64(64 - bits) == place if bits else np.ones(len(hashes), np.bool_)


@dataclass(frozen=True)
class Growth:
    """What a table changes in its base.

    Attributes:
        added: by split, rows that the base lacks.
        touched: positions in the base's index of shards with rows that changed or are gone, ascending.
        changed: rows that are encoded again.
        gone: rows that leave their shard.
    """

    added: tuple[int, ...]
    touched: tuple[int, ...]
    changed: int
    gone: int

    @property
    def nothing(self) -> bool:
        """The table's rows are those of the base."""
        return not any(self.added) and not self.touched

    @property
    def encoded(self) -> int:
        """Rows of the table that are encoded, besides those that share a shard with a changed one."""
        return sum(self.added) + self.changed

    def places(self, base: Manifest, rows_per_shard: int) -> Places:
        """The buckets of the new increment."""
        rows = {split.name: added for split, added in zip(base.splits, self.added, strict=True)}
        return Places.plan(rows, rows_per_shard)

    def buckets(self, base: Manifest, places: Places) -> dict[str, tuple[int, ...]]:
        """By split the buckets of every increment; a split that gains no row has no new one."""
        new = zip(base.splits, self.added, places.buckets, strict=True)
        return {split.name: (*split.buckets, *([count] if added else [])) for split, added, count in new}


def differences(frame: DataFrame, ranges: Ranges, identity: pa.Schema) -> DataFrame:
    """The rows that the table and the base do not have alike: key, split, hash, :data:`SHARD`, :data:`GONE`.

    Args:
        frame: the table, with the position of the split and the fingerprint of each row.
        ranges: of the base.
        identity: the key columns.
    """
    key = [F.expr(column(name)) for name in identity.names]
    narrow = frame.select(*key, SPLIT, FINGERPRINT, hashed(identity)).withColumn(PLACE, F.expr(ranges.places.sql()))
    # A row of nobody's goes to every range, so that one in which the table has no row is compared too.
    fields = {field.name: field.dataType for field in narrow.schema}
    everywhere = frame.sparkSession.range(ranges.places.count).select(
        *(F.lit(None).cast(kind).alias(name) for name, kind in fields.items() if name != PLACE),
        F.col("id").cast("int").alias(PLACE),
    )
    placed = narrow.union(everywhere).repartitionById(ranges.places.count, F.col(PLACE))
    kept = [StructField(name, fields[name]) for name in identity.names]
    found = [StructField(SPLIT, IntegerType()), StructField(HASH, LongType())]
    found += [StructField(SHARD, IntegerType()), StructField(GONE, BooleanType())]
    return map_in_arrow(placed, _compare(ranges, identity), StructType([*kept, *found]))


def summary(found: DataFrame, base: Manifest) -> Growth:
    """What :func:`differences` found."""
    counts = found.groupBy(SPLIT, SHARD, GONE).count().collect()
    added = [0] * len(base.splits)
    for row in counts:
        if row[SHARD] is None:
            added[row[SPLIT]] += row["count"]
    known = [row for row in counts if row[SHARD] is not None]
    return Growth(
        added=tuple(added),
        touched=tuple(sorted({int(row[SHARD]) for row in known})),
        changed=sum(row["count"] for row in known if not row[GONE]),
        gone=sum(row["count"] for row in known if row[GONE]),
    )


def grow(
    frame: DataFrame, found: DataFrame, growth: Growth, base: Manifest, encoder: Encoder
) -> tuple[list[ShardEntry], list[str]]:
    """Encodes what changed, and stores it.

    Args:
        frame: the table, with the position of the split and the fingerprint of each row.
        found: from :func:`differences`.
        growth: from :func:`summary`.
        base: the dataset to grow from.
        encoder: with the base's transforms, and the places of the new increment.

    Returns:
        Entries of all shards that were made, and what tasks found wrong.
    """
    first = len(growth.touched)
    touched = frame.sparkSession.createDataFrame(
        [(shard, place) for place, shard in enumerate(growth.touched)], f"{SHARD} int, {PLACE} int"
    )
    own = found.join(F.broadcast(touched), SHARD, "left").withColumn(
        PLACE, F.expr(f"coalesce({PLACE}, {first} + {encoder.places.sql()})")
    )
    wanted = own.where(f"NOT {GONE}")
    if growth.encoded <= _BROADCAST_ROWS:
        wanted = F.broadcast(wanted)
    travelling = encoder.travels_as(frame.schema)
    packed = map_in_arrow(_joined(frame, wanted, encoder), pack(encoder), travelling)
    leaving = own.where(GONE).select(
        *(
            (F.expr(column(field.name)) if field.name in own.columns else F.lit(None).cast(field.dataType)).alias(
                field.name
            )
            for field in travelling
        )
    )
    answer = _answer(encoder, growth, base)
    return gather(packed.union(leaving), first + encoder.places.count, encoder.identity, answer)


def untouched(store: Store, base: Manifest, growth: Growth) -> Iterator[ShardEntry]:
    """The base's entries that stay as they are, with their statistics.

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
    touched = set(growth.touched)
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


def _joined(frame: DataFrame, found: DataFrame, encoder: Encoder) -> DataFrame:
    """The rows of the table that were found, with their place and hash."""
    # Joined under names of our own: a key's may hold anything.
    aliases = {name: f"__mltrain_key_{i}" for i, name in enumerate(encoder.identity)}
    keyed = [F.expr(column(name)).alias(alias) for name, alias in aliases.items()]
    names = dict.fromkeys((*encoder.kept, *encoder.transforms.inputs))
    read = frame.select(*(F.expr(column(name)) for name in names), *keyed, SPLIT)
    # By split too: a table without a rule against it may have a key once in each.
    by = [*aliases.values(), SPLIT]
    return read.join(found.select(*keyed, SPLIT, HASH, PLACE), by).drop(*by)


def _compare(ranges: Ranges, identity: pa.Schema) -> Callable[[Batches], Batches]:
    def run(batches: Batches) -> Batches:
        numbers = [(SPLIT, pa.int32()), (FINGERPRINT, pa.int64()), (HASH, pa.int64()), (PLACE, pa.int32())]
        read = pa.schema([*identity, *numbers])
        received = [batch.cast(read) for batch in batches if batch.num_rows]
        if not received:
            return
        table = pa.Table.from_batches(received)
        places = table[PLACE].to_numpy()
        for number in np.unique(places):
            mine = table if places.min() == places.max() else table.filter(pa.array(places == number))
            rows = mine.filter(mine[SPLIT].is_valid()).drop_columns(PLACE)
            if len(rows) != len(mine) - 1:
                raise BuildError(
                    "Spark handed the rows of one range to two tasks: is adaptive execution splitting partitions?"
                )
            yield from _differing(ranges, int(number), rows, identity)

    return run


def _differing(ranges: Ranges, number: int, table: pa.Table, identity: pa.Schema) -> Batches:
    """The rows of a range that table and base do not have alike."""
    known = _known(ranges, number, identity)
    key = list(identity.names)
    places = match(known.select(key), _hashes(known), table.select(key), _hashes(table))
    # Keys that occur twice are refused where shards are made: they go there as new rows.
    places[_repeated(table, key)] = NONE
    same = places != NONE
    stored = known[FINGERPRINT].to_numpy()[places[same]]
    same[same] = stored == table[FINGERPRINT].to_numpy()[same]
    gone = np.ones(len(known), np.bool_)
    gone[places[places != NONE]] = False
    shards = known[SHARD].combine_chunks().take(pa.array(places, mask=places == NONE))
    yield from _rows(table.append_column(SHARD, shards).filter(pa.array(~same)), key, gone=False)
    yield from _rows(known.filter(pa.array(gone)), key, gone=True)


def _known(ranges: Ranges, number: int, identity: pa.Schema) -> pa.Table:
    """The base's rows in a range: key, split, fingerprint, hash, and the shard that has them."""
    fields = [(SPLIT, pa.int32()), (FINGERPRINT, pa.int64()), (HASH, pa.int64()), (SHARD, pa.int32())]
    tables = [pa.schema([*identity, *fields]).empty_table()]
    for shard in ranges.shards(number):
        rows = read_identities(ranges.store, ranges.base.schema, ranges.base.entry(shard))
        hashes = keys.hash_rows(rows.select(identity.names), domain=keys.SHARD_DOMAIN, seed=SHARD_SEED)
        columns = {name: rows[name].cast(identity.field(name).type) for name in identity.names}
        columns |= {SPLIT: np.full(len(rows), ranges.base.index.split[shard], np.int32), FINGERPRINT: rows[FINGERPRINT]}
        columns |= {HASH: hashes.view(np.int64), SHARD: np.full(len(rows), shard, np.int32)}
        tables.append(pa.table(columns).filter(pa.array(ranges.inside(number, hashes))).cast(tables[0].schema))
    return pa.concat_tables(tables).combine_chunks()


def _hashes(table: pa.Table) -> keys.Hashes:
    hashes: keys.Hashes = table[HASH].to_numpy().view(np.uint64)
    return hashes


def _repeated(table: pa.Table, key: list[str]) -> list[int]:
    """Rows whose key is not theirs alone."""
    twice = set(keys.duplicates(table.select(key), _hashes(table)))
    if not twice:
        return []
    values = zip(*(table[name].to_pylist() for name in key), strict=True)
    return [row for row, value in enumerate(values) if value in twice]


def _rows(table: pa.Table, key: list[str], *, gone: bool) -> Batches:
    wanted = table.select([*key, SPLIT, HASH, SHARD]).append_column(GONE, pa.repeat(pa.scalar(gone), len(table)))
    return iter(wanted.combine_chunks().to_batches())


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
    stays = match(rows.select(key), _hashes(rows), before.select(key), _hashes(before)) == NONE
    # Of a row that is gone only its key travels.
    comes = rows[FINGERPRINT].is_valid()
    return pa.concat_tables([before.filter(pa.array(stays)), rows.filter(comes)])
