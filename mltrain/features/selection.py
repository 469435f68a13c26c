"""Exact order statistics of a distributed column, by counting ever finer bins: no sort, no sketch."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

_BINS_A_ROUND_BITS = 18
_FEW_ROWS = 1 << 17


@dataclass(frozen=True)
class _Target:
    """One wanted value: it starts with the bits ``prefix``, and is the one of rank ``rank`` among those that do."""

    stratum: str
    prefix: int
    rank: int


def select(frame: DataFrame, ranks: Mapping[str, Sequence[int]], bits: int) -> dict[str, tuple[int, ...]]:
    """The values at given ranks, per stratum.

    Args:
        frame: ``s``, the stratum (string); ``v``, a long in [0, 2**bits). Rows of other strata are ignored.
        ranks: for each stratum the wanted ranks, from 0.
        bits: of the values.

    Returns:
        For each stratum and rank the value; ``2**bits`` where the stratum has no more than ``rank`` values.
    """
    places = [(stratum, i) for stratum, wanted in ranks.items() for i in range(len(wanted))]
    targets: list[_Target | None] = [_Target(stratum, 0, ranks[stratum][i]) for stratum, i in places]
    step = max(4, _BINS_A_ROUND_BITS - len(ranks).bit_length())
    shift, remaining = bits, _FEW_ROWS + 1
    while shift and any(targets):
        finer = 0 if remaining <= _FEW_ROWS else max(0, shift - step)
        active = {(target.stratum, target.prefix) for target in targets if target}
        bins = _count(frame, active, shift, finer)
        targets = [target and _descend(target, bins.get((target.stratum, target.prefix), {})) for target in targets]
        remaining = sum(bins[t.stratum, t.prefix >> (shift - finer)][t.prefix] for t in targets if t)
        shift = finer
    found: dict[str, list[int]] = {stratum: [] for stratum in ranks}
    for (stratum, _), target in zip(places, targets, strict=True):
        found[stratum].append(target.prefix if target else 2**bits)
    return {stratum: tuple(values) for stratum, values in found.items()}


def _descend(target: _Target, bins: Mapping[int, int]) -> _Target | None:
    """The same value seen one level finer; None past the end."""
    prefixes = sorted(bins)
    ends = list(itertools.accumulate(bins[prefix] for prefix in prefixes))
    place = bisect.bisect_right(ends, target.rank)
    if place == len(prefixes):
        return None
    return _Target(target.stratum, prefixes[place], target.rank - (ends[place - 1] if place else 0))


def _count(
    frame: DataFrame, active: set[tuple[str, int]], shift: int, finer: int
) -> dict[tuple[str, int], dict[int, int]]:
    """Rows per finer bin, for each active (stratum, bin)."""
    # A value has at most 63 bits, and Spark shifts by the amount modulo 64.
    binned = frame.select(
        "s", F.expr(f"shiftright(v, {shift})").alias("p"), F.expr(f"shiftright(v, {finer})").alias("b")
    )
    known = frame.sparkSession.createDataFrame(sorted(active), "s string, p long")
    counted = binned.join(F.broadcast(known), ["s", "p"]).groupBy("s", "p", "b").count().collect()
    bins: dict[tuple[str, int], dict[int, int]] = {}
    for row in counted:
        bins.setdefault((row["s"], row["p"]), {})[row["b"]] = row["count"]
    return bins
