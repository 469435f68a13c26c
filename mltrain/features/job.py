"""``dataset build``: from one version of a Delta table to a published dataset."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from mltrain.config import DatasetFile, DatasetSpec
from mltrain.data import keys
from mltrain.data.manifest import Manifest, ShardEntry, assemble
from mltrain.data.publish import Build
from mltrain.data.schema import FINGERPRINT
from mltrain.data.shard import blob_path
from mltrain.errors import BuildError, DamagedError, RequestError, TableError
from mltrain.features import census, growth, inherit, provenance, splits, statistics
from mltrain.features.census import SPLIT, Census
from mltrain.features.compare import Ranges
from mltrain.features.derived import HASH_BITS, Derived, below, constant
from mltrain.features.early import refuse_early
from mltrain.features.engine import arrow_batches, engine_errors, few_scan_tasks, session
from mltrain.features.files import list_files
from mltrain.features.fingerprint import fingerprint
from mltrain.features.fit import dataset_schema, fit
from mltrain.features.inherit import Base
from mltrain.features.numbering import numbered
from mltrain.features.parquet import UnreadableError, unreadable
from mltrain.features.plan import Plan, plan
from mltrain.features.problems import refuse
from mltrain.features.rows import Rows
from mltrain.features.scatter import Encoder, Places, scatter
from mltrain.features.since import Since, since
from mltrain.features.statistics import Statistics
from mltrain.features.table import Source, open_table
from mltrain.features.warnings import warnings
from mltrain.storage import Store, open_store
from mltrain.transforms import FittedTransforms

log = logging.getLogger(__name__)

MEDIAN_ROWS = 1 << 16
"""Medians are exact in tables of up to this many rows; beyond, of about as many rows, chosen by key hash, those that
are in the training split count."""
_MEDIAN_VALUES = 1 << 24
_MEDIAN_DOMAIN = "mltrain/median"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        name: the dataset's name.
        digest: its identity.
        build_id: this build; its provenance is ``builds/<id>.json``.
        uri: where the dataset is.
        rows: rows of each split.
        shards: number of shards.
        seconds: wall time, with the start of Spark where it had to be started.
        reused: a dataset with this digest was there already.
        base: digest of the dataset that it grew from.
        changes: rows that were added, changed and removed since the base; None without a base, or when nothing had to
            be looked at.
        advice: what would make the dataset better, if something would.
        warnings: what its owner should look at, although it is what the file says.
    """

    name: str
    digest: str
    build_id: str
    uri: str
    rows: Mapping[str, int]
    shards: int
    seconds: float
    reused: bool
    base: str | None = None
    changes: Mapping[str, int] | None = None
    advice: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Made:
    """A dataset whose shards are in storage, and what goes there with its manifest."""

    manifest: Manifest
    blobs: Mapping[str, pa.Buffer]
    details: Mapping[str, Any]
    changes: Mapping[str, int] | None = None
    advice: str | None = None


def build(file: DatasetFile, *, spark: SparkSession | None = None, progress: Progress | None = None) -> BuildReport:
    """Builds a dataset and points its name at it. Nothing is visible before the end; equal rows give equal digests.

    Args:
        file: the resolved dataset file.
        spark: the session to use; by default the active one, the submitter's, or a local one that ends with the build.
        progress: told what is being done.

    Raises:
        RequestError: ``file`` is no dataset file.
        TableError: the table cannot become this dataset; every reason that was found is named.
        StorageAccessError: the root cannot be written, or the table cannot be read.
        BuildError: what was built is not what the table holds.
    """
    if not isinstance(file, DatasetFile):
        raise RequestError(
            f"build takes a dataset file, as config.load_dataset(path) gives it, not {type(file).__name__}"
        )
    began = time.monotonic()
    store = open_store(file.root, deadline_s=file.storage.deadline_s)
    store.check_writable()
    # A session of another thread is not the active one of this, but it is somebody's.
    mine = spark is None and SparkContext._active_spark_context is None
    if mine:
        refuse_early(file.dataset)
    active = spark or session(f"mltrain dataset build {file.name}")
    try:
        with engine_errors():
            return _Build(file, store, active, progress or log.info, began).run()
    finally:
        if mine:
            active.stop()


