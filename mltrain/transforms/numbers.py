"""Arrow columns as numbers: which number a value stands for, and what is refused instead of rounded.

| column type | number |
|---|---|
| bool | 0 or 1 |
| int8 … int64, uint8 … uint64 | itself; beyond ±2**53 it is refused |
| float32, float64 | itself; NaN counts as missing, an infinity is refused |
| date | days since 1970-01-01 |
| timestamp, with or without a zone | seconds since 1970-01-01T00:00:00 UTC |

Decimals are refused: whether a double may stand for them is the table owner's decision.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mltrain.errors import TableError

FLOAT64_EXACT = 2**53
FLOAT32_EXACT = 2**24

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Numbers:
    """A column as float64.

    Attributes:
        values: [rows], 0 where missing.
        present: [rows], False for null and NaN.
        integral: the column's type holds integers only.
    """

    values: Floats
    present: Mask
    integral: bool


def is_numeric(kind: pa.DataType) -> bool:
    """Whether :func:`numbers` accepts the type."""
    return bool(
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_date(kind)
        or pa.types.is_timestamp(kind)
    )


def numbers(name: str, column: pa.Array) -> Numbers:
    """The numbers that a column's values stand for (see the module's table).

    Raises:
        TableError: the type has no number, a value is infinite, or an integer has no exact float64.
    """
    kind = column.type
    if not is_numeric(kind):
        raise TableError(f"column {name!r} has type {kind}, which is not a number")
    present = np.asarray(column.is_valid())
    if pa.types.is_floating(kind):
        values = _dense(column, pa.float64()).astype(np.float64, copy=False)
        missing = np.isnan(values)
        if missing.any():
            present = present & ~missing
            values = np.where(missing, 0.0, values)
        if np.isinf(values).any():
            raise TableError(f"column {name!r} holds an infinity: make it null, or a number")
        return Numbers(values, present, integral=False)
    whole = integers(name, column)
    if whole.size and max(-int(whole.min()), int(whole.max())) > FLOAT64_EXACT:
        raise TableError(
            f"column {name!r} holds an integer beyond ±2**53, which no float can represent: "
            "declare it categorical, hashed or key, or drop it"
        )
    values = whole.astype(np.float64)
    if pa.types.is_timestamp(kind):
        return Numbers(values / 1e6, present, integral=False)
    return Numbers(values, present, integral=True)


def integers(name: str, column: pa.Array) -> NDArray[np.int64]:
    """Bools, integers, dates (days) and timestamps (microseconds) as int64; 0 where null.

    Raises:
        TableError: a uint64 beyond int64.
    """
    kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.unit != "us":
            column = pc.cast(column, pa.timestamp("us", tz=kind.tz))
        column = column.cast(pa.int64())
    elif pa.types.is_date(kind):
        column = column.cast(pa.date32()).cast(pa.int32())
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    try:
        return _dense(column, pa.int64()).astype(np.int64, copy=False)
    except pa.ArrowInvalid as error:
        raise TableError(f"column {name!r}: {error}") from error


def to_float32(name: str, values: Floats, *, integral: bool = False) -> NDArray[np.float32]:
    """Round to float32, or refuse.

    A fraction is rounded to the nearest float32: a measurement has no more digits. An integer is a count or a code, so
    it is exact or refused.

    Raises:
        TableError: an integer beyond ±2**24, or a number beyond float32's range.
    """
    if integral and values.size and np.abs(values).max() > FLOAT32_EXACT:
        raise TableError(
            f"column {name!r} holds the integer {values[np.abs(values).argmax()]:.0f}, beyond ±2**24, which no float32 "
            "represents: use `scale: standard`, declare it categorical or hashed, or cast it to double in the table "
            "if rounding is fine"
        )
    with np.errstate(over="ignore"):
        # Adding 0.0 turns -0.0 into 0.0: equal numbers get equal bytes.
        rounded = values.astype(np.float32) + np.float32(0.0)
    if not np.isfinite(rounded).all():
        raise TableError(f"column {name!r} holds a number beyond float32's range (3.4e38)")
    return rounded


def _dense(column: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    if column.type != kind:
        column = column.cast(kind)
    if column.null_count:
        column = column.fill_null(0)
    return np.asarray(column.to_numpy(zero_copy_only=False))
