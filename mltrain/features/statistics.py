"""Everything that is known of a table before it is written, from one pass: the census of its rows, exact moments,
samples for medians, counts of terms.

Tasks reduce their rows to a few; one distributed group-by adds up the counts of terms, for vocabularies and classes.
All of it is exact or chosen by key hash, so it does not depend on partitions, batches or retries.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import functions as F

from mltrain.errors import TableError
from mltrain.features import census
from mltrain.features.census import SPLIT, Census, Check
from mltrain.features.derived import Derived
from mltrain.features.moments import Moments
from mltrain.features.rows import Rows
from mltrain.transforms.columns import flatten
from mltrain.transforms.numbers import Floats, numbers
from mltrain.transforms.vocabulary import terms

SAMPLE = "__mltrain_sample"
"""Boolean column: medians are taken from the row, if it is in the training split."""

_PARTIAL = "kind string, name string, text string, number bigint, count bigint, payload binary"
_PARTIAL_ARROW = pa.schema(
    [
        ("kind", pa.string()),
        ("name", pa.string()),
        ("text", pa.string()),
        ("number", pa.int64()),
        ("count", pa.int64()),
        ("payload", pa.binary()),
    ]
)
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
    partial = rows.map((*wanted.columns, SPLIT), known, _reducer(wanted, train), _PARTIAL)
    limits = F.lit(1)
    for name, minimum in _minimum_counts(wanted).items():
        limits = F.when(F.col("name") == name, F.lit(minimum)).otherwise(limits)
    found = (
        partial.groupBy("kind", "name", "text", "number")
        .agg(F.sum("count").alias("count"), F.collect_list("payload").alias("payloads"))
        .where((F.col("kind") != "term") | (F.col("count") >= limits))
        .toArrow()
    )
    return _merge(found, wanted)


def _minimum_counts(wanted: Wanted) -> dict[str, int]:
    minimums: dict[str, int] = {}
    for source in wanted.terms:
        if source.min_count > 1:
            minimums[source.name] = source.min_count
    return minimums


def _reducer(wanted: Wanted, train: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def reduce(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        state = _Partial(wanted, train)
        for batch in batches:
            yield from state.add(batch)
        yield from state.finish()

    return reduce


class _Partial:
    """Statistics of one partition's rows."""

    def __init__(self, wanted: Wanted, train: int) -> None:
        self._wanted, self._train = wanted, train
        self._census = Census(bad=(0,) * len(wanted.checks))
        self._moments = dict.fromkeys(wanted.moments, Moments())
        self._samples: dict[str, list[Floats]] = {name: [] for name in wanted.samples}
        self._sample_rows = 0
        self._terms = {name: TermCounts() for name in dict.fromkeys(source.name for source in wanted.terms)}
        self._problems: dict[str, str] = {}

    def add(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
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
            if self._terms[source.name].distinct > _FLUSH_TERMS:
                yield self._terms[source.name].flush(source.name)

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yields everything else."""
        rows = [_row("census", "", self._census.to_json())]
        rows += [_row("moments", name, moments.to_json()) for name, moments in self._moments.items()]
        rows += [_row("sample", name, values=parts) for name, parts in self._samples.items() if parts]
        rows += [{"kind": "problem", "name": at, "text": what, "count": 1} for at, what in self._problems.items()]
        rows.append({"kind": "sample_rows", "name": "", "count": self._sample_rows})
        yield pa.RecordBatch.from_pylist(rows, schema=_PARTIAL_ARROW)
        for name, counts in self._terms.items():
            if counts.distinct:
                yield counts.flush(name)

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
        self._terms[source.name].add(terms(source.column, values))

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
        self.distinct = 0

    def add(self, values: pa.Array) -> None:
        """Counts the values that are not null."""
        values = values.drop_null()
        self._parts.append(_dense_counts(values) if pa.types.is_integer(values.type) else _counts(values))
        self.distinct += len(self._parts[-1])
        if self.distinct > _FLUSH_TERMS:
            self._parts = [self._merged()]
            self.distinct = len(self._parts[0])

    def flush(self, name: str) -> pa.RecordBatch:
        """The counts as partial rows; starts again from nothing."""
        merged = self._merged().combine_chunks()
        self._parts, self.distinct = [], 0
        rows = len(merged)
        term, count = merged["term"].combine_chunks(), merged["count"].combine_chunks()
        text = term if pa.types.is_string(term.type) else pa.nulls(rows, pa.string())
        number = term if pa.types.is_integer(term.type) else pa.nulls(rows, pa.int64())
        constant = [pa.repeat(pa.scalar(value), rows) for value in ("term", name)]
        return pa.RecordBatch.from_arrays(
            [*constant, text, number, count, pa.nulls(rows, pa.binary())], schema=_PARTIAL_ARROW
        )

    def _merged(self) -> pa.Table:
        return (
            pa.concat_tables(self._parts)
            .group_by("term")
            .aggregate([("count", "sum")])
            .rename_columns(["term", "count"])
        )


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


def _row(kind: str, name: str, payload: object = None, values: Sequence[Floats] = ()) -> dict[str, object]:
    data = np.concatenate(values).tobytes() if values else json.dumps(payload).encode()
    return {"kind": kind, "name": name, "count": 1, "payload": data}


def _merge(found: pa.Table, wanted: Wanted) -> Statistics:
    by_kind = {
        kind: found.filter(pc.equal(found["kind"], kind))
        for kind in ("census", "moments", "sample", "sample_rows", "problem", "term")
    }
    counted = Census(bad=(0,) * len(wanted.checks))
    for row in by_kind["census"].to_pylist():
        for payload in row["payloads"]:
            counted += Census.from_json(json.loads(payload))
    moments = dict.fromkeys(wanted.moments, Moments())
    for row in by_kind["moments"].to_pylist():
        for payload in row["payloads"]:
            moments[row["name"]] += Moments.from_json(json.loads(payload))
    medians: dict[str, float | None] = dict.fromkeys(wanted.samples)
    for row in by_kind["sample"].to_pylist():
        values = np.concatenate([np.frombuffer(payload, np.float64) for payload in row["payloads"]])
        medians[row["name"]] = float(np.median(values)) + 0.0 if values.size else None
    problems: dict[str, str] = {}
    for row in sorted(by_kind["problem"].to_pylist(), key=lambda row: (row["name"], row["text"])):
        problems.setdefault(row["name"], row["text"])
    return Statistics(
        census=counted,
        moments=moments,
        medians=medians,
        sample_rows=sum(by_kind["sample_rows"]["count"].to_pylist()),
        terms={source.name: _terms(by_kind["term"], source) for source in wanted.terms},
        problems=problems,
    )


def _terms(rows: pa.Table, source: TermSource) -> tuple[pa.Array, NDArray[np.int64]]:
    mine = rows.filter(pc.equal(rows["name"], source.name))
    values = mine["text" if source.strings else "number"].combine_chunks()
    return values.cast(pa.string() if source.strings else pa.int64()), mine["count"].to_numpy().astype(np.int64)
