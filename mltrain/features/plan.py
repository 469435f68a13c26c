"""What a build does with a table's columns, decided from names and types alone, before a row is read."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from mltrain.config import DatasetSpec, LabelSpec, ResolvedFeature, resolve_each
from mltrain.data import keys
from mltrain.data.schema import ROW_NUMBER, arrow_type
from mltrain.errors import TableError
from mltrain.features.census import Check
from mltrain.features.derived import Derived, is_missing, is_negative, is_not_utf8
from mltrain.features.statistics import TermSource, Wanted
from mltrain.transforms import Indicator
from mltrain.transforms.numbers import is_numeric, unit
from mltrain.transforms.vocabulary import is_vocabulary_type

NUMBER = "__mltrain_number"
"""Numbers equal rows of a table without a key, from 0."""
RESERVED = "__mltrain_"

_DECIMAL_ADVICE = "cast it to double in the table if rounding is fine, or to bigint in whole units"


@dataclass(frozen=True)
class Plan:
    """The columns of a build.

    Attributes:
        schema: the table's readable columns.
        identity: the columns that tell rows apart, in order: the key, or every column and :data:`NUMBER`.
        keyed: they are a key.
        features: per column, with type and options settled.
        labels: per task.
        weight: column of row weights.
        split: column that decides the split.
        carried: key and kept columns.
        checks: what no row may be.
    """

    schema: pa.Schema
    identity: pa.Schema
    keyed: bool
    features: Mapping[str, ResolvedFeature]
    labels: Mapping[str, LabelSpec]
    weight: str | None
    split: str | None
    carried: tuple[str, ...]
    checks: tuple[Check, ...]

    def vocabulary(self, name: str) -> str:
        """Name of the vocabulary of a categorical or id_list feature: its column's, unless it shares one."""
        return self.features[name].vocabulary or name

    def used(self) -> tuple[str, ...]:
        """Columns of the table that are read."""
        labels = (label.column for label in self.labels.values())
        others = [one for one in (self.weight, self.split) if one]
        return tuple(dict.fromkeys((*self.identity.names, *self.features, *labels, *others, *self.carried)))

    def wanted(self) -> Wanted:
        """The statistics that fitting needs."""
        numeric = {name: spec for name, spec in self.features.items() if spec.type == "numeric"}
        filled = {name: spec.impute for name, spec in numeric.items() if spec.missing != "refuse"}
        fitted = [n for n, s in numeric.items() if s.scale != "none" or filled.get(n) in ("mean", "median")]
        return Wanted(
            identity=self.identity,
            checks=self.checks,
            moments=tuple(fitted),
            samples=tuple(name for name, impute in filled.items() if impute == "median"),
            decimal_scales={n: s.decimal_scale for n, s in numeric.items() if s.decimal_scale is not None},
            terms=(*self._vocabulary_terms(), *self._label_terms()),
        )

    def _vocabulary_terms(self) -> Iterator[TermSource]:
        for name, spec in self.features.items():
            if spec.type in ("categorical", "id_list"):
                yield TermSource(
                    name=f"vocabulary {self.vocabulary(name)}",
                    column=name,
                    strings=pa.types.is_string(_terms_type(self.schema.field(name).type)),
                    ragged=spec.type == "id_list",
                    min_count=spec.min_count or 1,
                )

    def _label_terms(self) -> Iterator[TermSource]:
        for task, label in self.labels.items():
            if label.type != "regression":
                kind = self.schema.field(label.column).type
                yield TermSource(
                    name=f"label {task}",
                    column=label.column,
                    strings=pa.types.is_string(_terms_type(kind)),
                    ragged=label.type == "multilabel",
                    all_rows=True,
                )


