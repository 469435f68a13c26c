"""What a version of a table changes in a dataset that was made of another one: the narrow pass of a growth.

Rows are read for their keys and fingerprints only, where tasks read files as numbered rows that a later pass finds
again, and go to the task of a range of key hashes. There they meet the keys and fingerprints that the base's shards
keep. Rows that are removed since the base's version come too, if it is known which files had them; otherwise all of the
table is compared, and what it lacks is gone.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mltrain.data import keys
from mltrain.data.layout import choose_buckets
from mltrain.data.manifest import Manifest
from mltrain.data.matching import NONE, match
from mltrain.data.partial import read_identities
from mltrain.data.schema import FINGERPRINT
from mltrain.errors import BuildError
from mltrain.features import census, parcels
from mltrain.features.census import SPLIT, Census, Check, Counted
from mltrain.features.derived import append
from mltrain.features.engine import rows_per_batch_at_most
from mltrain.features.problems import repeated_keys
from mltrain.features.rows import ROW, ROW_BITS, Rows
from mltrain.features.scatter import HASH, PLACE, SHARD_SEED, Places, shard_hash
from mltrain.features.sql import Batches, map_in_arrow
from mltrain.storage import Store

SHARD = "__mltrain_shard"
"""Column with the position in the base's index of the shard that has the row; null for a row that the base lacks."""
TASK = "__mltrain_task"
"""What a parcel of :func:`differences` holds: notes, rows that are gone, or what a task reads, from its number on."""
NOTES, GONE, READ = 0, 1, 2

_ROWS_PER_RANGE = 1 << 18
_EXAMPLES = 5


