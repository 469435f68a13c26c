"""Everything that is known of a table before it is written, from one pass: the census of its rows, exact moments,
samples for medians, counts of terms.

Tasks reduce their rows to a few, which travel as parcels; others add up the counts of terms, for vocabularies and
classes. All of it is exact or chosen by key hash, so it does not depend on partitions, batches or retries.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import functions as F

from mltrain.data import keys
from mltrain.errors import TableError
from mltrain.features import census, parcels
from mltrain.features.census import SPLIT, Census, Check
from mltrain.features.derived import Derived
from mltrain.features.engine import rows_per_batch_at_most
from mltrain.features.moments import Moments
from mltrain.features.rows import Rows
from mltrain.features.sql import Batches, map_in_arrow, spare_modules
from mltrain.transforms.columns import flatten
from mltrain.transforms.numbers import Floats, numbers
from mltrain.transforms.vocabulary import terms

SAMPLE = "__mltrain_sample"
"""Boolean column: medians are taken from the row, if it is in the training split."""

_PLACE = "__mltrain_place"
_REPORT = -1
_PARTIAL = pa.schema(
    [
        (_PLACE, pa.int32()),
        ("name", pa.int32()),
        ("text", pa.string()),
        ("number", pa.int64()),
        ("count", pa.int64()),
        ("payload", pa.binary()),
    ]
)
"""What tasks say: how often a term occurs, of the name with this number; or, where that is ``_REPORT``, all the rest,
as JSON, with the numbers of samples behind it."""
_TASKS_PER_PLACE = 4
_FLUSH_TERMS = 1 << 18


@dataclass(frozen=True)
class TermSource:
    """Terms of a column that are counted under a name.

    Attributes:
        name: of the vocabulary, or of the label.
        column: where the terms are.
        strings: they are strings; otherwise int64.
        ragged: the column holds lists of them.
        all_rows: count every row, not only the training split: a label's classes.
        min_count: rarer terms are not brought to the driver.
    """

    name: str
    column: str
    strings: bool
    ragged: bool = False
    all_rows: bool = False
    min_count: int = 1


@dataclass(frozen=True)
class Wanted:
    """What to compute.

    Attributes:
        identity: the columns that tell rows apart.
        checks: what no row may be.
        moments: numeric columns.
        samples: those of them that need a median.
        terms: vocabularies and class labels.
        decimal_scales: of decimal columns among the numeric ones.
    """

    identity: pa.Schema
    checks: tuple[Check, ...] = ()
    moments: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    terms: tuple[TermSource, ...] = ()
    decimal_scales: Mapping[str, int] = field(default_factory=dict)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Under what names terms are counted; tasks say the number of a name."""
        return tuple(dict.fromkeys(source.name for source in self.terms))

    def strings(self, number: int) -> bool:
        """Whether the terms of a name are strings."""
        return next(source.strings for source in self.terms if source.name == self.term_names[number])

    def minimum_count(self, name: str) -> int:
        """Rarer terms of a name are not brought to the driver."""
        return max([1, *(source.min_count for source in self.terms if source.name == name)])

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose values are looked at."""
        return tuple(dict.fromkeys((*self.moments, *(source.column for source in self.terms))))


@dataclass(frozen=True)
class Statistics:
    """What was found.

    Attributes:
        census: of all rows.
        moments: per numeric column, over the training split.
        medians: per sampled column: the median of the sample's numbers, None without any.
        sample_rows: rows of the sample.
        terms: per name: distinct terms and how often each occurs, in no order.
        problems: columns that cannot be what they should be, and why.
    """

    census: Census = field(default_factory=Census)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    medians: Mapping[str, float | None] = field(default_factory=dict)
    sample_rows: int = 0
    terms: Mapping[str, tuple[pa.Array, NDArray[np.int64]]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def compute(rows: Rows, wanted: Wanted, *, train: int, sample: Derived) -> Statistics:
    """Runs the pass.

    Args:
        rows: the table's columns and :data:`SPLIT`.
        wanted: what to compute.
        train: position of the training split.
        sample: true for the rows that medians are taken from (those of them that are in the training split).
    """
    known = {SAMPLE: sample, **dict(census.columns(wanted.identity, wanted.checks))}
    spark = rows.frame.sparkSession
    # Terms of a name are added up in several tasks, so that none has many more of them than one that reads the table.
    places = int(spark.conf.get("spark.sql.shuffle.partitions") or 1)
    if rows.files is not None:
        places = min(places, -(-len(rows.files.tasks) // _TASKS_PER_PLACE) or 1)
    partial = rows.map((*wanted.columns, SPLIT), known, _reducer(wanted, train, places), parcels.schema(_PLACE))
    with rows_per_batch_at_most(spark, parcels.PER_BATCH):
        added = map_in_arrow(partial.repartitionById(places, F.col(_PLACE)), _adder(wanted), parcels.schema(_PLACE))
        found = added.toArrow()
    return _merge([rows for batch in found.to_batches() for rows in parcels.unwrap(batch)], wanted)


def _reducer(wanted: Wanted, train: int, places: int) -> Callable[[Batches], Batches]:
    """A task that reads rows."""

    def reduce(batches: Batches) -> Batches:
        spare_modules()
        state = _Partial(wanted, train, places)
        for batch in batches:
            yield from state.add(batch)
        yield from state.finish()

    return lambda batches: parcels.wrap(reduce(batches), _PLACE)


def _adder(wanted: Wanted) -> Callable[[Batches], Batches]:
    """A task that adds up the counts of terms of one place."""
    minimums = np.array([wanted.minimum_count(name) for name in wanted.term_names], np.int64)

    def add(batches: Batches) -> Batches:
        counts: dict[int, TermCounts] = {}
        for batch in batches:
            for rows in parcels.unwrap(batch):
                names = rows.column("name").to_numpy()
                for name in np.unique(names).tolist():
                    mine = rows.filter(pa.array(names == name))
                    if name == _REPORT:
                        yield mine
                    else:
                        terms = mine.column("text" if wanted.strings(name) else "number")
                        counts.setdefault(name, TermCounts()).add_counted(terms, mine.column("count"))
        for name, found in counts.items():
            for part in found.flush(name, 1):
                yield part.filter(pc.greater_equal(part.column("count"), pa.scalar(minimums[name])))

    return lambda batches: parcels.wrap(add(batches), _PLACE)


class _Partial:
    """Statistics of one partition's rows."""

    def __init__(self, wanted: Wanted, train: int, places: int) -> None:
        self._wanted, self._train, self._places = wanted, train, places
        self._census = Census(bad=(0,) * len(wanted.checks))
        self._moments = dict.fromkeys(wanted.moments, Moments())
        self._samples: dict[str, list[Floats]] = {name: [] for name in wanted.samples}
        self._sample_rows = 0
        self._terms = [TermCounts() for _ in wanted.term_names]
        self._numbers = {name: number for number, name in enumerate(wanted.term_names)}
        self._problems: dict[str, str] = {}

    def add(self, batch: pa.RecordBatch) -> Batches:
        """Takes a batch; yields counts that have grown too many to keep."""
        self._census += census.count(batch, len(self._wanted.checks))
        read = batch.select([*self._wanted.columns, SAMPLE])
        train = read.filter(pc.equal(batch.column(SPLIT), self._train))
        for name in self._wanted.moments:
            self._try(name, self._add_numbers, name, train)
        if self._wanted.samples:
            self._sample_rows += int(pc.sum(train.column(SAMPLE)).as_py() or 0)
        for source in self._wanted.terms:
            rows = read if source.all_rows else train
            self._try(source.column, self._add_terms, source, rows)
            number = self._numbers[source.name]
            if self._terms[number].distinct > _FLUSH_TERMS:
                yield from self._terms[number].flush(number, self._places)

    def finish(self) -> Batches:
        """Yields everything else."""
        report = {
            "census": self._census.to_json(),
            "moments": {name: moments.to_json() for name, moments in self._moments.items()},
            "problems": self._problems,
            "sample_rows": self._sample_rows,
            "samples": {name: sum(map(len, parts)) for name, parts in self._samples.items()},
        }
        samples = b"".join(part.tobytes() for parts in self._samples.values() for part in parts)
        row = {_PLACE: 0, "name": _REPORT, "text": json.dumps(report), "payload": samples}
        yield pa.RecordBatch.from_pylist([row], schema=_PARTIAL)
        for number, counts in enumerate(self._terms):
            yield from counts.flush(number, self._places)

    def _add_numbers(self, name: str, train: pa.RecordBatch) -> None:
        found = numbers(name, train.column(name), self._wanted.decimal_scales.get(name))
        self._moments[name] += Moments.of(name, found.values, found.present)
        if name in self._samples:
            chosen = np.asarray(train.column(SAMPLE)) & found.present
            self._samples[name].append(found.values[chosen])

    def _add_terms(self, source: TermSource, rows: pa.RecordBatch) -> None:
        values = rows.column(source.column)
        if source.ragged:
            values = flatten(source.column, values)[0]
        self._terms[self._numbers[source.name]].add(terms(source.column, values))

    def _try(self, name: str, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except TableError as error:
            # Every task reports what it finds first; the driver refuses the table with all of it.
            self._problems.setdefault(name, str(error))


class TermCounts:
    """How often each term was seen."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._merge_at = _FLUSH_TERMS
        self.distinct = 0

    def add(self, values: pa.Array) -> None:
        """Counts the values that are not null."""
        values = values.drop_null()
        self._take(_dense_counts(values) if pa.types.is_integer(values.type) else _counts(values))

    def add_counted(self, terms: pa.Array, counts: pa.Array) -> None:
        """Takes terms that were counted already."""
        self._take(pa.table([terms, counts], names=["term", "count"]))

    def flush(self, name: int, places: int) -> Batches:
        """The counts as partial rows of a name, for a number of places; starts again from nothing."""
        if not self.distinct:
            return
        merged = self._merged()
        self._parts, self._merge_at, self.distinct = [], _FLUSH_TERMS, 0
        for part in merged.combine_chunks().to_batches(max_chunksize=_FLUSH_TERMS):
            yield _counted(name, part.column("term"), part.column("count"), places)

    def _take(self, counted: pa.Table) -> None:
        self._parts.append(counted)
        self.distinct += len(counted)
        if self.distinct > self._merge_at:
            self._parts = [self._merged()]
            self.distinct = len(self._parts[0])
            # Merging costs what there is: not before there is twice as much.
            self._merge_at = max(_FLUSH_TERMS, 2 * self.distinct)

    def _merged(self) -> pa.Table:
        return (
            pa.concat_tables(self._parts)
            .group_by("term")
            .aggregate([("count", "sum")])
            .rename_columns(["term", "count"])
        )


def _counted(name: int, terms: pa.Array, counts: pa.Array, places: int) -> pa.RecordBatch:
    rows = len(terms)
    numbers = np.zeros(rows, np.int32)
    if places > 1:
        hashes = keys.hash_rows(pa.record_batch({"term": terms}), domain=_PLACE, seed=0)
        numbers = (hashes % np.uint64(places)).astype(np.int32)
    text = terms if pa.types.is_string(terms.type) else pa.nulls(rows, pa.string())
    number = terms if pa.types.is_integer(terms.type) else pa.nulls(rows, pa.int64())
    columns = [pa.array(numbers), pa.array(np.full(rows, name, np.int32)), text, number, counts]
    return pa.RecordBatch.from_arrays([*columns, pa.nulls(rows, pa.binary())], schema=_PARTIAL)


def _counts(values: pa.Array) -> pa.Table:
    counted = values.value_counts()
    return pa.table([counted.field("values"), counted.field("counts")], names=["term", "count"])


def _dense_counts(values: pa.Array) -> pa.Table:
    """The counts of int64 values: without a hash table where they lie close together."""
    numbers = values.to_numpy()
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    if high - low > 2 * len(numbers):
        return _counts(values)
    found = np.bincount(numbers - low)
    seen = np.flatnonzero(found)
    return pa.table({"term": pa.array(seen + low), "count": pa.array(found[seen])})


def _merge(found: Sequence[pa.RecordBatch], wanted: Wanted) -> Statistics:
    table = pa.Table.from_batches(found, _PARTIAL)
    counted = Census(bad=(0,) * len(wanted.checks))
    moments = dict.fromkeys(wanted.moments, Moments())
    samples: dict[str, list[Floats]] = {name: [] for name in wanted.samples}
    sample_rows = 0
    problems: dict[str, str] = {}
    for row in table.filter(pc.equal(table["name"], _REPORT)).select(["text", "payload"]).to_pylist():
        report = json.loads(row["text"])
        counted += Census.from_json(report["census"])
        for name, value in report["moments"].items():
            moments[name] += Moments.from_json(value)
        sample_rows += report["sample_rows"]
        lengths = list(report["samples"].values())
        parts = np.split(np.frombuffer(row["payload"], np.float64), np.cumsum(lengths)[:-1])
        for name, values in zip(report["samples"], parts, strict=False):
            samples[name].append(values)
        for name, problem in report["problems"].items():
            problems[name] = min(problem, problems.get(name, problem))
    return Statistics(
        census=counted,
        moments=moments,
        medians={name: _median(parts) for name, parts in samples.items()},
        sample_rows=sample_rows,
        terms={source.name: _terms(table, source, wanted) for source in wanted.terms},
        problems=problems,
    )


def _median(parts: Sequence[Floats]) -> float | None:
    values = np.concatenate([*parts, np.empty(0)])
    return float(np.median(values)) + 0.0 if values.size else None


def _terms(rows: pa.Table, source: TermSource, wanted: Wanted) -> tuple[pa.Array, NDArray[np.int64]]:
    mine = rows.filter(pc.equal(rows["name"], wanted.term_names.index(source.name)))
    values = mine["text" if source.strings else "number"].combine_chunks()
    return values, mine["count"].to_numpy()