def plan(spec: DatasetSpec, schema: pa.Schema, unreadable: Mapping[str, str]) -> tuple[Plan, list[str]]:
    """The plan, and what is wrong with it: the plan is of use only if that is empty.

    Args:
        spec: the dataset file's part.
        schema: the table's columns.
        unreadable: columns that no task could read, and their Spark types.
    """
    problems = list(_missing(spec, [*schema.names, *unreadable]))
    problems += [
        f"column {name!r} has type {kind}, which cannot be read"
        for name, kind in unreadable.items()
        if name in _named(spec)
    ]
    reserved = [name for name in schema.names if name.startswith(RESERVED)]
    problems += [f"column {name!r}: names that start with {RESERVED} are reserved; rename it" for name in reserved]
    if problems:
        return _empty(schema), problems
    unusable = dict.fromkeys(unreadable, pa.null())
    features, problems = resolve_each(spec, {**{field.name: field.type for field in schema}, **unusable})
    problems += _types(spec, features, schema)
    problems += _clashes(spec, features)
    identity, complaints = _identity(spec, schema, unreadable)
    problems += complaints
    made = Plan(
        schema=schema,
        identity=identity,
        keyed=bool(spec.key),
        features=features,
        labels=spec.all_labels,
        weight=spec.weight,
        split=spec.split.column,
        carried=(*spec.key, *spec.keep),
        checks=tuple(_checks(spec, features, schema)),
    )
    return made, problems


def _named(spec: DatasetSpec) -> dict[str, str]:
    """Columns that the dataset file names, and where."""
    exact = {name: "features" for name in spec.features if not any(mark in name for mark in "*?[")}
    labels = {label.column: f"label {task}" for task, label in spec.all_labels.items()}
    named = {**exact, **dict.fromkeys(spec.key, "key"), **labels, **dict.fromkeys(spec.keep, "keep")}
    if spec.weight:
        named[spec.weight] = "weight"
    if spec.split.column:
        named[spec.split.column] = "split"
    return named


def _missing(spec: DatasetSpec, names: list[str]) -> Iterator[str]:
    for name, where in _named(spec).items():
        if name not in names:
            folded = {other.lower(): other for other in names}
            near = difflib.get_close_matches(name.lower(), folded, n=1)
            hint = f"; did you mean {folded[near[0]]!r}?" if near else f"; it has {', '.join(names[:20])}"
            yield f"{where} names column {name!r}, which the table lacks{hint}"


def _types(spec: DatasetSpec, features: Mapping[str, ResolvedFeature], schema: pa.Schema) -> Iterator[str]:
    for name in spec.key:
        yield from _complaint(keys.check_key_column, name, schema.field(name).type)
    for name, feature in features.items():
        kind = schema.field(name).type
        if problem := _feature_problem(feature, kind):
            yield f"column {name!r} has type {kind}: {problem}, or drop it (features: {{{name}: {{drop: true}}}})"
    for name in spec.keep:
        kind = schema.field(name).type
        if carried_type(kind) is None or _complaint(keys.tag_of, name, kind):
            yield (
                f"kept column {name!r} has type {kind}, which shards cannot hold: take it out of "
                "dataset.keep, or keep its parts, or its text (to_json), as columns of the table"
            )
    for task, label in spec.all_labels.items():
        kind = schema.field(label.column).type
        if problem := _label_problem(label, kind):
            yield f"label {task!r}: column {label.column!r} has type {kind}: {problem}"
    if spec.weight and (problem := _weight_problem(schema.field(spec.weight).type)):
        yield f"weight {spec.weight!r} has type {schema.field(spec.weight).type}: {problem}"
    if spec.split.column:
        yield from _split_problems(spec, schema.field(spec.split.column).type)
    yield from _shared_vocabularies(features, schema)


