"""What a shard's columns look like in numbers: shown, plotted and merged over shards, never part of a digest."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.data.schema import Column, Schema


@dataclasses.dataclass(frozen=True)
class ColumnStatistics:
    """Numbers of one column over some rows.

    Attributes:
        count: elements (rows times width; ids of a ragged column).
        minimum: smallest element, None without elements.
        maximum: largest element.
        total: sum of the elements.
        zeros: elements that are 0: for ids, unseen or missing.
        classes: rows of each class, for binary and multiclass labels; positives of each class, for multilabel ones.
        empty: rows whose list has no element, for ragged columns of datasets that count them.
    """

    count: int
    minimum: float | None
    maximum: float | None
    total: float
    zeros: int
    classes: tuple[int, ...] | None = None
    empty: int | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the elements, None without elements."""
        return self.total / self.count if self.count else None

    def to_json(self) -> list[Any]:
        """A short list: there is one per column and shard."""
        classes = None if self.classes is None else list(self.classes)
        numbers = [self.count, self.minimum, self.maximum, self.total, self.zeros, classes]
        return numbers if self.empty is None else [*numbers, self.empty]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> "ColumnStatistics":
        """The inverse of :meth:`to_json`."""
        count, minimum, maximum, total, zeros, classes, *empty = data
        classes = None if classes is None else tuple(classes)
        return cls(count, minimum, maximum, total, zeros, classes, *empty)


_SIDE_BY_SIDE = 64

ShardStatistics = Mapping[str, ColumnStatistics]


def describe(
    schema: Schema, matrices: Mapping[str, NDArray[Any]], ragged: Mapping[str, pa.ListArray]
) -> dict[str, ColumnStatistics]:
    """Statistics of every column that is not carried.

    Args:
        schema: the columns.
        matrices: dtype to packed columns, ``[rows, width]``.
        ragged: name to lists.
    """
    summary = {dtype: _summarise(matrix) for dtype, matrix in matrices.items()}
    result = {}
    for column in schema.columns:
        if column.carried:
            continue
        if column.ragged:
            lists = ragged[column.name]
            values = lists.flatten().to_numpy(zero_copy_only=False)
            found = _column(column, values, _summarise(values.reshape(-1, 1)), slice(0, 1))
            empty = int(np.count_nonzero(np.diff(lists.offsets.to_numpy()) == 0))
            result[column.name] = dataclasses.replace(found, empty=empty)
        else:
            where = schema.matrices[column.dtype].slices[column.name]
            result[column.name] = _column(column, matrices[column.dtype][:, where], summary[column.dtype], where)
    return result


def merge(parts: Sequence[ColumnStatistics]) -> ColumnStatistics:
    """Statistics of the union of disjoint rows. Exactly rounded sums: the order of the parts does not matter."""
    minima = [part.minimum for part in parts if part.minimum is not None]
    maxima = [part.maximum for part in parts if part.maximum is not None]
    counted = [part.classes for part in parts if part.classes is not None]
    empty = [part.empty for part in parts if part.empty is not None]
    return ColumnStatistics(
        count=sum(part.count for part in parts),
        minimum=min(minima, default=None),
        maximum=max(maxima, default=None),
        total=math.fsum(part.total for part in parts),
        zeros=sum(part.zeros for part in parts),
        classes=tuple(map(sum, zip(*counted, strict=True))) if counted else None,
        empty=sum(empty) if empty and len(empty) == len(parts) else None,
    )


def _summarise(matrix: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Per position of a row: smallest, largest, sum, zeros."""
    if not len(matrix):
        empty = np.zeros(matrix.shape[1])
        return {"minimum": empty, "maximum": empty, "total": empty, "zeros": empty}
    return {
        "minimum": _reduce(np.min, matrix),
        "maximum": _reduce(np.max, matrix),
        "total": _reduce(partial(np.sum, dtype=np.float64), matrix),
        "zeros": _reduce(partial(np.sum, dtype=np.int64), matrix == 0),
    }


def _reduce(reduce: Callable[..., NDArray[Any]], matrix: NDArray[Any]) -> NDArray[Any]:
    """``reduce(matrix, axis=0)``, several times as fast: numpy reduces long rows, made of many short ones, faster."""
    whole = len(matrix) // _SIDE_BY_SIDE
    wide = matrix[: whole * _SIDE_BY_SIDE].reshape(whole, _SIDE_BY_SIDE * matrix.shape[1])
    parts = [reduce(wide, axis=0).reshape(-1, matrix.shape[1])] if whole else []
    if whole * _SIDE_BY_SIDE < len(matrix):
        parts.append(reduce(matrix[whole * _SIDE_BY_SIDE :], axis=0)[None])
    return reduce(np.concatenate(parts), axis=0)


def _column(
    column: Column, values: NDArray[Any], summary: Mapping[str, NDArray[Any]], where: slice
) -> ColumnStatistics:
    return ColumnStatistics(
        count=int(values.size),
        minimum=float(summary["minimum"][where].min()) if values.size else None,
        maximum=float(summary["maximum"][where].max()) if values.size else None,
        total=math.fsum(summary["total"][where]),
        zeros=int(summary["zeros"][where].sum()),
        classes=_class_counts(column, values),
    )


def _class_counts(column: Column, values: NDArray[Any]) -> tuple[int, ...] | None:
    if column.role != "label" or column.classes is None:
        return None
    if column.type == "multilabel":
        return tuple(int(n) for n in np.count_nonzero(values, axis=0))
    return tuple(int(n) for n in np.bincount(values.reshape(-1).astype(np.int64), minlength=len(column.classes)))
