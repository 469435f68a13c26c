"""What no row may be, and which rows each split has: counted where the table is read, apart from what writes shards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mltrain.data.keys import MULTISET_DOMAINS, add_multisets, combine_multiset, signed_sum
from mltrain.features.derived import Derived, row_hash
from mltrain.features.problems import repeated_keys
from mltrain.features.sql import column

SPLIT = "__mltrain_split"
"""Column with the position of a row's split; null when the row belongs to none."""
_HIGH, _LOW, _CHECK = "__mltrain_high", "__mltrain_low", "__mltrain_check_"
_COUNT = "__mltrain_count"
_NO_SPLIT = -1
_EXAMPLES = 5


@dataclass(frozen=True)
class Check:
    """A condition that no row may meet.

    Attributes:
        condition: true for a bad row and never null.
        problem: what to say of ``{n}`` bad rows.
    """

    condition: Derived
    problem: str


@dataclass(frozen=True)
class Counted:
    """The rows of a split at the source: how many, and the order-free hash of their identities."""

    rows: int = 0
    multiset: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.rows + other.rows, add_multisets(self.multiset, other.multiset))


@dataclass(frozen=True)
class Census:
    """Some rows of the table, counted; ``a + b`` are the rows of both.

    Attributes:
        splits: per position of a split; a split without rows is absent.
        bad: for each check the rows that fail it.
    """

    splits: Mapping[int, Counted] = field(default_factory=dict)
    bad: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

    def problems(self, checks: Sequence[Check]) -> list[str]:
        """One sentence for each check that some row fails."""
        return [check.problem.format(n=n) for check, n in zip(checks, self.bad, strict=True) if n]

    def __add__(self, other: "Census") -> "Census":
        parts = (self.splits, other.splits)
        found = {place: sum((p.get(place, Counted()) for p in parts), Counted()) for place in {**parts[0], **parts[1]}}
        return Census(found, tuple(a + b for a, b in zip(self.bad, other.bad, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """JSON form, exact."""
        splits = [[place, split.rows, str(split.multiset)] for place, split in self.splits.items()]
        return {"splits": splits, "bad": list(self.bad)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Census":
        """The inverse of :meth:`to_json`."""
        splits = {place: Counted(rows, int(multiset)) for place, rows, multiset in value["splits"]}
        return cls(splits, tuple(value["bad"]))


def columns(identity: pa.Schema, checks: Sequence[Check]) -> Iterator[tuple[str, Derived]]:
    """What :func:`count` wants to know of a row, besides :data:`SPLIT`.

    Args:
        identity: the columns that tell rows apart.
        checks: what to refuse.
    """
    high, low = MULTISET_DOMAINS
    yield _HIGH, row_hash(identity, domain=high, seed=0)
    yield _LOW, row_hash(identity, domain=low, seed=0)
    yield from ((f"{_CHECK}{i}", check.condition) for i, check in enumerate(checks))


def repeated(frame: DataFrame, identity: pa.Schema) -> list[str]:
    """What is wrong with a key that several rows share. Shuffles all keys: for tables that are refused anyway."""
    keys = frame.groupBy(*(F.expr(column(name)) for name in identity.names)).agg(F.count(F.lit(1)).alias(_COUNT))
    whole = " AND ".join(f"{column(name)} IS NOT NULL" for name in identity.names)
    shared = keys.where(f"{_COUNT} > 1 AND {whole}").drop(_COUNT)
    if not (number := shared.count()):
        return []
    examples = shared.orderBy(*(F.expr(column(name)) for name in identity.names)).limit(_EXAMPLES).collect()
    return [repeated_keys(identity.names, number, [str(row[0] if len(row) == 1 else tuple(row)) for row in examples])]


def count(batch: pa.RecordBatch, checks: int) -> Census:
    """The census of a batch that has :func:`columns`, for a number of checks, and :data:`SPLIT`."""
    place = batch.column(SPLIT).fill_null(_NO_SPLIT).to_numpy()
    high, low = (batch.column(name).to_numpy() for name in (_HIGH, _LOW))
    splits = {}
    for one in np.unique(place).tolist():
        if one != _NO_SPLIT:
            mine = place == one
            multiset = combine_multiset(signed_sum(high[mine]), signed_sum(low[mine]))
            splits[one] = Counted(int(np.count_nonzero(mine)), multiset)
    bad = (pc.sum(batch.column(f"{_CHECK}{i}")).as_py() or 0 for i in range(checks))
    return Census(splits, tuple(bad))
