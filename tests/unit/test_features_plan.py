"""What is decided before Spark starts: from names and types, and from statistics."""

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("pyspark")

from mltrain.data.layout import choose_buckets
from mltrain.features.fit import dataset_schema, fit
from mltrain.features.moments import Moments
from mltrain.features.plan import NUMBER, carried_type, plan
from mltrain.features.scatter import Places
from mltrain.features.statistics import Statistics
from mltrain.transforms import Categorical, Indicator, Numeric
from tests.support.tables import dataset_file

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "x": pa.float64(),
        "n": pa.int32(),
        "c": pa.string(),
        "y": pa.int64(),
        "when": pa.timestamp("us", "UTC"),
    }
)


def planned(**dataset: Any) -> Any:
    made, problems = plan(dataset_file("t", "/root", **dataset).dataset, SCHEMA, {})
    assert problems == []
    return made


def test_columns_with_another_role_are_no_features_and_the_rest_is_inferred() -> None:
    made = planned(keep=["when"])
    assert {name: feature.type for name, feature in made.features.items()} == {
        "x": "numeric",
        "n": "numeric",
        "c": "categorical",
    }
    assert made.identity.names == ["id"]
    assert made.carried == ("id", "when")


def test_what_is_wrong_with_one_column_does_not_hide_what_is_wrong_with_another() -> None:
    schema = pa.schema([*SCHEMA, pa.field("v", pa.list_(pa.float64())), pa.field("price", pa.decimal128(9, 2))])
    spec = dataset_file("t", "/root", features={"*": {}, "c": {"type": "numeric"}}, keep=["when"]).dataset
    _, problems = plan(spec, schema, {})
    assert [problem.partition(":")[0].partition(" has ")[0] for problem in problems] == [
        "column 'c'",
        "column 'v'",
        "column 'price'",
    ]
    assert not any("table" in problem.partition(":")[0] for problem in problems)


def test_without_a_key_every_column_and_a_number_tell_rows_apart() -> None:
    made = planned(key=[])
    assert made.identity.names == [*SCHEMA.names, NUMBER]
    assert not made.keyed


def test_only_what_fitting_needs_is_computed() -> None:
    wanted = planned(
        features={"*": {}, "x": {"impute": "zero", "scale": "none"}, "n": {"impute": "mean", "scale": "none"}}
    ).wanted()
    assert wanted.moments == ("n", "when")
    assert wanted.samples == ("when",)
    assert [(source.name, source.all_rows) for source in wanted.terms] == [("vocabulary c", False), ("label y", True)]


@pytest.mark.parametrize(
    ("options", "fill", "center", "scale"),
    [
        ({}, 5.0, 3.0, 2.0),
        ({"impute": "mean", "scale": "minmax"}, 3.0, 1.0, 4.0),
        ({"impute": -1.5, "scale": "none"}, -1.5, 0.0, 1.0),
        ({"impute": "zero"}, 0.0, 3.0, 2.0),
    ],
)
def test_numbers_are_imputed_and_scaled_as_asked(
    options: dict[str, Any], fill: float, center: float, scale: float
) -> None:
    made = planned(features={"x": options})
    found = Statistics(
        moments={"x": Moments(count=2, low=1.0, high=5.0, total=Fraction(6), squares=Fraction(26))},
        medians={"x": 5.0},
        terms={"label y": (pa.array([1, 0]), np.array([1, 1]))},
    )
    transforms, problems = fit(made, found)
    assert problems == []
    (numeric,) = transforms.features
    assert (numeric.fill, numeric.center, numeric.scale) == (fill, center, scale)  # type: ignore[union-attr]
    assert [column.name for column in dataset_schema(transforms, made, ("id",)).columns] == ["x", "y", "id"]


TABLE = pa.schema({**dict(zip(SCHEMA.names, SCHEMA.types, strict=True)), "price": pa.decimal128(10, 2)})


