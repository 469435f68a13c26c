"""Spark and numpy hash rows alike."""

import datetime
import decimal
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mltrain.data import keys

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 500


def rows_of_every_type() -> pa.Table:
    """Every type that a row can be told apart by, with nulls in all but the keys."""
    rng = np.random.default_rng(11)
    numbers = rng.integers(-(2**62), 2**62, ROWS)
    doubles = rng.standard_normal(ROWS)
    doubles[:4] = [0.0, -0.0, np.nan, np.inf]
    moments = [datetime.datetime(1960, 1, 1) + datetime.timedelta(days=i, microseconds=i) for i in range(ROWS)]
    lists = [[float(j) if j % 3 else None for j in range(i % 5)] for i in range(ROWS)]
    columns = {
        "id": pa.array(numbers),
        "small": pa.array(rng.integers(-100, 100, ROWS).astype(np.int16)),
        "text": pa.array([f"größe {i} 🙂" * (i % 4) for i in range(ROWS)]),
        "day": pa.array([datetime.date(1950, 1, 1) + datetime.timedelta(days=i * 50) for i in range(ROWS)]),
        "uuid": pa.array([int(abs(n)).to_bytes(16, "big") for n in numbers]),
        "flag": pa.array([None if i % 7 == 0 else i % 2 == 0 for i in range(ROWS)]),
        "double": pa.array(doubles),
        "single": pa.array(doubles.astype(np.float32)),
        "price": pa.array(
            [None if i % 5 == 0 else decimal.Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(12, 2)
        ),
        "tiny": pa.array([decimal.Decimal(i) / 10**9 for i in range(ROWS)], pa.decimal128(20, 9)),
        "wide": pa.array(
            [decimal.Decimal(f"{'-' if i % 2 else ''}{'9' * (i % 39) or '0'}") for i in range(ROWS)],
            pa.decimal128(38, 0),
        ),
        "at": pa.array([m.replace(tzinfo=datetime.UTC) for m in moments], pa.timestamp("us", "UTC")),
        "local": pa.array(moments, pa.timestamp("us")),
        "ids": pa.array([None if i % 9 == 0 else list(range(i % 4)) for i in range(ROWS)], pa.list_(pa.int32())),
        "vector": pa.array(lists, pa.list_(pa.float32())),
        "moments": pa.array([[m, None, m][: i % 4] for i, m in enumerate(moments)], pa.list_(pa.timestamp("us"))),
        "days": pa.array([[m.date()] * (i % 3) for i, m in enumerate(moments)]),
        "prices": pa.array(
            [[decimal.Decimal(i) / 10**9, None][: i % 3] for i in range(ROWS)], pa.list_(pa.decimal128(38, 9))
        ),
        "words": pa.array([[f"w{j}" for j in range(i % 3)] for i in range(ROWS)]),
    }
    return pa.table(columns)


def test_spark_computes_the_same_hashes_column_by_column(spark: "SparkSession") -> None:
    table = rows_of_every_type()
    frame = spark.createDataFrame(table)
    for name in table.schema.names:
        one = table.select([name])
        sql = keys.hash_sql(one.schema, domain="a domain", seed=-5)
        found = [row[0] for row in frame.selectExpr(sql).collect()]
        wanted = keys.hash_rows(one, domain="a domain", seed=-5).view(np.int64).tolist()
        assert found == wanted, name


def test_decimals_have_one_hash_with_and_without_ansi_sql(spark: "SparkSession") -> None:
    table = rows_of_every_type().select(["price", "tiny", "wide"])
    sql = keys.hash_sql(table.schema, domain="a domain", seed=0)
    found = {}
    for ansi in ("true", "false"):
        with_ansi = spark.newSession()
        with_ansi.conf.set("spark.sql.ansi.enabled", ansi)
        found[ansi] = [row[0] for row in with_ansi.createDataFrame(table).selectExpr(sql).collect()]
    assert found["true"] == found["false"]


def test_spark_computes_the_same_hash_and_multiset_of_whole_rows(spark: "SparkSession") -> None:
    table = rows_of_every_type()
    frame = spark.createDataFrame(table).repartition(3)
    sql = keys.hash_sql(table.schema, domain=keys.SHARD_DOMAIN, seed=0)
    found = sorted(row[0] for row in frame.selectExpr(sql).collect())
    assert found == sorted(keys.hash_rows(table, domain=keys.SHARD_DOMAIN, seed=0).view(np.int64).tolist())
    hashes = zip(*frame.selectExpr(*keys.multiset_sql(table.schema)).collect(), strict=True)
    high, low = (np.array(values, np.int64) for values in hashes)
    assert keys.combine_multiset(sum(high.tolist()), sum(low.tolist())) == keys.multiset(table)
    assert keys.signed_sum(high) == sum(high.tolist())