def _feature_problem(feature: ResolvedFeature, kind: pa.DataType) -> str | None:
    if feature.type == "numeric":
        if pa.types.is_decimal(kind) and feature.decimal_scale is None:
            return (
                f"decimals are not rounded silently: count whole units of {unit(kind.scale)} "
                f"(features: {{{feature.name}: {{decimal_scale: {kind.scale}}}}}), or {_DECIMAL_ADVICE}"
            )
        if pa.types.is_decimal(kind):
            return None
        return None if is_numeric(kind) else "a numeric feature is a number, bool, date or timestamp"
    if feature.type in ("categorical", "hashed"):
        return None if is_vocabulary_type(kind) else f"a {feature.type} feature holds strings, integers, bools or dates"
    if not _is_list(kind):
        return f"a feature of type {feature.type} is an array"
    if feature.type == "id_list":
        return None if is_vocabulary_type(kind.value_type) else "an id_list holds strings or integers"
    if not is_numeric(kind.value_type):
        return "a vector holds numbers; cast it to array<double> in the table"
    return None if feature.size else "a vector needs its size (features: {…: {type: vector, size: N}})"


def _label_problem(label: LabelSpec, kind: pa.DataType) -> str | None:
    if label.type == "regression":
        return None if is_numeric(kind) else f"a regression label is a number{_decimal_advice(kind)}"
    if label.type == "multilabel":
        held = _is_list(kind) and is_vocabulary_type(kind.value_type)
        return None if held else "a multilabel label is an array of strings or integers"
    if is_vocabulary_type(kind):
        return None
    return f"a {label.type} label holds strings, integers or bools{_decimal_advice(kind, 'string or bigint')}"


def _weight_problem(kind: pa.DataType) -> str | None:
    number = is_numeric(kind) and not pa.types.is_temporal(kind)
    return None if number else f"a weight is a number{_decimal_advice(kind)}"


def _decimal_advice(kind: pa.DataType, to: str | None = None) -> str:
    if not pa.types.is_decimal(kind):
        return ""
    return f"; cast it to {to} in the table" if to else f"; {_DECIMAL_ADVICE}"


def _split_problems(spec: DatasetSpec, kind: pa.DataType) -> Iterator[str]:
    name, method = spec.split.column or "", spec.split.method
    if method == "time" and not (pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_integer(kind)):
        yield f"split by time of column {name!r}, which has type {kind}: a timestamp, date or integer is wanted"
    if method == "group":
        yield from _complaint(keys.check_key_column, name, kind)
    if method == "column" and not pa.types.is_string(kind):
        yield f"split by column {name!r}, which has type {kind}: a string that names the split is wanted"
    if method == "stratified" and not is_vocabulary_type(kind):
        yield f"split stratified by column {name!r}, which has type {kind}: strings, integers or bools are wanted"


def _shared_vocabularies(features: Mapping[str, ResolvedFeature], schema: pa.Schema) -> Iterator[str]:
    first: dict[str, str] = {}
    for name, feature in features.items():
        if feature.type not in ("categorical", "id_list"):
            continue
        other = first.setdefault(feature.vocabulary or name, name)
        mine, theirs = (_terms_type(schema.field(one).type) for one in (name, other))
        if mine != theirs:
            yield f"columns {other!r} and {name!r} share a vocabulary but hold {theirs} and {mine}"
        if (feature.min_count, feature.max_size) != (features[other].min_count, features[other].max_size):
            yield f"columns {other!r} and {name!r} share a vocabulary: set min_count and max_size of both alike"


def _clashes(spec: DatasetSpec, features: Mapping[str, ResolvedFeature]) -> Iterator[str]:
    taken = {ROW_NUMBER: "column of batches, the numbers of their rows"}
    names = [
        *((name, "feature") for name in features),
        *((Indicator(name).name, "feature") for name, one in features.items() if one.missing == "indicator"),
        *((task, "label") for task in spec.all_labels),
        *([(spec.weight, "weight")] if spec.weight else []),
        *((name, "key") for name in spec.key),
        *((name, "kept column") for name in spec.keep),
    ]
    for name, role in names:
        if name in taken:
            yield (
                f"{role} {name!r} has the name of a {taken[name]}: rename the task or the column, or drop the feature"
            )
        taken[name] = role