class _Build:
    """One build, step by step."""

    def __init__(self, file: DatasetFile, store: Store, spark: SparkSession, progress: Progress, began: float) -> None:
        self.file, self.store, self.spark, self.progress = file, store, spark, progress
        self.started, self.began = datetime.now(UTC), began
        self.id = f"{file.name}-{self.started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"

    def run(self) -> BuildReport:
        spec = self.file.dataset
        source = open_table(self.spark, spec.table, version=spec.version, timestamp=spec.timestamp)
        subject = source.described
        planned, problems = plan(spec, source.schema, source.unreadable)
        refuse(subject, problems)
        recipe = provenance.recipe(spec, source)
        base = inherit.resolve(self.store, spec.base) if spec.base else None
        self.progress(f"checking what there is of dataset {self.file.name}")
        if (manifest := provenance.same_build(self.store, self.file.name, recipe, base)) is not None:
            self.progress(f"dataset {self.file.name} is up to date")
            return self._report(manifest, base, reused=True)
        sizes = {name: feature.size for name, feature in planned.features.items() if feature.size}
        with (
            Build.start(self.store, self.file.name, self.id, self.progress) as build,
            arrow_batches(self.spark, source.schema, sizes),
            few_scan_tasks(self.spark),
        ):
            made = self._grown(source, planned, base) if base else self._fresh(source, planned)
            record = provenance.record(self.file, source, recipe, base, self.started, self.spark.version)
            reused = self.store.exists(made.manifest.path)
            manifest = build.publish(made.manifest, made.blobs, {**record, **made.details})
        return self._report(manifest, base, reused=reused, changes=made.changes, advice=made.advice)

    def _fresh(self, source: Source, planned: Plan) -> _Made:
        spec, subject = self.file.dataset, source.described
        self.progress(f"reading {subject} and fitting {len(planned.features)} features")
        table, names = self._rows(source, planned)
        sample = _sample(source, planned, len(planned.wanted().samples))
        found, table, files = self._statistics(source, table, planned, names.index("train"), sample)
        counted = found.census
        rows = _rows_per_split(names, counted)
        empty = _empty_splits(names, rows, counted)
        refuse(subject, [*counted.problems(planned.checks), *_why_empty(table.frame, planned, empty)])
        transforms, problems = fit(planned, found)
        refuse(subject, problems)
        places = Places.plan(rows, spec.rows_per_shard)
        refuse(subject, places.problems(rows, spec.rows_per_shard))
        self.progress(f"writing {counted.rows:,} rows to {places.count} shards")
        schema = replace(dataset_schema(transforms, planned, spec.key), fingerprints=planned.keyed)
        if planned.keyed:
            table = _fingerprinted(table, planned, transforms)
        encoder = Encoder(self.store, places, transforms, schema, tuple(planned.identity.names), planned.keyed)
        entries, complaints = scatter(table, planned.identity, encoder)
        refuse(subject, complaints)
        _verify(names, counted, entries)
        fitted, blobs = transforms.to_json()
        # Rows without a key cannot be found again: such a dataset does not grow.
        buckets = {name: (count,) for name, count in zip(names, places.buckets, strict=True)} if planned.keyed else None
        manifest, manifest_blobs = assemble(schema, fitted, names, entries, buckets=buckets)
        vocabularies = {blob_path(name): pa.py_buffer(data) for name, data in blobs.items()}
        return _Made(
            manifest,
            {**vocabularies, **manifest_blobs},
            {"rows": dict(rows), "statistics": _summary(found), "scan_reason": table.scan_reason, "files": files},
        )

    def _grown(self, source: Source, planned: Plan, digest: str) -> _Made:
        spec, subject = self.file.dataset, source.described
        base = inherit.open_base(self.store, spec.base or digest, digest)
        refuse(f"{subject} cannot grow dataset {digest[:16]}…", inherit.problems(base, spec, planned))
        self.progress(f"reading {subject} and comparing it with dataset {digest[:16]}…")
        lost = growth.lost(self.store, base.manifest, read=False)
        try:
            with engine_errors():
                return self._grown_without(lost, source, planned, base)
        except DamagedError:
            if not (found := growth.lost(self.store, base.manifest, read=True)) or found == lost:
                raise
            return self._grown_without(found, source, planned, base)

    def _grown_without(self, lost: Mapping[int, str], source: Source, planned: Plan, base: Base) -> _Made:
        """Grows from a base of which some shards are lost: their rows count as new."""
        for path in lost.values():
            log.warning("%s is missing or damaged: its rows are encoded again", path)
        table, names = self._rows(source, planned, base.splits)
        table = _fingerprinted(table, planned, base.transforms)
        ranges = Ranges.of(self.store, base.manifest, planned.identity, frozenset(lost))
        deadline_s = self.file.storage.deadline_s
        with since(source, planned, table, base, ranges, deadline_s=deadline_s) as one:
            change, counted = one.growth, one.growth.census
            rows = _rows_per_split(names, counted)
            empty = _empty_splits(names, rows, counted)
            why = [*counted.problems(planned.checks), *change.problems, *_why_empty(table.frame, planned, empty)]
            refuse(source.described, why)
            places = change.places(base.manifest, self.file.dataset.rows_per_shard)
            key = tuple(planned.identity.names)
            encoder = Encoder(self.store, places, base.transforms, base.manifest.schema, key, True)
            entries, complaints = self._encode(one, base.manifest, planned, encoder, lost)
        refuse(source.described, complaints)
        _verify(names, counted, entries)
        manifest, blobs = base.manifest, dict[str, pa.Buffer]()
        if not change.nothing:
            buckets = change.buckets(base.manifest, places)
            manifest, blobs = assemble(manifest.schema, manifest.transforms, names, entries, buckets=buckets)
        details = {
            "rows": dict(rows),
            "changes": change.summary(),
            "lost": list(lost.values()),
            "compared": one.compared,
            "scan_reason": "; ".join(one.reasons) or None,
            "files": one.files,
        }
        advice = growth.advice(manifest, self.file.dataset.rows_per_shard)
        return _Made(manifest, blobs, details, change.summary(), advice)

    def _encode(
        self, one: Since, base: Manifest, planned: Plan, encoder: Encoder, lost: Mapping[int, str]
    ) -> tuple[list[ShardEntry], list[str]]:
        """Entries of all shards of the grown dataset."""
        kept = list(growth.untouched(self.store, base, one.growth, lost))
        if one.growth.nothing:
            self.progress("no row has changed")
            return kept, []
        rows = one.growth.summary()
        self.progress(
            f"writing {rows['added']:,} added and {rows['changed']:,} changed rows, taking out {rows['removed']:,}; "
            f"{len(kept)} of {len(base.index)} shards stay as they are"
        )
        made, complaints = growth.grow(one.rows, planned.identity, one.found, one.growth, base, encoder)
        return [*kept, *made], complaints

    def _rows(
        self, source: Source, planned: Plan, known: tuple[str, ...] | None = None
    ) -> tuple[Rows, tuple[str, ...]]:
        """The table with the position of each row's split, and the names of the splits; those of a base are given."""
        frame = source.frame
        if not planned.keyed:
            frame = numbered(frame, source.schema)
        names, split = _split(frame, self.file.dataset, planned, known)
        return Rows(frame).with_derived(SPLIT, split), names

    def _statistics(
        self, source: Source, table: Rows, planned: Plan, train: int, sample: Derived
    ) -> tuple[Statistics, Rows, str | None]:
        """What is known of the table, its rows as they can be read best, from its files or by Spark's scan, and which
        files they are.
        """
        digest = None
        compute = partial(statistics.compute, wanted=planned.wanted(), train=train, sample=sample)
        try:
            if not planned.keyed:
                raise UnreadableError("equal rows are numbered")
            listing = list_files(source.frame, planned.schema, deadline_s=self.file.storage.deadline_s)
            digest = listing.digest
            by_files = table.with_files(listing.read_by_tasks(self.spark, planned.used()))
            return compute(by_files), by_files, digest
        except UnreadableError as error:
            reason: str | None = str(error)
        except PySparkException as error:
            if (reason := unreadable(error)) is None:
                raise
        log.info("Spark's scan reads the table, which is slower: %s", reason)
        return compute(table), replace(table, scan_reason=reason), digest

    def _report(
        self,
        manifest: Manifest,
        base: str | None,
        *,
        reused: bool,
        changes: Mapping[str, int] | None = None,
        advice: str | None = None,
    ) -> BuildReport:
        found = warnings(manifest)
        for one in found:
            log.warning("dataset %s: %s", self.file.name, one)
        return BuildReport(
            name=self.file.name,
            digest=manifest.digest,
            build_id=self.id,
            uri=self.store.join(f"datasets/{self.file.name}"),
            rows={split.name: split.rows for split in manifest.splits},
            shards=len(manifest.index),
            seconds=time.monotonic() - self.began,
            reused=reused,
            base=base,
            changes=changes,
            advice=advice,
            warnings=found,
        )


