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
from mltrain.features.plan import NUMBER, plan
from mltrain.features.scatter import Places
from mltrain.features.statistics import Statistics
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