@dataclass(frozen=True)
class Ranges:
    """How rows meet the base's shards: the rows of one split within a range of key hashes are compared together.

    Attributes:
        store: the root.
        base: the dataset to grow from.
        identity: the key columns.
        places: the ranges, a power of two for each split.
        lost: positions in the base's index of shards that cannot be read: their rows count as new.
    """

    store: Store
    base: Manifest
    identity: pa.Schema
    places: Places
    lost: frozenset[int] = frozenset()

    @classmethod
    def of(cls, store: Store, base: Manifest, identity: pa.Schema, lost: frozenset[int]) -> "Ranges":
        """Ranges of about 2**18 rows, none narrower than the narrowest bucket."""
        names = tuple(split.name for split in base.splits)
        counts = tuple(min(max(s.buckets), choose_buckets(s.rows, _ROWS_PER_RANGE)) for s in base.splits)
        return cls(store, base, identity, Places(names, counts), lost)

    @property
    def travelling(self) -> pa.Schema:
        """Rows on their way to a range. One without a fingerprint is removed, one without a split is nobody's."""
        numbers = [(SPLIT, pa.int32()), (HASH, pa.int64()), (FINGERPRINT, pa.int64()), (ROW, pa.int64())]
        return pa.schema([*(pa.field(one.name, one.type) for one in self.identity), *numbers, (PLACE, pa.int32())])

    def shards(self, number: int) -> list[int]:
        """Positions in the base's index of the shards that share hashes with a range."""
        name, place = self.places.locate(number)
        ranges = self.places.buckets[self.places.splits.index(name)]
        where = self.base.shards(name)
        buckets = np.array(self.base.split(name).buckets, np.int64)[self.base.index.increment[where]]
        bucket = self.base.index.bucket[where].astype(np.int64)
        meets = (bucket * ranges < (place + 1) * buckets) & ((bucket + 1) * ranges > place * buckets)
        return [shard for shard in (where.start + np.flatnonzero(meets)).tolist() if shard not in self.lost]

    def known(self, number: int) -> pa.Table:
        """The base's rows in a range: key, split, hash, fingerprint, and the shard that has them."""
        fields = [(SPLIT, pa.int32()), (HASH, pa.int64()), (FINGERPRINT, pa.int64()), (SHARD, pa.int32())]
        tables = [pa.schema([*self.identity, *fields]).empty_table()]
        for shard in self.shards(number):
            rows = read_identities(self.store, self.base.schema, self.base.entry(shard))
            hashes = keys.hash_rows(rows.select(self.identity.names), domain=keys.SHARD_DOMAIN, seed=SHARD_SEED)
            columns = {name: rows[name].cast(self.identity.field(name).type) for name in self.identity.names}
            columns |= {SPLIT: np.full(len(rows), self.base.index.split[shard], np.int32), HASH: hashes.view(np.int64)}
            columns |= {FINGERPRINT: rows[FINGERPRINT], SHARD: np.full(len(rows), shard, np.int32)}
            tables.append(pa.table(columns).filter(pa.array(self.inside(number, hashes))).cast(tables[0].schema))
        return pa.concat_tables(tables).combine_chunks()

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
        changed: by position in the base's index, rows of shards that are encoded again.
        gone: likewise, rows that leave.
        census: of the table's rows.
        problems: keys that rows share.
    """

    added: tuple[int, ...]
    changed: Counter[int] = field(default_factory=Counter)
    gone: Counter[int] = field(default_factory=Counter)
    census: Census = field(default_factory=Census)
    problems: tuple[str, ...] = ()

    @property
    def touched(self) -> tuple[int, ...]:
        """Positions in the base's index of shards with rows that changed or are gone, ascending."""
        return tuple(sorted({*self.changed, *self.gone}))

    @property
    def nothing(self) -> bool:
        """The table's rows are those of the base."""
        return not any(self.added) and not self.touched

    def summary(self) -> dict[str, int]:
        """Rows that were added, changed and removed."""
        return {"added": sum(self.added), "changed": self.changed.total(), "removed": self.gone.total()}

    def places(self, base: Manifest, rows_per_shard: int) -> Places:
        """The buckets of the new increment."""
        rows = {split.name: added for split, added in zip(base.splits, self.added, strict=True)}
        return Places.plan(rows, rows_per_shard)

    def buckets(self, base: Manifest, places: Places) -> dict[str, tuple[int, ...]]:
        """By split the buckets of every increment; a split that gains no row has no new one."""
        new = zip(base.splits, self.added, places.buckets, strict=True)
        return {split.name: (*split.buckets, *([count] if added else [])) for split, added, count in new}


def differences(rows: Rows, removed: Rows | None, ranges: Ranges, checks: Sequence[Check]) -> DataFrame:
    """The rows that the table and the base do not have alike, as parcels by :data:`TASK`, and notes.

    Args:
        rows: those that are compared, with the position of the split and the fingerprint.
        removed: rows of the base's version that are not among those of the table that were left out; None if ``rows``
            are all that the table has.
        ranges: of the base.
        checks: what no row may be.
    """
    found = _sent(rows, ranges, checks, removed=False)
    if removed is not None:
        found = found.union(_sent(removed, ranges, (), removed=True))
    spark = rows.frame.sparkSession
    # The last place is that of notes.
    placed = found.union(_nobodys(spark, ranges)).repartitionById(ranges.places.count + 1, F.col(PLACE))
    return map_in_arrow(placed, _compare(ranges, whole=removed is None), parcels.schema(TASK))