def _fingerprinted(table: Rows, planned: Plan, transforms: FittedTransforms) -> Rows:
    return table.with_derived(FINGERPRINT, fingerprint(inherit.used_columns(planned, transforms)))


def _split(
    frame: DataFrame, spec: DatasetSpec, planned: Plan, known: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Derived]:
    """Names of the splits in canonical order, and a row's position among them."""
    by, names = spec.split, tuple(spec.split.fractions)
    if by.method == "random":
        return names, splits.random(planned.identity, by.fractions, by.seed)
    name = by.column or next(label.column for label in spec.all_labels.values())
    if by.method == "group":
        return names, splits.random(pa.schema([planned.schema.field(name)]), by.fractions, by.seed)
    if by.method == "stratified":
        return names, splits.stratified(frame, name, planned.identity, by.fractions, by.seed)
    if by.method == "time":
        return names, splits.by_time(frame, name, planned.schema.field(name).type, by.fractions)
    names = splits.names_in(frame, name)
    if known is None or set(names) == set(known):
        return known or names, splits.by_column(name, known or names)
    raise TableError(
        f"split column {name!r} names {', '.join(names)}, and the base has {', '.join(known)}; {inherit.FRESH}"
    )


def _rows_per_split(names: Sequence[str], counted: Census) -> dict[str, int]:
    return {name: counted.splits[i].rows if i in counted.splits else 0 for i, name in enumerate(names)}