def _identity(spec: DatasetSpec, schema: pa.Schema, unreadable: Mapping[str, str]) -> tuple[pa.Schema, list[str]]:
    if spec.key:
        return pa.schema([schema.field(name) for name in spec.key]), []
    problems = [
        f"column {name!r} has type {kind}, by which rows cannot be told apart; name a key (dataset.key)"
        for name, kind in unreadable.items()
    ]
    for field in schema:
        problems += _complaint(keys.tag_of, field.name, field.type)
    return pa.schema([*schema, pa.field(NUMBER, pa.int64())]), problems


def _checks(spec: DatasetSpec, features: Mapping[str, ResolvedFeature], schema: pa.Schema) -> Iterator[Check]:
    for name in spec.key:
        yield _check(
            is_missing(name, schema.field(name).type), f"key column {name!r} is null", "a key has a value in every row"
        )
    for name in (*spec.key, *spec.keep):
        if _terms_type(schema.field(name).type) == pa.string():
            yield _check(
                is_not_utf8(name, schema.field(name).type),
                f"column {name!r} holds a string that is not UTF-8",
                "decode it in the table, or cast it to binary",
            )
    for task, label in spec.all_labels.items():
        yield _check(
            is_missing(label.column, schema.field(label.column).type),
            f"label {task!r} (column {label.column!r}) is null or NaN",
            "take out the rows without a label",
        )
    if spec.weight:
        kind = schema.field(spec.weight).type
        yield _check(is_missing(spec.weight, kind), f"weight {spec.weight!r} is null or NaN")
        yield _check(is_negative(spec.weight, kind), f"weight {spec.weight!r} is negative", "weights are 0 or more")
    if spec.split.column and spec.split.method in ("group", "time", "column"):
        where = f"split column {spec.split.column!r}"
        yield _check(
            is_missing(spec.split.column, schema.field(spec.split.column).type),
            f"{where} is null",
            "every row belongs to a split",
        )
    for name, feature in features.items():
        if feature.missing == "refuse":
            yield _check(
                is_missing(name, schema.field(name).type),
                f"column {name!r} has no value",
                f"its option is `missing: refuse`; fill it in the table, or set dataset.features.{name}.missing",
            )


def _check(condition: Derived, what: str, advice: str = "") -> Check:
    """A check that says ``what`` of the number of rows for which the condition is true."""
    said = what.replace("{", "{{").replace("}", "}}") + " in {n} rows"
    return Check(condition, f"{said}: {advice.replace('{', '{{').replace('}', '}}')}" if advice else said)


def _complaint(check: Callable[[str, pa.DataType], object], name: str, kind: pa.DataType) -> list[str]:
    try:
        check(name, kind)
    except TableError as error:
        return [str(error)]
    return []


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def carried_type(kind: pa.DataType) -> str | None:
    """How the schema names the type of a key or kept column; None where shards cannot hold it."""
    if pa.types.is_timestamp(kind) and kind.tz:
        return str(pa.timestamp(kind.unit, "UTC"))
    if pa.types.is_list(kind) and not _is_list(kind.value_type):
        inner = carried_type(kind.value_type)
        # Its elements may be null, whatever the table says of them.
        return str(pa.list_(pa.field("element", arrow_type(inner)))) if inner else None
    try:
        return str(kind) if arrow_type(str(kind)) == kind else None
    except ValueError:
        return None


def _terms_type(kind: pa.DataType) -> pa.DataType:
    """What a vocabulary over a column holds: strings, or int64 for everything else."""
    element = kind.value_type if _is_list(kind) else kind
    return pa.string() if pa.types.is_string(element) or pa.types.is_large_string(element) else pa.int64()


def _empty(schema: pa.Schema) -> Plan:
    return Plan(schema, pa.schema([]), True, {}, {}, None, None, (), ())