def problems(schema: pa.Schema = TABLE, **dataset: Any) -> str:
    return "; ".join(plan(dataset_file("t", "/root", **dataset).dataset, schema, {})[1])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {},
            "not rounded silently: count whole units of 0.01 (features: {price: {decimal_scale: 2}}), or cast it to d",
        ),
        ({"key": ["price"]}, "key column 'price' has type decimal128(10, 2); a key is made of integers, strings"),
        ({"label": {"column": "price", "type": "regression"}}, "a regression label is a number; cast it to double in"),
        ({"label": {"column": "price", "type": "binary"}}, "or bools; cast it to string or bigint in the table"),
        ({"weight": "price"}, "weight 'price' has type decimal128(10, 2): a weight is a number; cast it to double"),
        ({"weight": "when"}, "weight 'when' has type timestamp[us, tz=UTC]: a weight is a number"),
        ({"keep": ["price"]}, ""),
        ({"features": {"price": {"decimal_scale": 0}}}, ""),
        (
            {
                "features": {"x": {"missing": "indicator"}},
                "keep": ["price"],
                "labels": {"x__missing": {"column": "y", "type": "binary"}},
            },
            "label 'x__missing' has the name of a feature: rename the task",
        ),
    ],
)
def test_a_decimal_is_what_was_declared_or_refused_with_advice(dataset: dict[str, Any], message: str) -> None:
    assert message in (said := problems(**dataset)) and bool(message) == bool(said)


@pytest.mark.parametrize("role", ["feature", "kept column"])
def test_no_column_has_the_name_of_the_row_numbers_of_batches(role: str) -> None:
    schema = pa.schema({**dict(zip(SCHEMA.names, SCHEMA.types, strict=True)), "__row__": pa.int64()})
    said = problems(schema, keep=["__row__"] if role == "kept column" else [])
    assert said == (
        f"{role} '__row__' has the name of a column of batches, the numbers of their rows: rename the task or the "
        "column, or drop the feature"
    )
    assert problems(schema, features={"*": {}, "__row__": {"drop": True}}) == ""


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.decimal128(38, 10), "decimal128(38, 10)"),
        (pa.list_(pa.field("element", pa.int64(), nullable=False)), "list<element: int64>"),
        (pa.list_(pa.timestamp("us", "Europe/Rome")), "list<element: timestamp[us, tz=UTC]>"),
        (pa.struct({"a": pa.int64()}), None),
        (pa.map_(pa.string(), pa.int64()), None),
        (pa.list_(pa.list_(pa.int64())), None),
        (pa.list_(pa.struct({"a": pa.int64()})), None),
    ],
)
def test_a_kept_column_is_one_that_shards_hold_or_is_refused(kind: pa.DataType, dtype: str | None) -> None:
    assert carried_type(kind) == dtype
    said = problems(SCHEMA.append(pa.field("k", kind)), keep=["k"])
    assert said == "" if dtype else f"kept column 'k' has type {kind}, which shards cannot hold" in said


def test_a_check_says_its_number_of_rows_whatever_the_column_s_name() -> None:
    schema = pa.schema([*SCHEMA, pa.field("{n} {", pa.float64())])
    features = {"*": {}, "{n} {": {"missing": "refuse"}}
    made, said = plan(dataset_file("t", "/root", features=features).dataset, schema, {})
    assert said == []
    (check,) = [check for check in made.checks if "{n} {" in check.condition.reads]
    assert check.problem.format(n=3).startswith(
        "column '{n} {' has no value in 3 rows: its option is `missing: refuse`"
    )


