"""Equal rows of a table without a key, told apart by numbers."""

from collections.abc import Iterator

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from mltrain.data import keys
from mltrain.features.plan import NUMBER
from mltrain.features.sql import column


def numbered(frame: DataFrame, schema: pa.Schema) -> DataFrame:
    """Numbers equal rows from 0: which gets which number does not matter.

    Rows count as equal that have one hash, which knows nothing of a zero's sign and of where a list's nulls are. Shards
    keep both, so by them rows that count as equal are put in order.
    """
    hashes = [F.expr(keys.hash_sql(schema, domain="mltrain/number", seed=seed)) for seed in (0, 1)]
    unhashed = ", ".join(_unhashed(schema))
    window = Window.partitionBy(*hashes).orderBy(F.expr(f"struct({unhashed})") if unhashed else hashes[0])
    return frame.withColumn(NUMBER, F.row_number().over(window).cast("bigint") - F.lit(1))


def _unhashed(schema: pa.Schema) -> Iterator[str]:
    """What hashes leave out of values."""
    for field in schema:
        name = column(field.name)
        if pa.types.is_floating(field.type):
            yield _is_negative_zero(name)
        elif pa.types.is_nested(field.type):
            floats = pa.types.is_floating(field.type.value_type)
            yield f"transform({name}, x -> {_is_negative_zero('x') if floats else 'x IS NULL'})"


def _is_negative_zero(value: str) -> str:
    """Null of a null."""
    return f"({value} = 0 AND startswith(CAST({value} AS STRING), '-'))"