def summary(found: DataFrame, ranges: Ranges, checks: int, *, whole: bool) -> Growth:
    """What :func:`differences` found.

    Args:
        found: from there.
        ranges: of the base.
        checks: how many there were.
        whole: all of the table was compared.
    """
    with rows_per_batch_at_most(found.sparkSession, parcels.PER_BATCH):
        said = [json.loads(note) for note in parcels.notes(found.where(f"{TASK} = {NOTES}").toArrow())]
    counts: dict[str, Counter[int]] = {what: Counter() for what in ("added", "changed", "gone")}
    read, removed = Census(bad=(0,) * checks), Census()
    for note in said:
        for what, counter in counts.items():
            counter.update({int(place): n for place, n in note.get(what, {}).items()})
        read += Census.from_json(note["read"]) if "read" in note else Census(bad=(0,) * checks)
        removed += Census.from_json(note["removed"]) if "removed" in note else Census()
    if not whole:
        read += _less(ranges.base, removed, checks)
    repeated = sum(note.get("repeated", 0) for note in said)
    examples = sorted(example for note in said for example in note.get("examples", ()))[:_EXAMPLES]
    return Growth(
        added=tuple(counts["added"][split] for split in range(len(ranges.base.splits))),
        changed=counts["changed"],
        gone=counts["gone"],
        census=read,
        problems=(repeated_keys(ranges.identity.names, repeated, examples),) if repeated else (),
    )


def _less(base: Manifest, removed: Census, checks: int) -> Census:
    """The base's rows without those that were removed since."""
    left = {}
    for place, split in enumerate(base.splits):
        gone = removed.splits.get(place, Counted())
        left[place] = Counted(split.rows - gone.rows, keys.add_multisets(split.multiset, -gone.multiset))
    return Census(left, (0,) * checks)


def _sent(rows: Rows, ranges: Ranges, checks: Sequence[Check], *, removed: bool) -> DataFrame:
    """Rows on their way to their ranges, and their census on its way to the last place."""
    columns = (*ranges.identity.names, SPLIT, *(() if removed else (FINGERPRINT, ROW)))
    values = {HASH: shard_hash(ranges.identity), **dict(census.columns(ranges.identity, checks))}
    place, travelling, end = ranges.places.derived(), ranges.travelling, ranges.places.count

    def run(batches: Batches) -> Batches:
        counted = Census(bad=(0,) * len(checks))

        def narrow() -> Batches:
            nonlocal counted
            for batch in batches:
                counted += census.count(batch, len(checks))
                # Those without a split or a key are counted, and refused.
                found = batch.select([name for name in travelling.names if name in batch.schema.names]).drop_null()
                for name in (FINGERPRINT, ROW) if removed else ():
                    found = found.append_column(name, pa.nulls(found.num_rows, pa.int64()))
                if found.num_rows:
                    yield append(found, {PLACE: place}).select(travelling.names).cast(travelling)

        yield from parcels.wrap(narrow(), PLACE)
        yield parcels.note(PLACE, end, json.dumps({"removed" if removed else "read": counted.to_json()}))

    return rows.map(columns, values, run, parcels.schema(PLACE))


def _nobodys(spark: SparkSession, ranges: Ranges) -> DataFrame:
    """A row of nobody's for every range, so that one in which the table has no row is compared, too."""
    nulls = {field.name: pa.nulls(ranges.places.count, field.type) for field in ranges.travelling}
    rows = pa.record_batch({**nulls, PLACE: pa.array(range(ranges.places.count), pa.int32())})
    sent = [row for batch in parcels.wrap(iter([rows]), PLACE) for row in batch.to_pylist()]
    return spark.createDataFrame([tuple(row.values()) for row in sent], parcels.schema(PLACE))


def _compare(ranges: Ranges, *, whole: bool) -> Callable[[Batches], Batches]:
    def run(batches: Batches) -> Batches:
        received: dict[int, list[pa.RecordBatch]] = {}
        for batch in batches:
            for i, place in enumerate(batch.column(PLACE).to_pylist()):
                if place == ranges.places.count:
                    yield from (parcels.note(TASK, NOTES, note) for note in parcels.notes(batch.slice(i, 1)))
                else:
                    received.setdefault(place, []).extend(parcels.unwrap(batch.slice(i, 1)))
        for place, rows in received.items():
            found = pa.Table.from_batches(rows, ranges.travelling)
            yield from _range(ranges, place, found, whole=whole)

    return run


