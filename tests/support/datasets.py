"""Small real datasets without Spark."""

import dataclasses
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mltrain.data import Build, Column, Dataset, Schema, ShardEntry, assemble, keys, write_shard
from mltrain.data.publish import put_shard
from mltrain.storage import open_store

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@dataclasses.dataclass(frozen=True)
class Features:
    """How many columns of each kind a dataset has."""

    numeric: int = 4
    categorical: int = 2
    vectors: int = 0
    ragged: int = 0
    weight: bool = False
    keep: bool = False
    label: str = "binary"
    cardinality: int = 10


def schema_of(features: Features) -> Schema:
    """The schema of :func:`make_dataset`: key ``id``, features ``x0``.. ``c0``.. ``v0``.. ``h0``.., label ``y``."""
    ids = features.cardinality
    columns = [Column("id", "key", "carried", "int64")]
    columns += [Column(f"x{i}", "feature", "numeric", "float32") for i in range(features.numeric)]
    columns += [
        Column(f"c{i}", "feature", "categorical", "int32", cardinality=ids) for i in range(features.categorical)
    ]
    columns += [Column(f"v{i}", "feature", "vector", "float32", width=3) for i in range(features.vectors)]
    columns += [
        Column(f"h{i}", "feature", "id_list", "int32", width=0, cardinality=ids) for i in range(features.ragged)
    ]
    columns.append(_label(features.label))
    if features.weight:
        columns.append(Column("w", "weight", "weight", "float32"))
    if features.keep:
        columns.append(Column("note", "keep", "carried", "string"))
    return Schema(tuple(columns), ("id",))


def make_rows(schema: Schema, ids: np.ndarray[Any, Any], seed: int) -> dict[str, Any]:
    """Columns of rows with these ids. A row's values depend on its id and the seed alone; the label can be learnt."""
    total = int(ids.max(initial=0)) + 1
    values: dict[str, Any] = {"id": ids.astype(np.int64)}
    score = np.zeros(len(ids), np.float64)
    for column in schema.features:
        # A stream of numbers for each column: how many another one takes depends on which rows are asked for.
        rng = _stream(seed, column.name)
        if column.kind == "numeric":
            effect = rng.uniform(0.5, 1.5)
            values[column.name] = rng.standard_normal(total).astype(np.float32)[ids]
            score += values[column.name] * effect
        elif column.kind == "vector":
            values[column.name] = rng.standard_normal((total, column.width)).astype(np.float32)[ids]
        elif column.ragged:
            lengths = rng.integers(0, 5, total)[ids]
            start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            elements = np.repeat(ids * 7 - start[:-1], lengths) + np.arange(start[-1])
            elements = (elements % (column.cardinality or 1)).astype(np.int32)
            values[column.name] = pa.ListArray.from_arrays(pa.array(start), pa.array(elements))
        else:
            effects = rng.standard_normal(column.cardinality or 1)
            values[column.name] = rng.integers(0, column.cardinality or 1, total).astype(np.int32)[ids]
            score += effects[values[column.name]]
    noise = _stream(seed, "noise").standard_normal(total)[ids]
    for column in schema.labels.values():
        values[column.name] = _targets(column, score + 0.5 * noise)
    if schema.weight is not None:
        values["w"] = _stream(seed, "w").uniform(0.5, 2.0, total).astype(np.float32)[ids]
    if "note" in schema:
        values["note"] = pa.array([None if i % 5 == 0 else f"note {i}" for i in ids.tolist()], pa.string())
    return values


def make_dataset(
    root: str | Path,
    *,
    rows: int = 1000,
    shards: int = 4,
    features: Features | None = None,
    seed: int = 0,
    name: str = "made",
    splits: Sequence[str] = ("train", "validation", "test"),
    transforms: dict[str, Any] | None = None,
) -> Dataset:
    """Writes and opens a dataset: ``rows`` rows over ``splits`` (8:1:1), the train split in ``shards`` shards.

    Args:
        root: a directory or a URI.
        rows: rows of all splits together.
        shards: shards of the first split; the others have one each.
        features: which columns.
        seed: of the values.
        name: of the dataset.
        splits: which of train, validation and test.
        transforms: what the manifest carries as fitted transforms.
    """
    schema = schema_of(features or Features())
    store = open_store(root)
    ids = np.arange(rows)
    key = pa.table({"id": ids.astype(np.int64)})
    chosen = _split_of(key, splits, seed)
    hashes = keys.hash_rows(key, domain=keys.SHARD_DOMAIN, seed=0)
    entries = []
    for number, split in enumerate(splits):
        mine = ids[chosen == number]
        mine = mine[np.argsort(hashes[mine], kind="stable")]
        for bucket, part in enumerate(np.array_split(mine, shards if number == 0 else 1)):
            shard = write_shard(make_rows(schema, part, seed), schema)
            put_shard(store, shard)
            entries.append(ShardEntry.of(shard, split=split, increment=0, bucket=bucket))
    manifest, blobs = assemble(schema, transforms or {}, tuple(splits), entries)
    build_id = f"{name}-{uuid.uuid4().hex[:8]}"
    with Build.start(store, name, build_id) as build:
        build.publish(manifest, blobs, {"source": "tests.support.datasets"})
    return Dataset.open(name, root=root)


def _stream(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])


def _split_of(key: pa.Table, splits: Sequence[str], seed: int) -> np.ndarray[Any, Any]:
    uniform = keys.hash_rows(key, domain=keys.SPLIT_DOMAIN, seed=seed) / 2.0**64
    shares = np.cumsum([SPLITS[split] for split in splits])
    chosen: np.ndarray[Any, Any] = np.searchsorted(shares / shares[-1], uniform, side="right")
    return chosen


def _label(kind: str) -> Column:
    if kind == "binary":
        return Column("y", "label", "binary", "float32", classes=("no", "yes"), type="binary")
    if kind == "multiclass":
        return Column("y", "label", "multiclass", "int64", classes=("a", "b", "c"), type="multiclass")
    return Column("y", "label", "regression", "float32", type="regression")


def _targets(column: Column, score: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if column.type == "binary":
        return np.asarray(score > 0, np.float32)
    if column.type == "multiclass":
        return np.asarray(np.digitize(score, [-1.0, 1.0]), np.int64)
    return np.asarray(score, np.float32)
