"""Exact sums of floats: the same mean and deviation whatever the order, the batches or the partitions.

Adding floats rounds, so Spark's ``avg`` and ``stddev`` differ in their last bits between runs. Here every sum is the
exact rational number and is rounded once, at the end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mltrain.errors import TableError
from mltrain.transforms.numbers import Floats, Mask

LIMIT = 1e150
"""Numbers beyond it are refused: their squares leave float64's range."""

_SPLIT = 134217729.0  # 2**27 + 1
_LARGE_EXPONENT = 900


@dataclass(frozen=True)
class Moments:
    """Statistics of the numbers seen so far; ``a + b`` are those of both.

    Attributes:
        count: numbers present.
        missing: nulls and NaNs.
        low: the smallest number; infinity while there is none.
        high: the largest number; minus infinity while there is none.
        total: their sum, exact.
        squares: the sum of their squares, exact.
    """

    count: int = 0
    missing: int = 0
    low: float = math.inf
    high: float = -math.inf
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, name: str, values: Floats, present: Mask) -> "Moments":
        """Of one column of one batch.

        Raises:
            TableError: a number is beyond ±1e150.
        """
        held = values[present]
        if not held.size:
            return cls(missing=len(values))
        low, high = float(held.min()), float(held.max())
        if max(high, -low) > LIMIT:
            raise TableError(
                f"column {name!r} holds {high if high > -low else low:g}, beyond ±{LIMIT:g}: drop or rescale it"
            )
        square, error = _squares(held)
        return cls(
            count=held.size,
            missing=len(values) - held.size,
            # Adding 0.0 makes -0.0 and 0.0 one number.
            low=low + 0.0,
            high=high + 0.0,
            total=exact_sum(held),
            squares=exact_sum(square) + exact_sum(error),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.missing + other.missing,
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
        )

    @property
    def mean(self) -> float:
        """The mean, correctly rounded. Only for ``count > 0``."""
        return float(self.total / self.count)

    @property
    def deviation(self) -> float:
        """The population standard deviation, from the exact variance. Only for ``count > 0``."""
        return math.sqrt(float(self.squares / self.count - (self.total / self.count) ** 2))

    def to_json(self) -> dict[str, Any]:
        """JSON form, exact."""
        return {
            "count": self.count,
            "missing": self.missing,
            "low": self.low if self.count else None,
            "high": self.high if self.count else None,
            "total": str(self.total),
            "squares": str(self.squares),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Moments":
        """The inverse of :meth:`to_json`."""
        if not value["count"]:
            return cls(missing=value["missing"])
        sums = Fraction(value["total"]), Fraction(value["squares"])
        return cls(value["count"], value["missing"], value["low"], value["high"], *sums)


def exact_sum(values: Floats) -> Fraction:
    """The sum of floats up to ±1e300, without rounding, [n] -> one number.

    The values are peeled from the top: their leading bits, as integers on a grid so coarse that float64 adds n of them
    without rounding, then the leading bits of what remains. Values of one magnitude take two rounds. This is the
    pre-rounding of Demmel and Nguyen, "Parallel Reproducible Summation" (2015); their grids are fixed, these follow the
    data, since the result is exact.
    """
    total = Fraction(0)
    rest = values.astype(np.float64)
    bits = 52 - max(1, len(rest)).bit_length()
    while rest.size and (top := max(float(rest.max()), -float(rest.min()))):
        exponent = math.frexp(top)[1]
        if exponent < _LARGE_EXPONENT:
            # Where this constant lies, float64's own steps are those of the grid: adding it rounds to the grid.
            rounder = math.ldexp(1.5, exponent - bits + 52)
            whole = rest + rounder
            whole -= rounder
            total += Fraction(float(whole.sum()))
        else:
            grid = exponent - bits
            counted = np.rint(_times_power(rest, -grid))
            total += Fraction(int(counted.sum())) * Fraction(2) ** grid
            whole = _times_power(counted, grid)
        rest -= whole
    return total


def _times_power(values: Floats, exponent: int) -> Floats:
    if abs(exponent) < 1000:
        return values * 2.0**exponent
    return np.ldexp(values, exponent)


def _squares(values: Floats) -> tuple[Floats, Floats]:
    """Squares and their rounding errors: their sum is exact (Dekker's product, with Veltkamp's splitting)."""
    square = values * values
    coarse = values * _SPLIT
    high = coarse - (coarse - values)
    low = values - high
    if not low.any():
        # Half the bits are enough for every value, as for a float32 or a count: no square is rounded.
        return square, low[:0]
    error = ((high * high - square) + 2.0 * (high * low)) + low * low
    return square, error
