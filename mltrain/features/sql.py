"""Names and values as Spark SQL text, and tasks that see columns under any name."""

import functools
import gc
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

Batches = Iterator[pa.RecordBatch]


def column(name: str) -> str:
    """A column's name, quoted: for ``F.expr`` and SQL. ``F.col`` and ``select`` refuse a quoted backtick."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A string literal that survives whatever the string holds."""
    return f"CAST(X'{value.encode().hex()}' AS STRING)"


def map_in_arrow(frame: DataFrame, run: Callable[[Batches], Batches], schema: StructType | str) -> DataFrame:
    """``frame.mapInArrow``, for columns of any name.

    Spark takes the names of a frame's columns for expressions there: ``a.b`` would be a field of ``a``. So columns
    travel under numbers, and a task gives them their names again.
    """
    names = frame.columns
    numbered = frame.toDF(*(f"c{i}" for i in range(len(names))))

    def named(batches: Batches) -> Batches:
        spare_modules()
        return run(batch.rename_columns(names) for batch in batches)

    return numbered.mapInArrow(named, schema)


@functools.cache
def spare_modules() -> None:
    """Takes what a worker has loaded so far out of garbage collection, once: PySpark looks at it after each task."""
    gc.freeze()
