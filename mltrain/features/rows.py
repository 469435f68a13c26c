"""A table's rows as tasks receive them: from Spark's scan, or read by the tasks from the table's files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.features import parcels
from mltrain.features.derived import Derived, append
from mltrain.features.parquet import Files, UnreadableError, together
from mltrain.features.sql import Batches, column, map_in_arrow

ROW = "__mltrain_row"
"""Where tasks read a row, for :meth:`Rows.map_chosen`: the task's number above the row's among its rows, a long. It is
0 where Spark reads. A task may want it like a column of the table."""
ROW_BITS = 40


@dataclass(frozen=True)
class Rows:
    """The rows of a table.

    Attributes:
        frame: its columns as Spark reads them, and what is derived from them.
        files: its files, if tasks can read them; None if Spark has to.
        derived: what the rows have besides the table's columns.
        scan_reason: why Spark reads them, where that was looked into.
    """

    frame: DataFrame
    files: Files | None = None
    derived: Mapping[str, Derived] = field(default_factory=dict)
    scan_reason: str | None = None

    def with_derived(self, name: str, value: Derived) -> "Rows":
        """The rows with another column."""
        frame = self.frame.withColumn(name, F.expr(value.sql))
        files, derived = self.files if value.arrow else None, {**self.derived, name: value}
        return replace(self, frame=frame, files=files, derived=derived)

    def with_files(self, files: Files) -> "Rows":
        """The same rows, read by tasks.

        Raises:
            UnreadableError: only Spark can tell what is derived.
        """
        if known_to_spark := [name for name, one in self.derived.items() if one.arrow is None]:
            raise UnreadableError(f"only Spark can tell {', '.join(known_to_spark)}")
        return replace(self, files=files)

    def map(
        self,
        columns: Sequence[str],
        values: Mapping[str, Derived],
        task: Callable[[Batches], Batches],
        schema: str,
    ) -> DataFrame:
        """Runs a task over the rows.

        Args:
            columns: those that the task wants, of the table or derived.
            values: what else it wants of a row.
            task: gets batches of these.
            schema: what it answers.
        """
        if self.files is None or any(value.arrow is None for value in values.values()):
            read = [F.lit(0).cast("long").alias(ROW) if name == ROW else F.expr(column(name)) for name in columns]
            read += [F.expr(value.sql).alias(name) for name, value in values.items()]
            return map_in_arrow(self.frame.select(*read), task, schema)
        files, wanted = self.files, (*columns, *values)
        stored, made = _needed(wanted, {**self.derived, **values})

        def run(numbers: Batches) -> Batches:
            return task(append(rows, made).select(list(wanted)) for rows in _every(files, numbers, stored))

        tasks = len(files.tasks)
        return self.frame.sparkSession.range(0, tasks, 1, max(1, tasks)).mapInArrow(run, schema)

    def map_chosen(
        self,
        chosen: DataFrame,
        number: str,
        known: Sequence[str],
        columns: Sequence[str],
        values: Mapping[str, Derived],
        task: Callable[[Batches], Batches],
        schema: str,
    ) -> DataFrame:
        """Runs a task over some of the rows that tasks read from files; where none is chosen nothing is read.

        Args:
            chosen: parcels of rows that have :data:`ROW`.
            number: the column of ``chosen`` with the number of the task that read them.
            known: columns of the chosen rows that the task wants, too.
            columns: as for :meth:`map`.
            values: likewise.
            task: likewise.
            schema: likewise.
        """
        files, wanted = self.files, (*columns, *values)
        assert files is not None, "Spark knows no rows by their numbers"
        stored, made = _needed(wanted, {**self.derived, **values})

        def run(given: Batches) -> Batches:
            rows = together(_chosen(files, given, stored, known), files.rows_per_batch)
            return task(append(batch, made).select([*wanted, *known]) for batch in rows)

        return chosen.repartitionById(max(1, len(files.tasks)), F.col(number)).mapInArrow(run, schema)


def _needed(wanted: Sequence[str], known: Mapping[str, Derived]) -> tuple[tuple[str, ...], dict[str, Derived]]:
    """Columns to read from the files, and what to derive from them, in order."""
    stored: dict[str, None] = {}
    made: dict[str, Derived] = {}

    def need(name: str) -> None:
        if name not in known:
            stored[name] = None
        elif name not in made:
            for other in known[name].reads:
                need(other)
            made[name] = known[name]

    for name in wanted:
        need(name)
    return tuple(stored), made


def _every(files: Files, numbers: Batches, columns: Sequence[str]) -> Batches:
    """The rows of some tasks."""
    stored = [name for name in columns if name != ROW]
    for number in (number for batch in numbers for number in batch.column(0).to_pylist()):
        at = number << ROW_BITS
        for rows in files.read(number, stored):
            yield rows.append_column(ROW, pa.array(np.arange(at, at + rows.num_rows))) if ROW in columns else rows
            at += rows.num_rows


def _chosen(files: Files, given: Batches, columns: Sequence[str], known: Sequence[str]) -> Batches:
    """The rows that were chosen, read again: they come in the order that they had."""
    received = [rows for batch in given for rows in parcels.unwrap(batch)]
    if not received:
        return
    chosen = pa.Table.from_batches(received).select([ROW, *known]).sort_by(ROW).combine_chunks()
    tasks, places = np.divmod(chosen[ROW].to_numpy(), 1 << ROW_BITS)
    for task in np.unique(tasks).tolist():
        done, end = np.searchsorted(tasks, (task, task + 1)).tolist()
        first = 0
        for rows in files.read(task, columns):
            stop = done + int(np.searchsorted(places[done:end], first + rows.num_rows))
            if stop > done:
                taken = rows.take(pa.array(places[done:stop] - first)) if stop - done < rows.num_rows else rows
                for name in known:
                    taken = taken.append_column(name, chosen[name].slice(done, stop - done).combine_chunks())
                yield taken
            first, done = first + rows.num_rows, stop
            if done == end:
                break
