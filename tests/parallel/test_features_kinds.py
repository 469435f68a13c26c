"""Every kind of column in one table, built by a real Spark, compared with plain Python row by row."""

import datetime
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash

from mltrain import features
from mltrain.data import Dataset, Loader
from mltrain.errors import TableError
from mltrain.models import tabular_mlp
from mltrain.transforms import FittedTransforms
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 300
SEED = 20261123
UTC = datetime.UTC
EPOCH = datetime.datetime(1970, 1, 1)
WORDS = ["", " ", "a", "a\0", "\0", "é", "e\u0301", "漢字", "👩‍🚀", "NULL", "nan", "long" * 2000]

Row = Mapping[str, Any]


def columns() -> dict[str, pa.Array]:
    chosen = random.Random(SEED)

    def often_null(make: Callable[[], Any], share: float = 0.1) -> list[Any]:
        return [None if chosen.random() < share else make() for _ in range(ROWS)]

    def whole(bits: int) -> Callable[[], int]:
        return lambda: chosen.choice([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, chosen.randrange(-99, 99)])

    def moment() -> datetime.datetime:
        return EPOCH + datetime.timedelta(microseconds=chosen.randrange(-(10**15), 2 * 10**15))

    def cents() -> Decimal:
        return Decimal(chosen.randrange(-(10**6), 10**6)).scaleb(-2)

    def some(make: Callable[[], Any]) -> Callable[[], list[Any]]:
        return lambda: [None if chosen.random() < 0.05 else make() for _ in range(chosen.choice([0, 1, 2, 5, 9]))]

    def ratio() -> float:
        return chosen.choice([chosen.gauss(0, 1e3), 0.1, -0.0, 1e-300, math.nan])

    zone = pa.timestamp("us", tz="UTC")
    made: dict[str, tuple[list[Any], pa.DataType]] = {
        "flag": (often_null(lambda: chosen.random() < 0.3), pa.bool_()),
        "byte": (often_null(whole(8)), pa.int8()),
        "short": (often_null(whole(16)), pa.int16()),
        "int": (often_null(whole(25), 0.0), pa.int32()),
        "long": (often_null(whole(54)), pa.int64()),
        "float": (often_null(lambda: float(np.float32(ratio()))), pa.float32()),
        "double": (often_null(ratio), pa.float64()),
        "full": ([chosen.gauss(0, 1) for _ in range(ROWS)], pa.float64()),
        "day": (often_null(lambda: moment().date()), pa.date32()),
        "far": (often_null(lambda: datetime.date(9999, 12, 31)), pa.date32()),
        "moment": (often_null(lambda: moment().replace(tzinfo=UTC)), zone),
        "local": (often_null(moment), pa.timestamp("us")),
        "price": (often_null(cents), pa.decimal128(20, 6)),
        "units": (often_null(lambda: Decimal(whole(24)())), pa.decimal128(38, 0)),
        "word": (often_null(lambda: chosen.choice(WORDS)), pa.string()),
        "code": (often_null(lambda: chosen.choice([whole(64)(), 7, 8])), pa.int64()),
        "date_code": (often_null(lambda: EPOCH.date() + datetime.timedelta(chosen.randrange(-9, 9))), pa.date32()),
        "yes_no": (often_null(lambda: chosen.random() < 0.5), pa.bool_()),
        "device": (often_null(lambda: chosen.choice(WORDS)), pa.string()),
        "number": (often_null(whole(64)), pa.int64()),
        "history": (often_null(some(lambda: chosen.choice([whole(64)(), 1, 2, 3]))), pa.list_(pa.int64())),
        "words": (often_null(some(lambda: chosen.choice(WORDS))), pa.list_(pa.string())),
        "vector": ([[chosen.gauss(0, 1) for _ in range(3)] for _ in range(ROWS)], pa.list_(pa.float64())),
        "patch": (often_null(lambda: [chosen.randrange(256) for _ in range(4)]), pa.list_(pa.int32())),
        "weight": ([chosen.choice([0, 1, 2]) for _ in range(ROWS)], pa.int16()),
        "amount": ([chosen.gauss(0, 1) for _ in range(ROWS)], pa.float64()),
        "is_new": ([chosen.random() < 0.5 for _ in range(ROWS)], pa.bool_()),
        "grade": ([chosen.choice([2**60, -5, 3]) for _ in range(ROWS)], pa.int64()),
        "tags": ([chosen.sample(["x", "y", ""], chosen.randrange(3)) for _ in range(ROWS)], pa.list_(pa.string())),
        "k_price": (often_null(cents), pa.decimal128(38, 2)),
        "k_float": (often_null(ratio), pa.float64()),
        "k_local": (often_null(moment), pa.timestamp("us")),
        "k_bytes": (often_null(lambda: chosen.randbytes(3)), pa.binary()),
        "k_list": (often_null(some(cents)), pa.list_(pa.decimal128(9, 2))),
        "k_text": (often_null(lambda: chosen.choice(WORDS)), pa.string()),
    }
    return {"id": pa.array(range(ROWS)), **{name: pa.array(values, kind) for name, (values, kind) in made.items()}}


