"""Fitted transforms from statistics: pure, and total over what the plan admits."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from mltrain.config import LabelSpec, ResolvedFeature
from mltrain.config.dataset import Class
from mltrain.data.schema import Column, Schema
from mltrain.features.plan import Plan, carried_type
from mltrain.features.statistics import Statistics
from mltrain.transforms import (
    Categorical,
    ClassLabel,
    Field,
    FittedTransforms,
    Hashed,
    IdList,
    Indicator,
    MultiLabel,
    Numeric,
    RegressionLabel,
    Vector,
    Vocabulary,
    Weight,
)
from mltrain.transforms.columns import Feature, Missing, Target
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
            _add_vocabulary(plan, name, spec, found, vocabularies, problems)
        features.append(_feature(plan, name, spec, found, problems))
        if spec.missing == "indicator":
            features.append(Indicator(name))
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
            dtype=carried_type(plan.schema.field(name).type) or "",
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


def _add_vocabulary(
    plan: Plan,
    name: str,
    spec: ResolvedFeature,
    found: Statistics,
    vocabularies: dict[str, Vocabulary],
    problems: list[str],
) -> None:
    vocabulary = plan.vocabulary(name)
    if vocabulary not in vocabularies:
        values, counts = found.terms[f"vocabulary {vocabulary}"]
        if _is_text(f"column {name!r}", values, problems):
            ranking = ranked(values, counts, min_count=spec.min_count or 1, max_size=spec.max_size)
            vocabularies[vocabulary] = ranking
        else:
            vocabularies[vocabulary] = Vocabulary(values.slice(0, 0))


def _is_text(subject: str, values: pa.Array, problems: list[str]) -> bool:
    """Whether terms are what their type says: engines let any bytes pass for a string."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        problems.append(f"{subject} holds a string that is not UTF-8: decode it in the table, or cast it to binary")
        return False
    return True


def _feature(plan: Plan, name: str, spec: ResolvedFeature, found: Statistics, problems: list[str]) -> Feature:
    missing = _missing(spec)
    if spec.type == "categorical":
        return Categorical(name, plan.vocabulary(name), missing)
    if spec.type == "id_list":
        return IdList(name, plan.vocabulary(name), spec.max_length, missing)
    if spec.type == "hashed":
        return Hashed(name, spec.buckets or 2, missing)
    if spec.type == "vector":
        return Vector(name, spec.size or 0, missing)
    return _numeric(name, spec, found, problems)


def _missing(spec: ResolvedFeature) -> Missing:
    """What the feature's own transform does; an indicator is another one's."""
    return "refuse" if spec.missing == "refuse" else "impute"


def _numeric(name: str, spec: ResolvedFeature, found: Statistics, problems: list[str]) -> Numeric:
    moments = found.moments.get(name)
    decimal_scale, missing = spec.decimal_scale, _missing(spec)
    if name in found.problems:
        return Numeric(name, 0.0)
    if moments is not None and not moments.count:
        problems.append(
            f"column {name!r} has no number in the train split, so nothing can be fitted: drop it, or use "
            "`impute: zero` and `scale: none`"
        )
        return Numeric(name, 0.0)
    fill = 0.0 if missing == "refuse" else _fill(name, spec, found)
    if spec.scale == "standard" and moments:
        return Numeric(name, fill, moments.mean, moments.deviation or 1.0, decimal_scale, missing)
    if spec.scale == "minmax" and moments:
        return Numeric(name, fill, moments.low, (moments.high - moments.low) or 1.0, decimal_scale, missing)
    return Numeric(name, fill, decimal_scale=decimal_scale, missing=missing)


def _fill(name: str, spec: ResolvedFeature, found: Statistics) -> float:
    """What stands in for a missing number, in the feature's unit."""
    moments = found.moments.get(name)
    if spec.impute == "median":
        median = found.medians[name]
        # A sample can miss the few numbers of a nearly empty column; their mean is as good a guess.
        return median if median is not None else moments.mean if moments else 0.0
    if spec.impute == "mean" and moments:
        return moments.mean
    if isinstance(spec.impute, int | float):
        # Said in the column's own unit, as in 9.99, whatever the feature counts.
        return float(Fraction(str(spec.impute)) * 10 ** (spec.decimal_scale or 0))
    return 0.0


def _label(task: str, label: LabelSpec, found: Statistics, problems: list[str]) -> Target:
    if label.type == "regression":
        return RegressionLabel(task, label.column)
    values, _ = found.terms[f"label {task}"]
    if label.column in found.problems or not _is_text(f"label {task!r}", values, problems):
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


def _plain(value: Class) -> str | int:
    """A class as the config gives it, as a term: bools are 0 and 1. No term is 1.5, and among numbers nor is '1.5'."""
    if isinstance(value, str) or (isinstance(value, float) and not value.is_integer()):
        return str(value)
    return int(value)


def _shown(values: Iterable[object]) -> str:
    listed = [repr(value) for value in values]
    return (
        ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "") or "nothing"
    )