def _empty_splits(names: Sequence[str], rows: Mapping[str, int], counted: Census) -> list[str]:
    if not counted.rows:
        return ["it has no rows"]
    shown = ", ".join(f"{name} {n}" for name, n in rows.items())
    return [
        f"split {name!r} would be empty ({shown}): a named split has rows; change dataset.split"
        for name in names
        if not rows[name]
    ]


def _why_empty(frame: DataFrame, planned: Plan, empty: list[str]) -> list[str]:
    """Rows of one key are in one split: where keys repeat, that is what leaves splits empty."""
    return (census.repeated(frame, planned.identity) if empty and planned.keyed else []) or empty


def _sample(source: Source, planned: Plan, columns: int) -> Derived:
    """Whether medians are taken from a row."""
    if not columns:
        return constant(False)
    size = max(MEDIAN_ROWS >> 4, min(MEDIAN_ROWS, _MEDIAN_VALUES // columns))
    rows = source.frame.count()
    if rows <= size:
        return constant(True)
    return below(planned.identity, 0, _MEDIAN_DOMAIN, size * 2**HASH_BITS // rows)


def _verify(names: Sequence[str], counted: Census, entries: Sequence[ShardEntry]) -> None:
    """The shards hold what the source holds: as many rows, and the same ones.

    Raises:
        BuildError: they do not.
    """
    for position, name in enumerate(names):
        mine = [entry for entry in entries if entry.split == name]
        expected = counted.splits[position]
        rows = sum(entry.rows for entry in mine)
        multiset = keys.add_multisets(*(entry.multiset for entry in mine))
        if (rows, multiset) != (expected.rows, expected.multiset):
            what = f"{rows} rows" if rows != expected.rows else f"{rows} other rows"
            raise BuildError(
                f"split {name!r}: the shards hold {what}, the table {expected.rows} there, so nothing was published. "
                "Build it again; if it happens twice, report it with the engine's log"
            )


def _summary(found: Statistics) -> dict[str, Any]:
    moments = {
        name: {"count": one.count, "missing": one.missing, "low": one.low, "high": one.high}
        | {"mean": one.mean, "deviation": one.deviation}
        for name, one in found.moments.items()
    }
    return {"moments": moments, "median_sample_rows": found.sample_rows}
