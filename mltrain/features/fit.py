"""Fitted transforms from statistics: pure, and total over what the plan admits."""

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mltrain.config import LabelSpec, ResolvedFeature
from mltrain.data.schema import Column, Schema
from mltrain.features.plan import Plan
from mltrain.features.statistics import Statistics
from mltrain.transforms import (
    Categorical,
    ClassLabel,
    Field,
    FittedTransforms,
    Hashed,
    IdList,
    MultiLabel,
    Numeric,
    RegressionLabel,
    Vector,
    Vocabulary,
    Weight,
)
from mltrain.transforms.columns import Feature, Target
from mltrain.transforms.vocabulary import ranked

MAX_CLASSES = 10_000
_SHOWN = 5


def fit(plan: Plan, found: Statistics) -> tuple[FittedTransforms, list[str]]:
    """Transforms, and what the statistics say is wrong: they are of use only if that is empty."""
    problems = list(found.problems.values())
    features: list[Feature] = []
    vocabularies: dict[str, Vocabulary] = {}
    for name, spec in plan.features.items():
        if spec.type in ("categorical", "id_list"):
            _add_vocabulary(plan, name, spec, found, vocabularies)
        features.append(_feature(plan, name, spec, found, problems))
    targets: list[Target] = [_label(task, label, found, problems) for task, label in plan.labels.items()]
    if plan.weight:
        targets.append(Weight(plan.weight))
    return FittedTransforms(tuple(features), tuple(targets), vocabularies), problems


def dataset_schema(transforms: FittedTransforms, plan: Plan, key: tuple[str, ...]) -> Schema:
    """The dataset's columns: what transforms make, then the key, then what is kept."""
    carried = [
        Column(
            name=name,
            role="key" if name in key else "keep",
            kind="carried",
            dtype=_carried_type(plan.schema.field(name).type),
        )
        for name in plan.carried
    ]
    return Schema((*(_column(field) for field in transforms.schema), *carried), key)


def _column(field: Field) -> Column:
    return Column(
        name=field.name,
        role=field.role,
        kind=field.type if field.role == "label" and field.type else field.kind,
        dtype=field.dtype,
        width=0 if field.kind == "id_list" else field.width,
        cardinality=field.cardinality if field.role == "feature" else None,
        classes=field.classes,
        type=field.type,
        vocabulary=field.vocabulary,
    )


def _carried_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind) and kind.tz:
        return str(pa.timestamp(kind.unit, "UTC"))
    return str(kind)


def _add_vocabulary(
    plan: Plan, name: str, spec: ResolvedFeature, found: Statistics, vocabularies: dict[str, Vocabulary]
) -> None:
    vocabulary = plan.vocabulary(name)
    if vocabulary not in vocabularies:
        values, counts = found.terms[f"vocabulary {vocabulary}"]
        vocabularies[vocabulary] = ranked(values, counts, min_count=spec.min_count or 1, max_size=spec.max_size)


def _feature(plan: Plan, name: str, spec: ResolvedFeature, found: Statistics, problems: list[str]) -> Feature:
    if spec.type == "categorical":
        return Categorical(name, plan.vocabulary(name))
    if spec.type == "id_list":
        return IdList(name, plan.vocabulary(name), spec.max_length)
    if spec.type == "hashed":
        return Hashed(name, spec.buckets or 2)
    if spec.type == "vector":
        return Vector(name, spec.size or 0)
    return _numeric(name, spec, found, problems)


def _numeric(name: str, spec: ResolvedFeature, found: Statistics, problems: list[str]) -> Numeric:
    moments = found.moments.get(name)
    if name in found.problems:
        return Numeric(name, 0.0)
    if moments is not None and not moments.count:
        problems.append(
            f"column {name!r} has no number in the train split, so nothing can be fitted: drop it, or use "
            "`impute: zero` and `scale: none`"
        )
        return Numeric(name, 0.0)
    fill = 0.0
    if spec.impute == "median":
        median = found.medians[name]
        # A sample can miss the few numbers of a nearly empty column; their mean is as good a guess.
        fill = median if median is not None else moments.mean if moments else 0.0
    elif spec.impute == "mean" and moments:
        fill = moments.mean
    elif isinstance(spec.impute, int | float):
        fill = float(spec.impute)
    if spec.scale == "standard" and moments:
        return Numeric(name, fill, moments.mean, moments.deviation or 1.0)
    if spec.scale == "minmax" and moments:
        return Numeric(name, fill, moments.low, (moments.high - moments.low) or 1.0)
    return Numeric(name, fill)


def _label(task: str, label: LabelSpec, found: Statistics, problems: list[str]) -> Target:
    if label.type == "regression":
        return RegressionLabel(task, label.column)
    values, _ = found.terms[f"label {task}"]
    if label.column in found.problems:
        return RegressionLabel(task, label.column)
    if len(values) > MAX_CLASSES:
        problems.append(
            f"label {task!r} has {len(values)} values, more than {MAX_CLASSES} classes: is it a regression?"
        )
        return RegressionLabel(task, label.column)
    held = tuple(values.take(pc.array_sort_indices(values)).to_pylist()) if len(values) else ()
    if label.type == "binary":
        return ClassLabel(task, label.column, _binary(task, label, held, problems), binary=True)
    classes = tuple(_plain(one) for one in label.classes) if label.classes else held
    if unknown := [one for one in held if one not in classes]:
        problems.append(f"label {task!r} holds {_shown(unknown)}, not among its classes {_shown(classes)}")
    if len(classes) < 2:
        problems.append(_one_class(task, classes))
    kind = MultiLabel if label.type == "multilabel" else None
    return kind(task, label.column, classes) if kind else ClassLabel(task, label.column, classes, binary=False)


def _binary(task: str, label: LabelSpec, held: tuple[str | int, ...], problems: list[str]) -> tuple[str | int, ...]:
    if label.positive is None:
        if set(held) <= {0, 1} and len(held) == 2:
            return (0, 1)
        wanted = "without `positive`, a binary label is true and false, or 0 and 1"
        problems.append(_one_class(task, held) if len(held) == 1 else f"label {task!r} holds {_shown(held)}: {wanted}")
        return held
    positive = _plain(label.positive)
    if positive not in held:
        problems.append(f"label {task!r} never is {positive!r}, its positive value; it holds {_shown(held)}")
    elif len(held) != 2:
        problems.append(
            f"label {task!r} holds {_shown(held)}: a binary label has two values, {positive!r} and one other"
        )
    return (*(one for one in held if one != positive), positive)


def _one_class(task: str, classes: Sequence[str | int]) -> str:
    return f"label {task!r} holds one class only: {_shown(classes)}; there is nothing to learn"


def _plain(value: object) -> str | int:
    """A class as the config gives it, as a term: bools are 0 and 1."""
    return value if isinstance(value, str) else int(value)  # type: ignore[call-overload]


def _shown(values: Iterable[object]) -> str:
    listed = [repr(value) for value in values]
    return (
        ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "") or "nothing"
    )
