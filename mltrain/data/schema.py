"""What a dataset holds: its columns and how shards pack them."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mltrain.errors import DamagedError, RequestError

Role = Literal["feature", "label", "weight", "key", "keep"]

MATRIX_DTYPES = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
RAGGED_KIND = "id_list"

ROW_NUMBER = "__row__"
"""What batches call canonical row numbers: no column may have this name."""
FINGERPRINT = "__mltrain_fingerprint"
"""What rows bring along besides the schema's columns where it has fingerprints: a hash (int64) of the source row."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        name: unique in the schema; a label's name is its task.
        role: ``feature``, ``label``, ``weight``, or carried through for people and predictions: ``key``, ``keep``.
        kind: ``numeric``, ``categorical``, ``hashed``, ``id_list`` or ``vector`` for features; the label type for
            labels;
            ``carried`` for keys and kept columns.
        dtype: numpy name of the elements (``float32``, ``int32``, ...); for carried columns an Arrow type name
            (``string``, ``int64``, ``date32``, ``timestamp[us, tz=UTC]``, ...).
        width: elements a row: 1 for scalars, n for vectors and multilabel targets; ragged columns (``id_list``) have 0.
        cardinality: ids of a categorical, hashed or id_list column are below it; 0 stands for unseen or missing.
        classes: the values that class 0, 1, ... of a label stand for.
        type: ``binary``, ``multiclass``, ``multilabel`` or ``regression`` for labels, else None.
        vocabulary: name of the vocabulary that several columns share.
    """

    name: str
    role: Role
    kind: str
    dtype: str
    width: int = 1
    cardinality: int | None = None
    classes: tuple[Any, ...] | None = None
    type: str | None = None
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        if self.carried or self.dtype in MATRIX_DTYPES:
            return
        raise ValueError(f"column {self.name!r}: dtype {self.dtype!r} is none of {', '.join(MATRIX_DTYPES)}")

    @property
    def carried(self) -> bool:
        """Stored as a plain Arrow column and not handed to models."""
        return self.role in ("key", "keep")

    @property
    def ragged(self) -> bool:
        """Stored as offsets and values."""
        return self.kind == RAGGED_KIND and not self.carried

    def to_json(self) -> dict[str, Any]:
        """All fields that differ from their defaults."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["classes"] = None if self.classes is None else list(self.classes)
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Column":
        """The inverse of :meth:`to_json`."""
        classes = data.get("classes")
        return cls(**{**data, "classes": None if classes is None else tuple(classes)})


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Columns of one dtype, packed side by side in one row-major matrix.

    Attributes:
        dtype: numpy name.
        slices: where each column lies in a row. Features come first, so that they are one contiguous slice.
        width: elements a row.
        feature_width: elements a row that belong to features.
    """

    dtype: str
    slices: Mapping[str, slice]
    width: int
    feature_width: int

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        return self.width * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of a dataset, in the order that models see them.

    Attributes:
        columns: all columns.
        key: names of the key columns; empty when the whole row stands in.
        fingerprints: shards keep a hash of each source row (:data:`FINGERPRINT`), by which growth tells what changed.
            It is no column: nobody but growth reads it, and no digest of content covers it.
    """

    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    fingerprints: bool = False

    def __post_init__(self) -> None:
        counts = collections.Counter(column.name for column in self.columns)
        repeated = sorted(name for name, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(f"columns {repeated} occur more than once in the schema; rename a task or a feature")
        if tuple(c.name for c in self.columns if c.role == "key") != self.key:
            raise ValueError(f"key {self.key} is not the columns of role 'key', in their order")
        if len(self.select("weight")) > 1:
            raise ValueError("a schema has at most one weight column")

    def select(self, *roles: str) -> tuple[Column, ...]:
        """Columns of these roles."""
        return tuple(column for column in self.columns if column.role in roles)

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            KeyError: there is none.
        """
        return self._by_name[name]

    def subset(self, names: Iterable[str]) -> "Schema":
        """The schema of some features, with all labels, weight, keys and kept columns.

        Raises:
            RequestError: a name is not a column, or one that is carried: no batch has it.
        """
        wanted = set(names)
        for name in sorted(wanted - {column.name for column in self.columns if not column.carried}):
            what = "which is no column of the dataset"
            if name in self:
                what = f"which is a {'key' if name in self.key else 'kept column'}: ds.read(split, [{name!r}]) gives it"
            choices = ", ".join(column.name for column in self.features)
            raise RequestError(f"columns names {name!r}, {what}; a batch can have the features {choices}")
        return dataclasses.replace(
            self, columns=tuple(c for c in self.columns if c.role != "feature" or c.name in wanted)
        )

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @property
    def features(self) -> tuple[Column, ...]:
        """Columns that models read."""
        return self.select("feature")

    @property
    def labels(self) -> dict[str, Column]:
        """Task name to label column."""
        return {column.name: column for column in self.select("label")}

    @property
    def weight(self) -> Column | None:
        """The sample weight, if there is one."""
        return next(iter(self.select("weight")), None)

    @property
    def carried(self) -> tuple[Column, ...]:
        """Keys and kept columns."""
        return self.select("key", "keep")

    @property
    def ragged(self) -> tuple[Column, ...]:
        """Columns of variable length."""
        return tuple(column for column in self.columns if column.ragged)

    @property
    def numeric(self) -> tuple[Column, ...]:
        """The features behind ``batch.numeric``, in its order: float32 scalars and vectors."""
        return tuple(c for c in self.features if c.dtype == "float32" and not c.ragged)

    @property
    def categorical(self) -> tuple[Column, ...]:
        """The features behind ``batch.categorical``, in its order: int32 ids of categorical and hashed columns."""
        return tuple(c for c in self.features if c.dtype == "int32" and not c.ragged)

    @functools.cached_property
    def matrices(self) -> Mapping[str, Matrix]:
        """How fixed-width columns are packed: dtype to matrix."""
        grouped: dict[str, list[Column]] = {}
        for column in (*self.features, *self.select("label", "weight")):
            if not column.ragged:
                grouped.setdefault(column.dtype, []).append(column)
        return {dtype: _pack(dtype, grouped[dtype]) for dtype in MATRIX_DTYPES if dtype in grouped}

    @functools.cached_property
    def _by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.columns}

    def __getstate__(self) -> dict[str, Any]:
        return {"columns": self.columns, "key": self.key, "fingerprints": self.fingerprints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def to_json(self) -> dict[str, Any]:
        """Plain data, equal for equal schemas."""
        data: dict[str, Any] = {"columns": [column.to_json() for column in self.columns], "key": list(self.key)}
        return {**data, "fingerprints": True} if self.fingerprints else data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Schema":
        """The inverse of :meth:`to_json`.

        Raises:
            DamagedError: not a schema.
        """
        try:
            columns = tuple(Column.from_json(column) for column in data["columns"])
            return cls(columns, tuple(data["key"]), data.get("fingerprints", False))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"not a dataset schema: {error}") from error


def column_names(columns: Iterable[str]) -> tuple[str, ...]:
    """Names that a caller gave.

    Raises:
        RequestError: they are one string: its letters would count as names.
    """
    if isinstance(columns, str):
        raise RequestError(f"columns={columns!r}: wanted a list of names, as in [{columns!r}]")
    return tuple(columns)


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type of a carried column from its name, as ``str(type)`` gives it.

    Raises:
        ValueError: unknown type name.
    """
    if dtype.startswith("timestamp[") and "tz=" in dtype:
        unit, zone = dtype.removeprefix("timestamp[").removesuffix("]").split(", tz=")
        return pa.timestamp(unit, zone)
    if dtype.startswith(("decimal128(", "decimal(")):
        precision, scale = dtype[dtype.index("(") + 1 : -1].split(",")
        return pa.decimal128(int(precision), int(scale))
    if dtype.startswith("fixed_size_binary["):
        return pa.binary(int(dtype.removeprefix("fixed_size_binary[").removesuffix("]")))
    if dtype.startswith("list<"):
        return pa.list_(arrow_type(dtype[5:-1].split(": ")[-1]))
    return pa.type_for_alias({"float": "float32", "double": "float64", "date32[day]": "date32"}.get(dtype, dtype))


def _pack(dtype: str, columns: list[Column]) -> Matrix:
    slices: dict[str, slice] = {}
    width = feature_width = 0
    for column in columns:
        slices[column.name] = slice(width, width + column.width)
        width += column.width
        if column.role == "feature":
            feature_width = width
    return Matrix(dtype, slices, width, feature_width)
