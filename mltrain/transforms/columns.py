"""One fitted transform a column: frozen data with ``apply(array) -> array``, no state elsewhere.

Every output is dense and without nulls: float32 or int32, of one width, or a ragged list of ids.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mltrain.errors import TableError
from mltrain.transforms.hashing import hash_integers, hash_strings
from mltrain.transforms.numbers import Mask, exact_float32, is_missing, numbers, to_float32
from mltrain.transforms.vocabulary import Vocabulary, terms

Missing = Literal["impute", "refuse"]
"""What a transform does about missing values: it puts something in their place, or takes none."""

INDICATOR = "__missing"
"""Ends the name of the feature that says where a column has no value."""

MAX_BUCKETS = 2**31

_CAST = "cast it to double in the table if rounding is fine"


@dataclass(frozen=True)
class Field:
    """A column that a transform makes.

    Attributes:
        name: the source column's name; for a label, the task's.
        role: feature, label or weight.
        kind: numeric, indicator, categorical, hashed, id_list, vector, label or weight.
        dtype: numpy name of an element.
        width: elements a row; 1 for scalars and for ragged lists.
        cardinality: ids are below it (categorical, hashed, id_list).
        classes: a label's classes; an element of a class label is an index into them.
        type: a label's type.
        vocabulary: name of the vocabulary that the ids come from.
    """

    name: str
    role: Literal["feature", "label", "weight"]
    kind: str
    dtype: str
    width: int = 1
    cardinality: int | None = None
    classes: tuple[str | int | bool, ...] | None = None
    type: str | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class Numeric:
    """``(x - center) / scale`` in float64, then float32; a missing x is ``fill``.

    Values outside the range seen in training are not clipped. Of a decimal, x is the number of whole units of
    ``decimal_scale`` (see :mod:`mltrain.transforms.numbers`).
    """

    kind: ClassVar[str] = "numeric"
    column: str
    fill: float
    center: float = 0.0
    scale: float = 1.0
    decimal_scale: int | None = None
    missing: Missing = "impute"

    def field(self) -> Field:
        """What it makes."""
        return Field(self.column, "feature", self.kind, "float32")

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> float32 [rows]."""
        found = numbers(self.column, column, self.decimal_scale)
        if self.missing == "refuse":
            _refuse(self.column, ~found.present)
        values = np.where(found.present, found.values, self.fill)
        if (self.center, self.scale) != (0.0, 1.0):
            with np.errstate(over="ignore"):
                scaled = (values - self.center) / self.scale
            return pa.array(to_float32(self.column, scaled))
        # Only the column's own values must be exact: a fill such as a mean may have a fraction.
        own = exact_float32(
            self.column, found, f"use `scale: standard`, declare it categorical or hashed if it can be, or {_CAST}"
        )
        return pa.array(np.where(found.present, own, to_float32(self.column, values)))


@dataclass(frozen=True)
class Indicator:
    """1 where the column's value is missing (null or NaN), else 0: a feature of its own beside the column's."""

    kind: ClassVar[str] = "indicator"
    column: str

    @property
    def name(self) -> str:
        """The name of the feature."""
        return f"{self.column}{INDICATOR}"

    def field(self) -> Field:
        """What it makes."""
        return Field(self.name, "feature", self.kind, "float32")

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> float32 [rows]."""
        return pa.array(is_missing(column).astype(np.float32))


@dataclass(frozen=True)
class Categorical:
    """Id in a vocabulary; 0 = unseen or missing."""

    kind: ClassVar[str] = "categorical"
    column: str
    vocabulary: str
    missing: Missing = "impute"

    def field(self, vocabulary: Vocabulary) -> Field:
        """What it makes."""
        return Field(
            self.column, "feature", self.kind, "int32", cardinality=vocabulary.cardinality, vocabulary=self.vocabulary
        )

    def apply(self, column: pa.Array, vocabulary: Vocabulary) -> pa.Array:
        """[rows] -> int32 [rows]."""
        if self.missing == "refuse":
            _refuse(self.column, is_missing(column))
        return pa.array(vocabulary.ids(self.column, terms(self.column, column)))


@dataclass(frozen=True)
class Hashed:
    """``1 + XXH64(value) mod (buckets - 1)``; 0 = missing. Strings hash as UTF-8, all else as little-endian int64."""

    kind: ClassVar[str] = "hashed"
    column: str
    buckets: int
    missing: Missing = "impute"

    def __post_init__(self) -> None:
        if self.buckets > MAX_BUCKETS:
            raise ValueError(f"{self.buckets} buckets: an int32 id has room for {MAX_BUCKETS}")

    def field(self) -> Field:
        """What it makes."""
        return Field(self.column, "feature", self.kind, "int32", cardinality=self.buckets)

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> int32 [rows]."""
        if self.missing == "refuse":
            _refuse(self.column, is_missing(column))
        values = terms(self.column, column)
        if pa.types.is_string(values.type):
            hashes = hash_strings(values)
        else:
            hashes = hash_integers(values.fill_null(0).to_numpy(zero_copy_only=False))
        ids = (hashes % np.uint64(self.buckets - 1)).astype(np.int32) + np.int32(1)
        if values.null_count:
            ids[np.asarray(values.is_null())] = 0
        return pa.array(ids)


