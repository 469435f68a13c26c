"""Which split a row belongs to, from nothing but the row."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.data.keys import SPLIT_DOMAIN
from mltrain.errors import TableError
from mltrain.features.derived import HASH_BITS, Derived, cases, hash63_sql, position, share
from mltrain.features.problems import refuse
from mltrain.features.selection import select
from mltrain.features.sql import column, literal

MAX_STRATA = 1000
MAX_SPLITS = 100
_USUAL = ("train", "validation", "test")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def random(identity: pa.Schema, fractions: Mapping[str, float], seed: int) -> Derived:
    """By a seeded hash of ``identity``: the key, or the column whose equal values stay together.

    A row's split depends on nothing but its own values, so it never changes as the table grows.
    """
    bounds = [int(share * 2**HASH_BITS) for share in _cumulative(fractions)]
    return share(identity, seed, SPLIT_DOMAIN, bounds)


def stratified(
    frame: DataFrame, stratum: str, identity: pa.Schema, fractions: Mapping[str, float], seed: int
) -> Derived:
    """Like :func:`random`, with exact fractions within each value of the column ``stratum``.

    A row may change its split as the table grows: exactness within a class depends on all rows of the class.

    Raises:
        TableError: the column has more than a thousand values.
    """
    value, order = f"CAST({column(stratum)} AS STRING)", hash63_sql(identity, seed, SPLIT_DOMAIN)
    counted = (
        frame.where(f"{value} IS NOT NULL").groupBy(F.expr(value).alias("s")).count().limit(MAX_STRATA + 1).collect()
    )
    if len(counted) > MAX_STRATA:
        raise TableError(
            f"column {stratum!r} has more than {MAX_STRATA} values: a split can be stratified by a few classes; "
            "use `split: {method: random}`"
        )
    shares = _cumulative(fractions)
    ranks = {row["s"]: tuple(round(share * row["count"]) for share in shares) for row in counted}
    bounds = select(frame.select(F.expr(value).alias("s"), F.expr(order).alias("v")), ranks, HASH_BITS)
    arms = []
    for i in range(len(shares)):
        limits = " ".join(f"WHEN {literal(key)} THEN {_bound(values[i])}" for key, values in bounds.items())
        arms.append(f"{order} <= CASE {value} {limits} END")
    return Derived(cases(arms if bounds else []))


def by_time(frame: DataFrame, time: str, kind: pa.DataType, fractions: Mapping[str, float]) -> Derived:
    """The oldest rows go to the first split. Rows of equal time stay together, in the earlier of two splits."""
    # Selection wants numbers that are not negative: Spark's instants need 62 bits, so adding 2**62 makes them so.
    instant = f"({_instant(time, kind)} + {2**62})"
    times = frame.where(f"{column(time)} IS NOT NULL").select(F.lit("").alias("s"), F.expr(instant).alias("v"))
    rows = times.count()
    ranks = [max(0, round(share * rows) - 1) for share in _cumulative(fractions)]
    bounds = select(times, {"": ranks}, HASH_BITS)[""]
    return Derived(cases([f"{instant} <= {min(bound, 2**63 - 1)}" for bound in bounds]))


def names_in(frame: DataFrame, name: str) -> tuple[str, ...]:
    """The splits that a column names, the usual three first.

    Raises:
        TableError: it has too many values, one that cannot name a split, or no ``train``.
    """
    values = frame.select(F.expr(column(name)).alias("s")).where("s IS NOT NULL").distinct()
    found = {str(row[0]) for row in values.limit(MAX_SPLITS + 1).collect()}
    problems = [
        f"{value!r} is no name of a split (want letters, digits, '.', '_', '-')"
        for value in sorted(found)
        if not _NAME.fullmatch(value)
    ]
    if len(found) > MAX_SPLITS:
        problems = [f"it has more than {MAX_SPLITS} values, so it names no splits"]
    if found and "train" not in found and not problems:
        problems = ["no row is in the split 'train'"]
    refuse(f"split by column {name!r}", problems)
    return (*(one for one in _USUAL if one in found or not found), *sorted(found - set(_USUAL)))


def by_column(name: str, names: Sequence[str]) -> Derived:
    """The column says it; null where it names no split."""
    return position(name, names)


def _cumulative(fractions: Mapping[str, float]) -> list[Fraction]:
    """Where each split but the last ends. Decimals as written: 0.1 is a tenth."""
    shares = [Fraction(repr(share)) for share in fractions.values()]
    return [sum(shares[: i + 1], Fraction(0)) for i in range(len(shares) - 1)]


def _bound(value_after: int) -> int:
    """The last value before the first that is outside."""
    return value_after - 1


def _instant(name: str, kind: pa.DataType) -> str:
    quoted = column(name)
    if pa.types.is_date(kind):
        return f"CAST(unix_date({quoted}) AS BIGINT)"
    if pa.types.is_timestamp(kind) and kind.tz is None:
        return f"timestampdiff(MICROSECOND, TIMESTAMP_NTZ'1970-01-01 00:00:00', {quoted})"
    if pa.types.is_timestamp(kind):
        return f"unix_micros({quoted})"
    return f"CAST({quoted} AS BIGINT)"
