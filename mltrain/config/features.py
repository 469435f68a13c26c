"""Which columns of a table are features, and how: patterns and defaults applied to the columns that are there.

Types are inferred so, where no pattern says otherwise:

====================================================  ===========
column                                                feature
====================================================  ===========
bool, integers, floats, dates, timestamps             numeric (dates as days, timestamps as seconds since 1970)
string                                                categorical
list of integers or strings                           id_list
list of floats, or of bools                           vector (lists of any length need ``size``)
====================================================  ===========

A decimal counts as numeric too: in whole units of its ``decimal_scale``. Without one the build refuses it with advice:
it is not rounded unasked.
An option that only another type takes chooses that type: an integer column with ``vocabulary`` is categorical.
Whether a column is dropped is up to the last pattern that matches it.
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from mltrain.config.dataset import OPTIONS, DatasetSpec, FeatureSpec, FeatureType, Missing
from mltrain.errors import TableError


@dataclass(frozen=True)
class ResolvedFeature:
    """A feature with every option that its type takes; the others are None."""

    name: str
    type: FeatureType
    impute: str | float | None = None
    scale: str | None = None
    min_count: int | None = None
    max_size: int | None = None
    vocabulary: str | None = None
    buckets: int | None = None
    max_length: int | None = None
    size: int | None = None
    decimal_scale: int | None = None
    missing: Missing = "impute"


def reserved(spec: DatasetSpec) -> dict[str, str]:
    """The columns that no pattern matches, each with its role: key, label, weight, keep or split."""
    roles = {spec.split.column: "split"} if spec.split.column else {}
    roles |= dict.fromkeys(spec.keep, "keep")
    roles |= {spec.weight: "weight"} if spec.weight else {}
    roles |= {label.column: "label" for label in spec.all_labels.values()}
    return roles | dict.fromkeys(spec.key, "key")


def resolve_features(spec: DatasetSpec, columns: Mapping[str, pa.DataType]) -> dict[str, ResolvedFeature]:
    """The features of a table in the order of its columns.

    Args:
        spec: patterns, defaults, and the columns that are something else.
        columns: the table's columns and types, in order.

    Raises:
        TableError: a configured column is not in the table, columns have types that their features cannot have (all
            of them are named), or nothing is left.
    """
    _require(spec, reserved(spec), columns)
    features, problems = resolve_each(spec, columns)
    if problems:
        raise TableError(f"table {spec.table}: " + "; ".join(problems))
    return features


def resolve_each(spec: DatasetSpec, columns: Mapping[str, pa.DataType]) -> tuple[dict[str, ResolvedFeature], list[str]]:
    """The features that can be made of a table, in the order of its columns, and what is wrong with the others."""
    roles = reserved(spec)
    features, problems = {}, []
    for name, arrow_type in columns.items():
        matching = [said for pattern, said in spec.features.items() if name not in roles and fnmatchcase(name, pattern)]
        if matching and not matching[-1].drop:
            try:
                features[name] = _feature(spec, name, arrow_type, _merge(matching))
            except TableError as error:
                problems.append(str(error))
    if not features and not problems:
        problems.append(f"no column is a feature; dataset.features matches none of {', '.join(columns)}")
    return features, problems


def _merge(matching: list[FeatureSpec]) -> dict[str, Any]:
    """Options of later specs win; a spec that names another type takes back what only fitted the old one."""
    merged: dict[str, Any] = {}
    for said in matching:
        if said.type is not None:
            kept = {key: value for key, value in merged.items() if key in OPTIONS[said.type]}
            merged = {**kept, "type": said.type}
        merged |= said.options()
    return merged


def _require(spec: DatasetSpec, roles: Mapping[str, str], columns: Mapping[str, pa.DataType]) -> None:
    named = {column: f"dataset.{role}" for column, role in roles.items()}
    named |= {pattern: "dataset.features" for pattern in spec.features if not any(sign in pattern for sign in "*?[")}
    missing = [
        f"{column!r} ({key}{_nearest(column, columns)})" for column, key in named.items() if column not in columns
    ]
    if missing:
        raise TableError(f"table {spec.table} has no column {', '.join(missing)}; it has {', '.join(columns)}")


def _nearest(column: str, columns: Mapping[str, pa.DataType]) -> str:
    close = difflib.get_close_matches(column, list(columns), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _feature(spec: DatasetSpec, name: str, arrow_type: pa.DataType, merged: Mapping[str, Any]) -> ResolvedFeature:
    options = {key: value for key, value in merged.items() if key != "type"}
    named = spec.features[name].options() if name in spec.features else {}
    kind = merged.get("type") or _infer(name, arrow_type, {*named, *(_TELLING & options.keys())})
    if not _suits(kind, arrow_type):
        cast = "cast it to string or bigint in the table, " if pa.types.is_decimal(arrow_type) else ""
        raise TableError(
            f"column {name!r} has type {arrow_type}, which no {kind} feature can have; "
            f"{cast}set dataset.features.{name}.type, or drop it with {{drop: true}}"
        )
    decimal = pa.types.is_decimal(arrow_type)
    if foreign := [key for key in named if key not in OPTIONS[kind] or (key == "decimal_scale" and not decimal)]:
        raise TableError(
            f"column {name!r} has type {arrow_type} and is {kind}, which takes no "
            f"{' and no '.join(foreign)}; set dataset.features.{name}.type, or take that out"
        )
    own = {
        **getattr(spec.defaults, kind).model_dump(),
        **{key: value for key, value in options.items() if key in OPTIONS[kind]},
    }
    if not decimal:
        own.pop("decimal_scale", None)
    if kind == "vector":
        own["size"] = _vector_size(name, arrow_type, own.get("size"))
    return ResolvedFeature(name, kind, **own)


# Nobody says these of all columns alike: they tell the type wherever they are said, others only under a column's name.
_TELLING = frozenset({"vocabulary", "buckets", "max_length", "size"})


def _infer(name: str, arrow_type: pa.DataType, telling: Collection[str]) -> FeatureType:
    """The first type that the column can have and that takes the ``telling`` options, else the first it can have."""
    possible: list[FeatureType] = [kind for kind in OPTIONS if _suits(kind, arrow_type)]
    if not possible:
        raise TableError(
            f"column {name!r} has type {arrow_type}, which cannot be a feature; "
            f"drop it with dataset.features: {{{name}: {{drop: true}}}}"
        )
    return next((kind for kind in possible if set(telling) <= set(OPTIONS[kind])), possible[0])


def _suits(kind: FeatureType, arrow_type: pa.DataType) -> bool:
    types = pa.types
    number = types.is_integer(arrow_type) or types.is_floating(arrow_type) or types.is_boolean(arrow_type)
    text = types.is_string(arrow_type) or types.is_large_string(arrow_type)
    if kind == "numeric":
        temporal = types.is_date(arrow_type) or types.is_timestamp(arrow_type)
        return bool(number or temporal or types.is_decimal(arrow_type))
    if kind in ("categorical", "hashed"):
        discrete = types.is_integer(arrow_type) or types.is_boolean(arrow_type) or types.is_date(arrow_type)
        return bool(text or discrete)
    if not _is_list(arrow_type):
        return False
    value = arrow_type.value_type
    if kind == "vector":
        return bool(types.is_floating(value) or types.is_integer(value) or types.is_boolean(value))
    return bool(types.is_integer(value) or types.is_string(value) or types.is_large_string(value))


def _is_list(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type))


def _vector_size(name: str, arrow_type: pa.DataType, said: int | None) -> int:
    fixed = arrow_type.list_size if pa.types.is_fixed_size_list(arrow_type) else None
    if said is None and fixed is None:
        raise TableError(
            f"column {name!r} has lists of any length; "
            f"say how long: dataset.features: {{{name}: {{type: vector, size: …}}}}"
        )
    if said is not None and fixed is not None and said != fixed:
        raise TableError(f"column {name!r} has vectors of {fixed}, and its size is given as {said}")
    return int(said or fixed or 0)
