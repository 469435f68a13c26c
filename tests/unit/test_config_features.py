"""Patterns, defaults and inference: which columns are features, and how."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain import config
from mltrain.config import DatasetFile, DatasetSpec, ResolvedFeature, resolve_features
from mltrain.errors import TableError

COLUMNS = {
    "row_id": pa.int64(),
    "age": pa.int32(),
    "score": pa.float64(),
    "member": pa.bool_(),
    "born": pa.date32(),
    "seen": pa.timestamp("us", tz="UTC"),
    "price": pa.decimal128(10, 2),
    "city": pa.string(),
    "history": pa.list_(pa.int64()),
    "words": pa.list_(pa.string()),
    "embedding": pa.list_(pa.float32(), 8),
    "weights": pa.list_(pa.float64()),
    "w": pa.float32(),
    "user": pa.int64(),
    "y": pa.string(),
}


def spec(**said: object) -> DatasetSpec:
    dataset = {
        "table": "/t",
        "key": ["row_id"],
        "label": {"column": "y", "type": "binary", "positive": "yes"},
        "weight": "w",
        "keep": ["user"],
        "features": {"*": {}, "weights": {"size": 4}},
        **said,
    }
    file = config.parse({"name": "a", "dataset": dataset})
    assert isinstance(file, DatasetFile)
    return file.dataset


def resolve(**said: object) -> dict[str, ResolvedFeature]:
    return resolve_features(spec(**said), COLUMNS)


def test_types_are_inferred_and_columns_with_another_role_left_out() -> None:
    assert {name: feature.type for name, feature in resolve().items()} == {
        "age": "numeric",
        "score": "numeric",
        "member": "numeric",
        "born": "numeric",
        "seen": "numeric",
        "price": "numeric",
        "city": "categorical",
        "history": "id_list",
        "words": "id_list",
        "embedding": "vector",
        "weights": "vector",
    }


def test_features_are_in_the_order_of_the_table() -> None:
    assert list(resolve(features={"city": {}, "age": {}})) == ["age", "city"]


def test_options_are_the_feature_s_own_then_the_defaults() -> None:
    resolved = resolve(
        defaults={"numeric": {"impute": "mean"}, "categorical": {"min_count": 10}},
        features={"*": {}, "weights": {"size": 4}, "age": {"scale": "none"}},
    )
    assert resolved["age"] == ResolvedFeature("age", "numeric", impute="mean", scale="none")
    assert resolved["score"] == ResolvedFeature("score", "numeric", impute="mean", scale="standard")
    assert resolved["city"] == ResolvedFeature("city", "categorical", min_count=10, max_size=1_000_000)
    assert resolved["history"].max_length == 100
    assert (resolved["embedding"].size, resolved["weights"].size) == (8, 4)


def test_a_later_pattern_wins_option_by_option() -> None:
    resolved = resolve(
        features={"*": {"impute": "zero"}, "weights": {"size": 4}, "a*": {"scale": "none"}, "ag?": {"impute": "mean"}}
    )
    assert (resolved["age"].impute, resolved["age"].scale) == ("mean", "none")
    assert (resolved["score"].impute, resolved["score"].scale) == ("zero", "standard")


def test_a_later_type_takes_back_what_fits_the_old_one_only() -> None:
    resolved = resolve(
        features={"c*": {"type": "categorical", "min_count": 3}, "city": {"type": "hashed", "buckets": 9}}
    )
    assert resolved["city"] == ResolvedFeature("city", "hashed", buckets=9)


def test_the_last_pattern_that_matches_decides_what_is_dropped() -> None:
    assert list(resolve(features={"*": {"drop": True}, "age": {}})) == ["age"]
    assert "age" not in resolve(features={"*": {}, "weights": {"size": 4}, "a*": {"drop": True}})


def test_an_option_of_another_type_chooses_that_type() -> None:
    resolved = resolve(
        features={"age": {"vocabulary": "ages"}, "user*": {}, "m*": {"buckets": 7}, "city": {"buckets": 5}}
    )
    assert (resolved["age"].type, resolved["member"].type, resolved["city"].type) == ("categorical", "hashed", "hashed")
    assert resolve(features={"age": {"min_count": 2}})["age"].type == "categorical"
    assert resolve(features={"ag*": {"min_count": 2}})["age"].type == "numeric"


def test_a_size_makes_a_vector_of_a_list_of_integers() -> None:
    assert resolve(features={"history": {"size": 3}})["history"].type == "vector"
    assert resolve(features={"*": {}, "weights": {"size": 4}})["history"].type == "id_list"


def test_what_becomes_of_missing_values_is_said_by_type_by_pattern_or_by_feature() -> None:
    given = {"*": {"missing": "indicator"}, "weights": {"size": 4}, "a*": {"missing": "refuse"}, "born": {}}
    assert {name: one.missing for name, one in resolve(features=given).items() if one.missing != "indicator"} == {
        "age": "refuse"
    }
    kinds = {"numeric": "refuse", "categorical": "indicator", "id_list": "refuse", "vector": "impute"}
    defaults = {kind: {"missing": missing} for kind, missing in kinds.items()}
    assert {one.missing == kinds[one.type] for one in resolve(defaults=defaults).values()} == {True}
    assert {one.type: one.missing for one in resolve().values()} == {
        "numeric": "impute",
        "categorical": "impute",
        "id_list": "impute",
        "vector": "refuse",
    }


def test_a_decimal_s_scale_is_said_of_all_or_of_one_and_other_numbers_take_no_notice() -> None:
    for said in (
        {"defaults": {"numeric": {"decimal_scale": 2}}},
        {"features": {"p*": {"decimal_scale": 2}, "age": {}}},
    ):
        resolved = resolve(**said)
        assert {name: one.decimal_scale for name, one in resolved.items() if one.decimal_scale} == {"price": 2}


def test_the_split_column_is_no_feature() -> None:
    assert "born" not in resolve(split={"time": "born"})
    assert "city" not in resolve(split={"group": "city"})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"key": ["rowid"]}, "no column 'rowid' (dataset.key; did you mean 'row_id'?)"),
        ({"weight": "ww"}, "'ww' (dataset.weight"),
        ({"label": {"column": "z", "type": "binary"}}, "'z' (dataset.label"),
        ({"split": {"time": "day"}}, "'day' (dataset.split"),
        ({"features": {"agee": {}}}, "'agee' (dataset.features; did you mean 'age'?)"),
        ({"features": {"zz*": {}}}, "no column is a feature"),
        ({"features": {"city": {"type": "numeric"}}}, "'city' has type string, which no numeric feature can have"),
        ({"features": {"score": {"type": "categorical"}}}, "which no categorical feature can have"),
        ({"features": {"words": {"type": "vector", "size": 3}}}, "which no vector feature can have"),
        ({"features": {"price": {"type": "hashed"}}}, "no hashed feature can have; cast it to string or bigint in the"),
        ({"features": {"score": {"decimal_scale": 2}}}, "has type double and is numeric, which takes no decimal_scale"),
        ({"features": {"weights": {}}}, "lists of any length"),
        ({"features": {"embedding": {"size": 9}}}, "vectors of 8, and its size is given as 9"),
        ({"features": {"city": {"impute": "zero"}}}, "is categorical, which takes no impute"),
    ],
)
def test_what_the_table_cannot_be_is_refused_by_name(said: dict[str, object], message: str) -> None:
    with pytest.raises(TableError) as caught:
        resolve(**said)
    assert message in str(caught.value)
    assert "/t" in str(caught.value)


def test_a_type_that_no_feature_has_is_refused_unless_dropped() -> None:
    columns = {**COLUMNS, "blob": pa.binary()}
    with pytest.raises(TableError, match="'blob' has type binary, which cannot be a feature"):
        resolve_features(spec(), columns)
    assert "blob" not in resolve_features(
        spec(features={"*": {}, "weights": {"size": 4}, "blob": {"drop": True}}), columns
    )


def test_every_column_that_cannot_be_a_feature_is_named() -> None:
    with pytest.raises(TableError) as caught:
        resolve_features(spec(), {**COLUMNS, "blob": pa.binary(), "span": pa.duration("s")})
    assert all(f"column {name!r}" in str(caught.value) for name in ("blob", "span"))


@given(
    st.permutations(["a*", "*b", "ab", "?b"]),
    st.lists(st.sampled_from(["zero", "mean", "median"]), min_size=4, max_size=4),
)
def test_of_patterns_that_all_match_the_last_one_wins(patterns: list[str], values: list[str]) -> None:
    features = {pattern: {"impute": value} for pattern, value in zip(patterns, values, strict=True)}
    columns = {"ab": pa.int64(), "y": pa.int64()}
    wanted = spec(key=[], weight=None, keep=[], label={"column": "y", "type": "binary"}, features=features)
    assert resolve_features(wanted, columns)["ab"].impute == values[-1]
