"""A table's rows as tasks receive them: from Spark's scan, or read by the tasks from the table's files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.features.derived import Derived, append
from mltrain.features.parquet import Files, UnreadableError
from mltrain.features.sql import Batches, column, map_in_arrow


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
            read = [F.expr(column(name)) for name in columns]
            made = [F.expr(value.sql).alias(name) for name, value in values.items()]
            return map_in_arrow(self.frame.select(*read, *made), task, schema)
        known = {**self.derived, **values}
        stored, made_here = _needed((*columns, *values), known)
        run = _reader(self.files, stored, made_here, (*columns, *values), task)
        tasks = len(self.files.tasks)
        return self.frame.sparkSession.range(0, tasks, 1, max(1, tasks)).mapInArrow(run, schema)


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


def _reader(
    files: Files,
    stored: Sequence[str],
    made: Mapping[str, Derived],
    wanted: Sequence[str],
    task: Callable[[Batches], Batches],
) -> Callable[[Batches], Batches]:
    def run(numbers: Batches) -> Batches:
        return task(
            append(rows, made).select(list(wanted))
            for batch in numbers
            for number in batch.column(0).to_pylist()
            for rows in files.read(number, stored)
        )

    return run