def _range(ranges: Ranges, place: int, rows: pa.Table, *, whole: bool) -> Batches:
    """What is different in a range."""
    somebodys = rows.filter(rows[SPLIT].is_valid())
    if len(somebodys) != len(rows) - 1:
        raise BuildError("Spark handed the rows of one range to two tasks: is adaptive execution splitting partitions?")
    if not whole and not len(somebodys):
        return
    there = somebodys[FINGERPRINT].is_valid()
    known, table, removed = ranges.known(place), somebodys.filter(there), somebodys.filter(pc.invert(there))
    found = differing(known, table, None if whole else removed, list(ranges.identity.names))
    yield parcels.note(TASK, NOTES, json.dumps(found.counts()))
    tasks = pc.add(pc.shift_right(found.table[ROW], ROW_BITS), READ).cast(pa.int32())
    gone = pa.array(np.full(len(found.gone), GONE, np.int32))
    for part, numbers in ((found.table, tasks), (found.gone, gone)):
        if len(part):
            yield from parcels.wrap(iter(part.append_column(TASK, numbers).to_batches()), TASK)


@dataclass(frozen=True)
class _Differing:
    """What table and base do not have alike in a range.

    Attributes:
        table: rows of the table, with :data:`SHARD`.
        gone: rows that the base has and the table has no longer.
        repeated: keys that several rows of the table have.
    """

    table: pa.Table
    gone: pa.Table
    repeated: set[tuple[Any, ...]]

    def counts(self) -> dict[str, Any]:
        """For a note."""
        new = pc.is_null(self.table[SHARD])
        counts = {
            "added": _count(self.table.filter(new)[SPLIT]),
            "changed": _count(self.table.filter(pc.invert(new))[SHARD]),
            "gone": _count(self.gone[SHARD]),
        }
        if not self.repeated:
            return counts
        shown = sorted(str(key[0] if len(key) == 1 else key) for key in self.repeated)
        return {**counts, "repeated": len(shown), "examples": shown[:_EXAMPLES]}


def differing(known: pa.Table, table: pa.Table, removed: pa.Table | None, key: list[str]) -> _Differing:
    """The rows of a range that the table and the base do not have alike.

    Args:
        known: the base's.
        table: those that were read of the table.
        removed: rows of the base that are not in files that stay; None if all of the table was read.
        key: names of the key columns.
    """
    places = match(known.select(key), hashes_of(known), table.select(key), hashes_of(table))
    leaves = np.ones(len(known), np.bool_)
    if removed is not None:
        out = match(known.select(key), hashes_of(known), removed.select(key), hashes_of(removed))
        leaves = np.isin(np.arange(len(known)), out)
    met = np.flatnonzero(places != NONE)
    # Of a row in a file that was left out, or of another one that was read.
    stays = table.select(key).take(pa.array(met[~leaves[places[met]]]))
    repeated = {*zip(*(stays[name].to_pylist() for name in key), strict=True)}
    repeated |= {*keys.duplicates(table.select(key), hashes_of(table))}
    same = places != NONE
    leaves[places[same]] = False
    stored = known[FINGERPRINT].to_numpy()[places[same]]
    shards = known[SHARD].combine_chunks().take(pa.array(places, mask=~same))
    same[same] = stored == table[FINGERPRINT].to_numpy()[same]
    narrow = [*key, SPLIT, HASH, SHARD, ROW]
    changed = table.append_column(SHARD, shards).filter(pa.array(~same)).select(narrow)
    gone = known.filter(pa.array(leaves)).append_column(ROW, pa.array(np.zeros(leaves.sum(), np.int64)))
    return _Differing(changed, gone.select(narrow), repeated)


def _count(values: pa.ChunkedArray) -> dict[str, int]:
    return {str(one["values"]): one["counts"] for one in pc.value_counts(values).to_pylist()}


def hashes_of(table: pa.Table) -> keys.Hashes:
    """The column :data:`~mltrain.features.scatter.HASH`, ``[rows]``."""
    hashes: keys.Hashes = table[HASH].to_numpy().view(np.uint64)
    return hashes