@dataclass(frozen=True)
class IdList:
    """Ids of a list's elements, the last ``max_length`` of them; a null list is an empty one."""

    kind: ClassVar[str] = "id_list"
    column: str
    vocabulary: str
    max_length: int | None = None
    missing: Missing = "impute"

    def field(self, vocabulary: Vocabulary) -> Field:
        """What it makes."""
        return Field(
            self.column, "feature", self.kind, "int32", cardinality=vocabulary.cardinality, vocabulary=self.vocabulary
        )

    def apply(self, column: pa.Array, vocabulary: Vocabulary) -> pa.Array:
        """list [rows] -> list of int32 [rows], ragged."""
        elements, lengths = flatten(self.column, column)
        if self.missing == "refuse":
            _refuse(self.column, is_missing(column))
            _refuse(self.column, is_missing(elements), "ids among its lists'")
        ids = vocabulary.ids(self.column, terms(self.column, elements))
        if self.max_length is not None and lengths.size and lengths.max() > self.max_length:
            ends = np.cumsum(lengths)
            from_end = np.repeat(ends, lengths) - np.arange(len(ids))
            ids = ids[from_end <= self.max_length]
            lengths = np.minimum(lengths, self.max_length)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))


@dataclass(frozen=True)
class Vector:
    """A list of exactly ``size`` numbers, as float32, without nulls. A missing list is refused, or is all zeros."""

    kind: ClassVar[str] = "vector"
    column: str
    size: int
    missing: Missing = "refuse"

    def field(self) -> Field:
        """What it makes."""
        return Field(self.column, "feature", self.kind, "float32", width=self.size)

    def apply(self, column: pa.Array) -> pa.Array:
        """list [rows] -> float32 [rows, size]."""
        if self.missing == "refuse":
            _refuse(self.column, is_missing(column))
        elements, lengths = flatten(self.column, column)
        present = ~is_missing(column)
        wrong = present & (lengths != self.size)
        if wrong.any():
            found_size = int(lengths[wrong][0])
            raise TableError(f"vector {self.column!r} has size {self.size} but a row holds {found_size} numbers")
        found = numbers(self.column, elements)
        if not found.present.all():
            raise TableError(f"vector {self.column!r} holds a null or NaN among its numbers")
        values = np.zeros((len(column), self.size), np.float32)
        values[present] = exact_float32(self.column, found, _CAST).reshape(-1, self.size)
        return fixed_size_list(values)


