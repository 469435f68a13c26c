import json
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

from mltrain.errors import DamagedError, TableError
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
from mltrain.transforms.vocabulary import INLINE_LIMIT

FITTED = FittedTransforms(
    features=(
        Numeric("age", fill=37.5, center=38.6, scale=13.6),
        Categorical("item", "items"),
        IdList("history", "items", max_length=2),
        Hashed("device", 1000),
        Vector("embedding", 2),
    ),
    targets=(
        ClassLabel("click", "clicked", ("no", "yes"), True),
        ClassLabel("kind", "kind", (1, 2, 3), False),
        MultiLabel("tags", "tags", ("a", "b")),
        RegressionLabel("price", "price"),
        Weight("w"),
    ),
    vocabularies={"items": Vocabulary(pa.array(["x", "y"]))},
)
BATCH = pa.record_batch(
    {
        "unused": pa.array([1]),
        "age": pa.array([38.6]),
        "item": pa.array(["y"]),
        "history": pa.array([["x", "y", "z"]]),
        "device": pa.array(["phone"]),
        "embedding": pa.array([[0.5, 1.0]]),
        "clicked": pa.array(["yes"]),
        "kind": pa.array([3]),
        "tags": pa.array([["b"]]),
        "price": pa.array([9.5]),
        "w": pa.array([2.0]),
    }
)


def no_blobs(name: str) -> bytes:
    raise AssertionError(name)


def test_features_then_targets_come_out_under_their_names_in_order() -> None:
    out = FITTED.apply(BATCH)
    assert out.schema.names == [field.name for field in FITTED.schema]
    assert out.drop_columns(["device"]).to_pylist() == [
        {
            "age": 0.0,
            "item": 2,
            "history": [2, 0],
            "embedding": [0.5, 1.0],
            "click": 1.0,
            "kind": 2,
            "tags": [0.0, 1.0],
            "price": 9.5,
            "w": 2.0,
        }
    ]


def test_the_schema_says_what_a_model_must_know() -> None:
    fields = {field.name: field for field in FITTED.schema}
    assert fields["item"] == Field("item", "feature", "categorical", "int32", cardinality=3, vocabulary="items")
    assert fields["device"].cardinality == 1000
    assert fields["embedding"].width == 2
    assert fields["click"] == Field(
        "click", "label", "label", "float32", cardinality=2, classes=("no", "yes"), type="binary"
    )
    assert fields["kind"].dtype == "int32"
    assert fields["tags"].width == 2
    assert fields["w"].role == "weight"


def test_serving_needs_no_targets() -> None:
    batch = BATCH.drop_columns(["clicked", "kind", "tags", "price", "w"])
    assert FITTED.apply(batch, targets=False).schema.names == ["age", "item", "history", "device", "embedding"]
    with pytest.raises(TableError, match="the batch lacks 'clicked', 'kind', 'tags', 'price', 'w'; it has unused, age"):
        FITTED.apply(batch)


def test_json_round_trip_makes_the_same_transforms() -> None:
    value, blobs = FITTED.to_json()
    assert blobs == {}
    again = FittedTransforms.from_json(json.loads(json.dumps(value)), no_blobs)
    assert again == FITTED
    assert again.apply(BATCH).equals(FITTED.apply(BATCH))


def test_options_that_are_not_used_leave_no_trace_in_the_json() -> None:
    value, _ = FITTED.to_json()
    assert value["features"][0] == {"kind": "numeric", "column": "age", "fill": 37.5, "center": 38.6, "scale": 13.6}
    assert value["features"][-1] == {"kind": "vector", "column": "embedding", "size": 2}


def test_what_is_said_of_missing_values_and_decimals_survives_the_json() -> None:
    fitted = FittedTransforms(
        (
            Numeric("price", 0.0, decimal_scale=2),
            Indicator("price"),
            Numeric("age", 1.0, missing="refuse"),
            Hashed("device", 9, missing="refuse"),
            Vector("embedding", 2, missing="impute"),
        )
    )
    value, _ = fitted.to_json()
    assert FittedTransforms.from_json(json.loads(json.dumps(value)), no_blobs) == fitted
    assert [field.name for field in fitted.schema] == ["price", "price__missing", "age", "device", "embedding"]
    assert fitted.inputs == ("price", "age", "device", "embedding")


def test_a_vocabulary_of_long_terms_is_a_blob() -> None:
    terms = pa.array([f"{i} " + "x" * 300_000 for i in range(4)])
    fitted = FittedTransforms((Categorical("item", "items"),), vocabularies={"items": Vocabulary(terms)})
    value, blobs = fitted.to_json()
    assert len(json.dumps(value)) < 400
    assert FittedTransforms.from_json(value, blobs.__getitem__) == fitted


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def opened(value: Any, data: bytes, wanted: FittedTransforms) -> str:
    try:
        return "equal" if FittedTransforms.from_json(value, lambda _: data) == wanted else "other"
    except DamagedError as error:
        return str(error).split(":")[0]


@pytest.mark.parametrize(
    "terms", [pa.array([f"t{i}" for i in range(INLINE_LIMIT + 1)]), pa.array(range(INLINE_LIMIT + 1))]
)
def test_a_large_vocabulary_is_a_blob_named_by_its_content(terms: Any) -> None:
    fitted = FittedTransforms((Categorical("item", "items"),), vocabularies={"items": Vocabulary(terms)})
    value, blobs = fitted.to_json()
    assert len(json.dumps(value)) < 400
    assert FittedTransforms.from_json(value, blobs.__getitem__) == fitted
    assert fitted.to_json()[1] == blobs
    ((name, data),) = blobs.items()
    # Arrow's padding, and what it repeats, may change: the terms may not.
    assert {opened(value, flipped(data, place), fitted) for place in range(0, len(data), 499)} == {
        "equal",
        f"vocabulary {name} is damaged",
    }
    with pytest.raises(DamagedError, match=f"vocabulary {name} is damaged"):
        FittedTransforms.from_json(value, lambda _: data[: len(data) // 2])
    other = FittedTransforms((), vocabularies={"items": Vocabulary(terms.take(pa.array(range(len(terms))[::-1])))})
    with pytest.raises(DamagedError, match="its terms have another hash"):
        FittedTransforms.from_json(value, lambda _: next(iter(other.to_json()[1].values())))


def test_a_large_vocabulary_has_the_same_name_however_arrow_encodes_it() -> None:
    terms = pa.array([f"t{i}" for i in range(INLINE_LIMIT + 1)])
    sliced = pa.array(["before", *terms.to_pylist()]).slice(1)
    value, blobs = FittedTransforms((), vocabularies={"items": Vocabulary(terms)}).to_json()
    assert FittedTransforms((), vocabularies={"items": Vocabulary(sliced)}).to_json()[0] == value
    assert list(blobs) == ["2819d2fea143f2e690337997328721cf"]


def test_a_newer_format_is_refused() -> None:
    value, _ = FITTED.to_json()
    with pytest.raises(TableError, match="format 2 and this mltrain reads format 1: update mltrain"):
        FittedTransforms.from_json({**value, "format_version": 2}, no_blobs)


def test_transforms_load_no_engine() -> None:
    code = "import sys, mltrain.transforms; print({'torch', 'pyspark', 'ray', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
