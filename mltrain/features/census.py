"""What no row may be, and how many rows each split gets: one narrow pass of plain Spark SQL, before heavy work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.data.keys import combine_multiset, multiset_sql

SPLIT = "__mltrain_split"
"""Column with the position of a row's split; null when the row belongs to none."""


@dataclass(frozen=True)
class Check:
    """A condition that no row may meet.

    Attributes:
        condition: Spark SQL, true for a bad row and never null.
        problem: what to say of ``{n}`` bad rows.
    """

    condition: str
    problem: str


@dataclass(frozen=True)
class Counted:
    """The rows of a split at the source: how many, and the order-free hash of their identities."""

    rows: int
    multiset: int


@dataclass(frozen=True)
class Census:
    """What the pass found.

    Attributes:
        splits: per position of a split; a split without rows is absent.
        problems: one sentence for each check that some row fails.
    """

    splits: Mapping[int, Counted]
    problems: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())


def take(frame: DataFrame, identity: pa.Schema, checks: Sequence[Check]) -> Census:
    """Counts the rows of each split and those that fail a check.

    Args:
        frame: has the columns of ``identity``, those of the checks, and :data:`SPLIT`.
        identity: the columns that tell rows apart.
        checks: what to refuse.
    """
    high, low = multiset_sql(identity)
    counts = [F.expr(f"count_if({check.condition})").alias(f"check_{i}") for i, check in enumerate(checks)]
    found = (
        frame.groupBy(SPLIT)
        .agg(F.count(F.lit(1)).alias("rows"), F.expr(high).alias("high"), F.expr(low).alias("low"), *counts)
        .collect()
    )
    bad = [sum(row[f"check_{i}"] for row in found) for i in range(len(checks))]
    return Census(
        splits={
            row[SPLIT]: Counted(row["rows"], combine_multiset(int(row["high"]), int(row["low"])))
            for row in found
            if row[SPLIT] is not None
        },
        problems=tuple(check.problem.format(n=n) for check, n in zip(checks, bad, strict=True) if n),
    )