def test_an_indicator_follows_its_column_and_what_may_not_be_missing_needs_no_median() -> None:
    options = {
        "x": {"missing": "indicator"},
        "n": {"missing": "refuse", "scale": "none"},
        "c": {"missing": "indicator"},
    }
    made = planned(features=options)
    assert (made.wanted().moments, made.wanted().samples) == (("x",), ("x",))
    found = Statistics(
        moments={"x": Moments(count=2, low=1.0, high=5.0, total=Fraction(6), squares=Fraction(26))},
        medians={"x": 5.0},
        terms={"label y": (pa.array([1, 0]), np.array([1, 1])), "vocabulary c": (pa.array(["a"]), np.array([2]))},
    )
    transforms, said = fit(made, found)
    assert said == []
    assert transforms.features == (
        Numeric("x", 5.0, 3.0, 2.0),
        Indicator("x"),
        Numeric("n", 0.0, missing="refuse"),
        Categorical("c", "c"),
        Indicator("c"),
    )
    columns = dataset_schema(transforms, made, ("id",))
    assert [column.name for column in columns.numeric] == ["x", "x__missing", "n", "c__missing"]


def test_a_value_that_stands_in_for_a_decimal_is_said_in_the_column_s_own_unit() -> None:
    options = {"price": {"decimal_scale": 2, "impute": 9.99, "scale": "none"}}
    made, _ = plan(dataset_file("t", "/root", features=options).dataset, TABLE, {})
    transforms, _ = fit(made, Statistics(terms={"label y": (pa.array([1, 0]), np.array([1, 1]))}))
    assert transforms.features == (Numeric("price", 999.0, decimal_scale=2),)
    assert made.wanted().decimal_scales == {"price": 2}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"type": "binary", "positive": 1.5}, "label 'y' never is '1.5', its positive value; it holds 0, 1"),
        ({"type": "binary", "positive": 1.0}, None),
        ({"type": "multiclass", "classes": [0, 0.5]}, "label 'y' holds 1, not among its classes 0, '0.5'"),
    ],
)
def test_a_class_is_never_rounded_to_one_that_the_column_has(label: dict[str, Any], message: str | None) -> None:
    made = planned(label={"column": "y", **label}, features={"x": {"scale": "none", "impute": "zero"}})
    said = fit(made, Statistics(terms={"label y": (pa.array([1, 0]), np.array([1, 1]))}))[1]
    assert said == ([message] if message else [])


def test_text_that_is_not_utf_8_is_refused_by_name() -> None:
    bytes_ = pa.array([b"a", b"\xff"]).cast(pa.large_binary()).cast(pa.binary())
    text = pa.StringArray.from_buffers(2, bytes_.buffers()[1], bytes_.buffers()[2])
    made = planned(features={"c": {}})
    terms = {"label y": (pa.array([1, 0]), np.array([1, 1])), "vocabulary c": (text, np.array([1, 1]))}
    assert fit(made, Statistics(terms=terms))[1] == [
        "column 'c' holds a string that is not UTF-8: decode it in the table, or cast it to binary"
    ]
    made = planned(features={"x": {"scale": "none", "impute": "zero"}}, label={"column": "c", "type": "multiclass"})
    assert fit(made, Statistics(terms={"label c": terms["vocabulary c"]}))[1] == [
        "label 'c' holds a string that is not UTF-8: decode it in the table, or cast it to binary"
    ]


def test_a_constant_column_is_scaled_by_one() -> None:
    made = planned(features={"x": {}})
    found = Statistics(
        moments={"x": Moments(count=2, low=3.0, high=3.0, total=Fraction(6), squares=Fraction(18))},
        medians={"x": 3.0},
        terms={"label y": (pa.array([1, 0]), np.array([1, 1]))},
    )
    (numeric,) = fit(made, found)[0].features
    assert numeric.apply(pa.array([3.0, None])).to_pylist() == [0.0, 0.0]  # type: ignore[call-arg]


@pytest.mark.parametrize("rows", [{"train": 800, "test": 100}, {"train": 1, "validation": 1, "test": 5000}])
def test_every_partition_is_one_bucket_of_one_split(rows: dict[str, int]) -> None:
    places = Places.plan(rows, 100)
    expected = [(split, bucket) for split, n in rows.items() for bucket in range(choose_buckets(n, 100))]
    assert [places.locate(place) for place in range(places.count)] == expected
    with pytest.raises(ValueError):
        places.locate(places.count)
