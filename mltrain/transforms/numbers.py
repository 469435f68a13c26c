"""Arrow columns as numbers: which number a value stands for, and what is refused instead of rounded.

| column type | number | in float64 | in float32, where nothing scales it |
|---|---|---|---|
| bool | 0 or 1 | exact | exact |
| int8 … int64, uint8 … uint64 | itself | exact up to ±2**53, else refused | exact up to ±2**24, else refused |
| decimal | whole units of its declared scale | as an integer | as an integer |
| date | days since 1970-01-01 | exact | as an integer |
| timestamp, zone or none | seconds since 1970-01-01 UTC | to the microsecond, 1684 to 2255 | exact, else refused |
| float16, float32, float64 | itself; NaN is missing, an infinity refused | exact | the nearest |

A decimal without a declared scale is refused: whether a double may stand for it is the table owner's decision.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mltrain.errors import TableError

FLOAT64_EXACT = 2**53
FLOAT32_EXACT = 2**24
MAX_DECIMAL_SCALE = 38

_DECIMAL_DIGITS = 76
_DECIMAL_LIMBS = 4

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Numbers:
    """A column as float64.

    Attributes:
        values: [rows], 0 where missing.
        present: [rows], False for null and NaN.
        exact: how a message shows one of them, for counts, codes and instants: as they are they must not be rounded.
            None for measurements.
    """

    values: Floats
    present: Mask
    exact: str | None = None


def is_numeric(kind: pa.DataType) -> bool:
    """Whether :func:`numbers` accepts the type, without a declared scale."""
    return bool(
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
    )


def is_missing(column: pa.Array) -> Mask:
    """Which values are null or NaN, [rows]."""
    return np.asarray(column.is_null(nan_is_null=pa.types.is_floating(column.type)))


def numbers(name: str, column: pa.Array, decimal_scale: int | None = None) -> Numbers:
    """The numbers that a column's values stand for (see the module's table).

    Args:
        name: the column's, for messages.
        column: the values.
        decimal_scale: of a decimal column: how many digits after the point count. Others take no notice of it.

    Raises:
        TableError: the type has no number, or a value has none that float64 holds.
    """
    kind = column.type
    if pa.types.is_decimal(kind) and decimal_scale is not None:
        units = f"{{:.0f}} units of {unit(decimal_scale)}"
        return Numbers(_decimals(name, column, decimal_scale), _present(column), units)
    if not is_numeric(kind):
        raise TableError(f"column {name!r} has type {kind}, which is not a number")
    if pa.types.is_floating(kind):
        return _measurements(name, column)
    whole = integers(name, column)
    if pa.types.is_timestamp(kind):
        if _reach(whole) > FLOAT64_EXACT:
            raise TableError(
                f"column {name!r} holds a timestamp outside of the years 1684 to 2255, where a float no longer tells "
                "microseconds apart: make it null, or cast the column to date in the table"
            )
        return Numbers(whole / 1e6, _present(column), "{!r} seconds since 1970")
    if _reach(whole) > FLOAT64_EXACT:
        raise TableError(
            f"column {name!r} holds an integer beyond ±2**53, which no float can represent: "
            "declare it categorical, hashed or key, or drop it"
        )
    return Numbers(whole.astype(np.float64), _present(column), "the integer {:.0f}")


def integers(name: str, column: pa.Array) -> NDArray[np.int64]:
    """Bools, integers, dates (days) and timestamps (microseconds) as int64; 0 where null.

    Raises:
        TableError: a uint64 beyond int64, or a timestamp that has no whole int64 of microseconds.
    """
    kind = column.type
    try:
        if pa.types.is_timestamp(kind):
            if kind.unit != "us":
                column = pc.cast(column, pa.timestamp("us", tz=kind.tz))
            column = column.cast(pa.int64())
        elif pa.types.is_date(kind):
            column = column.cast(pa.date32()).cast(pa.int32())
        elif pa.types.is_boolean(kind):
            column = column.cast(pa.uint8())
        return _dense(column, pa.int64()).astype(np.int64, copy=False)
    except pa.ArrowInvalid as error:
        raise TableError(f"column {name!r}: {error}") from error


def unit(decimal_scale: int) -> str:
    """What a decimal of a scale counts, as in 0.01."""
    return f"{10.0**-decimal_scale:.{decimal_scale}f}"


def exact_float32(name: str, found: Numbers, advice: str) -> NDArray[np.float32]:
    """The numbers as they are: measurements are rounded to the nearest float32, anything else is exact or refused.

    A measurement has no more digits than a float32. A count or a code has, and so has an instant.

    Args:
        name: the column's, for messages.
        found: its numbers.
        advice: what its owner can do about a number that is refused.

    Raises:
        TableError: a number that is not to be rounded has no float32, or lies beyond ±2**24, from where on not all
            integers have one.
    """
    rounded = to_float32(name, found.values)
    if found.exact is not None:
        lost = (np.abs(found.values) > FLOAT32_EXACT) | (rounded != found.values)
        if lost.any():
            worst = found.values[lost][np.abs(found.values[lost]).argmax()]
            beyond = ", beyond ±2**24," if abs(worst) > FLOAT32_EXACT else ""
            shown = found.exact.format(float(worst))
            raise TableError(f"column {name!r} holds {shown}{beyond} which no float32 represents: {advice}")
    return rounded


def to_float32(name: str, values: Floats) -> NDArray[np.float32]:
    """Rounds to the nearest float32.

    Raises:
        TableError: a number beyond float32's range.
    """
    with np.errstate(over="ignore"):
        # Adding 0.0 turns -0.0 into 0.0: equal numbers get equal bytes.
        rounded = values.astype(np.float32) + np.float32(0.0)
    if not np.isfinite(rounded).all():
        raise TableError(f"column {name!r} holds a number beyond float32's range (3.4e38)")
    return rounded


def _measurements(name: str, column: pa.Array) -> Numbers:
    values = _dense(column, pa.float64()).astype(np.float64, copy=False)
    present = _present(column)
    nan = np.isnan(values)
    if nan.any():
        present = present & ~nan
        values = np.where(nan, 0.0, values)
    if np.isinf(values).any():
        raise TableError(f"column {name!r} holds an infinity: make it null, or a number")
    return Numbers(values, present)


def _decimals(name: str, column: pa.Array, scale: int) -> Floats:
    """How many units of the scale each decimal is, 0 where null."""
    try:
        # Wide enough for whatever a table's 38 digits become in units of 1e-38.
        wide = column.fill_null(0).cast(pa.decimal256(_DECIMAL_DIGITS, scale))
    except pa.ArrowInvalid as error:
        finer = next(value for value in column.to_pylist() if value is not None and _digits(value) > scale)
        raise TableError(
            f"column {name!r} holds {finer}, with more than {scale} digits after the point: set "
            f"dataset.features.{name}.decimal_scale to {column.type.scale}, or round it in the table"
        ) from error
    limbs = np.frombuffer(wide.buffers()[1], np.int64).reshape(-1, _DECIMAL_LIMBS)[wide.offset :][: len(wide)]
    low = limbs[:, 0]
    if _reach(low) > FLOAT64_EXACT or (limbs[:, 1:] != (low >> 63)[:, None]).any():
        largest = max((value for value in column.to_pylist() if value is not None), key=abs)
        raise TableError(
            f"column {name!r} holds {largest}, beyond ±2**53 units of {unit(scale)}, which no float can represent: "
            "declare a smaller decimal_scale, or cast it to double in the table if rounding is fine"
        )
    return low.astype(np.float64)


def _digits(value: Decimal) -> int:
    """Digits after the point, without zeros at the end."""
    return len(format(value, "f").partition(".")[2].rstrip("0"))


def _reach(whole: NDArray[np.int64]) -> int:
    """The largest distance from 0."""
    return max(-int(whole.min()), int(whole.max())) if whole.size else 0


def _present(column: pa.Array) -> Mask:
    return np.asarray(column.is_valid())


def _dense(column: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    if column.type != kind:
        column = column.cast(kind)
    if column.null_count:
        column = column.fill_null(0)
    return np.asarray(column.to_numpy(zero_copy_only=False))
