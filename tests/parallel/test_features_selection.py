"""Exact order statistics by counting, compared with sorting."""

from typing import TYPE_CHECKING

import numpy as np

from mltrain.features.selection import select

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

BITS = 63


def test_the_values_at_ranks_are_those_of_a_sort(spark: "SparkSession") -> None:
    random = np.random.default_rng(11)
    values = {
        "spread": random.integers(0, 2**BITS, 400),
        "near": 2**40 + random.integers(0, 50, 300),
        "one": np.array([2**BITS - 1]),
    }
    rows = [(stratum, int(value)) for stratum, numbers in values.items() for value in numbers]
    frame = spark.createDataFrame([*rows, ("other", 3)], "s string, v long")
    ranks = {stratum: tuple(dict.fromkeys((0, len(n) // 3, len(n) - 1, len(n)))) for stratum, n in values.items()}
    found = select(frame, ranks, BITS)
    assert found == {
        stratum: tuple(int(np.sort(n)[rank]) if rank < len(n) else 2**BITS for rank in ranks[stratum])
        for stratum, n in values.items()
    }