@dataclass(frozen=True)
class ClassLabel:
    """A value's place among the classes. Binary: 0 or 1 as float32; multiclass: an int32."""

    kind: ClassVar[str] = "label"
    task: str
    column: str
    classes: tuple[str | int, ...]
    binary: bool

    def field(self) -> Field:
        """What it makes."""
        dtype, label = ("float32", "binary") if self.binary else ("int32", "multiclass")
        return Field(
            self.task, "label", self.kind, dtype, cardinality=len(self.classes), classes=self.classes, type=label
        )

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> float32 or int32 [rows]."""
        ids = class_ids(self.task, terms(self.column, column), self.classes)
        return pa.array(ids.astype(np.float32 if self.binary else np.int32))


@dataclass(frozen=True)
class MultiLabel:
    """One 0 or 1 a class, as float32; an empty list is no class at all."""

    kind: ClassVar[str] = "multilabel"
    task: str
    column: str
    classes: tuple[str | int, ...]

    def field(self) -> Field:
        """What it makes."""
        width = len(self.classes)
        return Field(self.task, "label", "label", "float32", width=width, classes=self.classes, type="multilabel")

    def apply(self, column: pa.Array) -> pa.Array:
        """list [rows] -> float32 [rows, classes]."""
        if column.null_count:
            raise TableError(f"label {self.task!r} holds a null: an empty list says that no class applies")
        elements, lengths = flatten(self.column, column)
        ids = class_ids(self.task, terms(self.column, elements), self.classes)
        matrix = np.zeros((len(column), len(self.classes)), dtype=np.float32)
        matrix[np.repeat(np.arange(len(column)), lengths), ids] = 1.0
        return fixed_size_list(matrix)


@dataclass(frozen=True)
class RegressionLabel:
    """The number itself, as float32."""

    kind: ClassVar[str] = "regression"
    task: str
    column: str

    def field(self) -> Field:
        """What it makes."""
        return Field(self.task, "label", "label", "float32", type="regression")

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> float32 [rows]."""
        found = numbers(self.column, column)
        if not found.present.all():
            raise TableError(
                f"label {self.task!r} holds a null or NaN: drop the rows that have no label from the table"
            )
        return pa.array(exact_float32(self.column, found, f"rescale it in the table, or {_CAST}"))


@dataclass(frozen=True)
class Weight:
    """A row's weight in every loss and metric, as float32: present, finite and at least 0."""

    kind: ClassVar[str] = "weight"
    column: str

    def field(self) -> Field:
        """What it makes."""
        return Field(self.column, "weight", self.kind, "float32")

    def apply(self, column: pa.Array) -> pa.Array:
        """[rows] -> float32 [rows]."""
        found = numbers(self.column, column)
        if not found.present.all():
            raise TableError(f"weight {self.column!r} holds a null or NaN")
        if found.values.size and found.values.min() < 0:
            raise TableError(f"weight {self.column!r} holds {found.values.min():g}: weights are 0 or more")
        return pa.array(exact_float32(self.column, found, f"rescale it in the table, or {_CAST}"))


Feature = Numeric | Indicator | Categorical | Hashed | IdList | Vector
Target = ClassLabel | MultiLabel | RegressionLabel | Weight


def _refuse(name: str, absent: Mask, what: str = "rows") -> None:
    if absent.any():
        raise TableError(
            f"column {name!r} has no value in {np.count_nonzero(absent)} {what}, and its option is `missing: refuse`: "
            f"fill it in the table, or set dataset.features.{name}.missing"
        )


def class_ids(task: str, values: pa.Array, classes: tuple[str | int, ...]) -> NDArray[np.int64]:
    """Each value's place among the classes, [n].

    Raises:
        TableError: a null, or a value that is not a class.
    """
    if values.null_count:
        raise TableError(f"label {task!r} holds a null: drop the rows that have no label from the table")
    try:
        known = pa.array(classes, values.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f"label {task!r} has classes {list(classes)} but its column holds {values.type}") from error
    found = pc.index_in(values, known)
    if found.null_count:
        strange = values.filter(found.is_null())[0].as_py()
        raise TableError(f"label {task!r} holds {strange!r}, which is not one of its classes {list(classes)}")
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


def flatten(name: str, column: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """A list column as its elements and the length of every row's list (0 for null).

    Raises:
        TableError: the column holds no lists.
    """
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise TableError(f"column {name!r} has type {kind}: an array is wanted")
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten(), lengths.astype(np.int64)


def fixed_size_list(matrix: NDArray[np.float32]) -> pa.Array:
    """[rows, width] as an Arrow column without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
