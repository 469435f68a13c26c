import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mltrain.data import Column, Schema, keys, write_shard
from mltrain.features import scatter
from mltrain.features.scatter import HASH, PLACE, Encoder, Places
from mltrain.storage import open_store
from mltrain.transforms import Categorical, FittedTransforms, IdList, Numeric, Vector, Vocabulary

ROWS = 500
VOCABULARY = Vocabulary(pa.array(range(40)))
TRANSFORMS = FittedTransforms(
    (Numeric("x", 0.5, 1.0, 2.0), Categorical("c", "c"), IdList("h", "c", 2), Vector("v", 3)),
    vocabularies={"c": VOCABULARY},
)
SCHEMA = Schema(
    (
        Column("x", "feature", "numeric", "float32"),
        Column("c", "feature", "categorical", "int32", cardinality=41, vocabulary="c"),
        Column("h", "feature", "id_list", "int32", width=0, cardinality=41, vocabulary="c"),
        Column("v", "feature", "vector", "float32", width=3),
        Column("id", "key", "carried", "string"),
        Column("note", "keep", "carried", "string"),
    ),
    ("id",),
)


def table() -> pa.Table:
    """Rows as a task of the scatter reads them: all of one shard."""
    random = np.random.default_rng(5)
    columns = {
        "id": pa.array([f"k{i}" for i in range(ROWS)]),
        "x": pa.array(random.random(ROWS), mask=random.random(ROWS) < 0.1),
        "c": pa.array(random.integers(0, 60, ROWS)),
        "h": pa.array([[int(v) for v in random.integers(0, 60, i % 4)] for i in range(ROWS)], pa.list_(pa.int64())),
        "v": pa.array(random.random((ROWS, 3)).tolist(), pa.list_(pa.float32())),
        "note": pa.array([None if i % 3 else "é" * i for i in range(ROWS)]),
    }
    hashes = keys.hash_rows(pa.table({"id": columns["id"]}), domain=keys.SHARD_DOMAIN, seed=scatter.SHARD_SEED)
    return pa.table({PLACE: pa.array([0] * ROWS, pa.int32()), HASH: hashes.view(np.int64), **columns})


def encoder(root: Path) -> Encoder:
    return Encoder(open_store(str(root)), Places(("train",), (1,)), TRANSFORMS, SCHEMA, ("id",), keyed=True)


def answers(root: Path, batches: list[pa.RecordBatch]) -> list[dict[str, object]]:
    """What the two tasks of the scatter make of rows, without the shuffle between them."""
    packed = list(scatter.pack(encoder(root))(iter(batches)))

    def answer(place: int, rows: pa.Table) -> scatter.Answer:
        return scatter.shard_answer(encoder(root), rows, split="train", increment=0, bucket=place)

    tasks = scatter._by_place(answer)(iter(packed))
    return [json.loads(text) for batch in tasks for text in batch["answer"].to_pylist()]


@pytest.mark.parametrize("rows", [1, 7, 64, ROWS])
def test_a_shard_does_not_depend_on_how_its_rows_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    source = table()
    hashes = source[HASH].to_numpy().view(np.uint64)
    order = keys.sort_order(source.select(["id"]), hashes)
    made = TRANSFORMS.apply(source.combine_chunks().to_batches()[0])
    columns = {name: made.column(name).take(pa.array(order)) for name in made.schema.names}
    columns |= {name: source[name].take(pa.array(order)) for name in ("id", "note")}
    expected = write_shard(columns, SCHEMA)

    monkeypatch.setattr(scatter, "_PACKED_BYTES", 1000)
    mixed = source.take(pa.array(np.random.default_rng(rows).permutation(ROWS))).combine_chunks()
    (answer,) = answers(tmp_path, mixed.to_batches(max_chunksize=rows))
    assert (answer["blob"], answer["digest"]) == (expected.blob, expected.digest)
    assert (tmp_path / "shards" / "blobs" / f"{expected.blob}.arrow").read_bytes() == expected.buffer.to_pybytes()


def test_every_problem_of_the_values_reaches_the_driver_and_no_shard_is_stored(tmp_path: Path) -> None:
    source = table()
    infinite = source.set_column(3, "x", pa.array([*range(ROWS - 1), float("inf")]))
    short = source.set_column(6, "v", pa.array([[0.0]] * ROWS, pa.list_(pa.float32())))
    batches = [part.combine_chunks().to_batches()[0] for part in (infinite, source, short)]
    found = answers(tmp_path, batches)
    assert found == [
        {"problem": "column 'x' holds an infinity: make it null, or a number"},
        {"problem": "vector 'v' has size 3 but a row holds 1 numbers"},
    ]
    assert not list(tmp_path.rglob("*.arrow"))


def test_keys_that_occur_twice_are_answered_with_examples(tmp_path: Path) -> None:
    source = table()
    twice = pa.concat_tables([source, source.slice(3, 1)]).combine_chunks()
    assert answers(tmp_path, twice.to_batches()) == [{"duplicates": 1, "examples": ["k3"]}]