DATASET: dict[str, Any] = {
    "labels": {
        "new": {"column": "is_new", "type": "binary"},
        "grade": {"type": "multiclass"},
        "tags": {"type": "multilabel"},
        "amount": {"type": "regression"},
    },
    "weight": "weight",
    "keep": ["k_price", "k_float", "k_local", "k_bytes", "k_list", "k_text"],
    "defaults": {"numeric": {"scale": "none", "impute": "zero", "missing": "indicator"}},
    "features": {
        "*": {},
        "byte": {"impute": "mean"},
        "int": {"missing": "refuse"},
        "long": {"scale": "minmax", "impute": "median"},
        "double": {"missing": "impute", "impute": -1.5},
        "full": {"scale": "standard", "missing": "refuse"},
        "moment": {"scale": "standard", "impute": "mean"},
        "local": {"scale": "minmax", "missing": "impute"},
        "price": {"decimal_scale": 2, "impute": 9.99},
        "units": {"decimal_scale": 0, "scale": "standard", "impute": "median"},
        "word": {"min_count": 2, "missing": "indicator"},
        "code": {"type": "categorical", "vocabulary": "codes"},
        "date_code": {"type": "categorical", "max_size": 5},
        "yes_no": {"type": "categorical"},
        "device": {"buckets": 11, "missing": "indicator"},
        "number": {"buckets": 1009},
        "history": {"vocabulary": "codes", "max_length": 4, "missing": "indicator"},
        "vector": {"size": 3},
        "patch": {"size": 4, "missing": "indicator"},
    },
}


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> float:
    """The number that a scalar stands for."""
    if isinstance(value, datetime.datetime):
        return ((value.replace(tzinfo=None) - EPOCH) // datetime.timedelta(microseconds=1)) / 1e6
    return float((value - EPOCH.date()).days) if isinstance(value, datetime.date) else float(value)


def ranks(values: Sequence[Any], *, min_count: int = 1, max_size: int | None = None) -> dict[Any, int]:
    """Ids of a vocabulary over these values."""
    counts = Counter(value for value in values if value is not None)
    ordered = sorted(counts, key=lambda one: (-counts[one], one.encode() if isinstance(one, str) else one))
    return {term: i + 1 for i, term in enumerate([one for one in ordered if counts[one] >= min_count][:max_size])}


def bucket(value: Any, buckets: int) -> int:
    if value is None:
        return 0
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    return 1 + int(xxhash.xxh64_intdigest(data)) % (buckets - 1)


def expectation(train: Sequence[Row]) -> dict[str, Callable[[Row], Any]]:
    """For every column that is not carried, what a row holds there: as the documentation says, in plain Python."""

    def held(name: str) -> list[Any]:
        return [row[name] for row in train if not absent(row[name])]

    def number(
        name: str, fill: float, center: float = 0.0, scale: float = 1.0, unit: int = 1
    ) -> Callable[[Row], float]:
        return lambda row: (
            ((fill if absent(row[name]) else plain(row[name] * unit if unit > 1 else row[name])) - center) / scale
        )

    def ids(name: str, terms: dict[Any, int]) -> Callable[[Row], int]:
        return lambda row: terms.get(row[name], 0)

    numbers = {name: [plain(value) for value in held(name)] for name in ("byte", "long", "full", "moment", "units")}
    local = [plain(value) for value in held("local")]
    codes = ranks([*held("code"), *itertools.chain(*held("history"))])
    words = ranks([*itertools.chain(*held("words"))])
    days = ranks(held("date_code"), max_size=5)
    grades = sorted([-5, 3, 2**60])
    made: dict[str, Callable[[Row], Any]] = {
        name: number(name, 0.0) for name in ("flag", "short", "int", "float", "day", "far")
    }
    made |= {
        "byte": number("byte", fmean(numbers["byte"])),
        "long": number(
            "long", median(numbers["long"]), min(numbers["long"]), max(numbers["long"]) - min(numbers["long"])
        ),
        "double": number("double", -1.5),
        "full": number("full", 0.0, fmean(numbers["full"]), pstdev(numbers["full"])),
        "moment": number("moment", fmean(numbers["moment"]), fmean(numbers["moment"]), pstdev(numbers["moment"])),
        "local": number("local", 0.0, min(local), max(local) - min(local)),
        "price": number("price", 999.0, unit=100),
        "units": number("units", median(numbers["units"]), fmean(numbers["units"]), pstdev(numbers["units"])),
        "word": ids("word", ranks(held("word"), min_count=2)),
        "code": ids("code", codes),
        "date_code": ids("date_code", days),
        "yes_no": ids("yes_no", ranks(held("yes_no"))),
        "device": lambda row: bucket(row["device"], 11),
        "number": lambda row: bucket(row["number"], 1009),
        "history": lambda row: [codes.get(one, 0) for one in (row["history"] or [])[-4:]],
        "words": lambda row: [words.get(one, 0) for one in row["words"] or []],
        "vector": lambda row: row["vector"],
        "patch": lambda row: row["patch"] or [0, 0, 0, 0],
        "new": lambda row: float(row["is_new"]),
        "grade": lambda row: grades.index(row["grade"]),
        "tags": lambda row: [float(tag in row["tags"]) for tag in ("", "x", "y")],
        "amount": lambda row: row["amount"],
        "weight": lambda row: row["weight"],
    }
    for name in ("flag", "byte", "short", "long", "float", "day", "far", "moment", "price", "units"):
        made[f"{name}__missing"] = lambda row, name=name: float(absent(row[name]))  # type: ignore[misc]
    for name in ("word", "device", "history", "patch"):
        made[f"{name}__missing"] = lambda row, name=name: float(row[name] is None)  # type: ignore[misc]
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tables.write(tmp_path_factory.mktemp("kinds") / "table", columns())


def test_every_kind_of_column_arrives_as_documented(spark: "SparkSession", table: str, tmp_path: Path) -> None:
    dataset = Dataset.open(features.build(tables.dataset_file(table, tmp_path, **DATASET), spark=spark).uri)
    source: dict[int, Row] = {row["id"]: row for row in pa.table(columns()).to_pylist()}
    stored = {split: dataset.read(split) for split in dataset.splits}
    wanted = expectation([source[key] for key in stored["train"]["id"].to_pylist()])
    schema = dataset.schema
    assert {column.name for column in (*schema.features, *schema.labels.values(), schema.weight)} == set(wanted)  # type: ignore[union-attr]
    order = [column.name for column in schema.features]
    assert order[:4] == ["flag", "flag__missing", "byte", "byte__missing"]
    # Scaled numbers agree with another order of adding up but for the last bits; every other number is the very same.
    scaled = {"long", "full", "moment", "local", "units", "byte"}
    assert sorted(key for part in stored.values() for key in part["id"].to_pylist()) == list(range(ROWS))
    for part in stored.values():
        rows = [source[key] for key in part["id"].to_pylist()]
        for name, makes in wanted.items():
            expected = [makes(row) for row in rows]
            found = part[name].to_pylist()
            if name in scaled:
                np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-6, err_msg=name)
            elif schema.column(name).dtype == "float32":
                assert np.array(found, np.float32).tolist() == np.array(expected, np.float32).tolist(), name
            else:
                assert found == expected, name
        for name in DATASET["keep"]:
            assert str(part[name].to_pylist()) == str([row[name] for row in rows]), name
    # The same transforms serve rows of the source, and a model takes what they make.
    fitted = FittedTransforms.from_json(
        dataset.transforms, lambda name: dataset.store.get(f"shards/blobs/{name}.arrow")
    )
    test = pa.table(columns()).take(stored["test"]["id"].combine_chunks()).combine_chunks().to_batches()[0]
    served = fitted.apply(test, targets=False)
    assert all(served.column(name).to_pylist() == stored["test"][name].to_pylist() for name in order)
    torch.manual_seed(0)
    model = tabular_mlp(schema, hidden=[8])
    batch = next(iter(Loader(dataset, "train", global_batch_size=64)))
    assert batch.numeric.shape[1] == sum(column.width for column in schema.numeric) == 14 + 14 + 3 + 4
    assert all(torch.isfinite(output).all() for output in model(batch).values())


def test_rows_without_a_value_are_refused_by_column_and_number(
    spark: "SparkSession", table: str, tmp_path: Path
) -> None:
    numeric = {name: {"missing": "refuse"} for name in ("double", "day", "price", "local")}
    others = {
        "word": {"missing": "refuse"},
        "device": {"type": "hashed", "missing": "refuse"},
        "words": {"missing": "refuse"},
        "vector": {"size": 3},
        "patch": {"size": 4},
    }
    file = tables.dataset_file(
        table,
        tmp_path,
        label={"column": "is_new", "type": "binary"},
        defaults={"numeric": {"decimal_scale": 6}},
        features={**numeric, **others},
    )
    with pytest.raises(TableError) as caught:
        features.build(file, spark=spark)
    source = columns()
    expected = {name: sum(map(absent, source[name].to_pylist())) for name in (*numeric, "word", "device", "patch")}
    expected["words"] = sum(row is None or None in row for row in source["words"].to_pylist())
    said = str(caught.value)
    assert f"{len(expected)} problems" in said
    for name, number in expected.items():
        assert f"column {name!r} has no value in {number} rows: its option is `missing: refuse`" in said
