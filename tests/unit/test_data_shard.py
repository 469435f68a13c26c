"""Shards, their digests and checksums."""

import dataclasses
import datetime
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import Column, EncodedShard, Schema, write_shard
from mltrain.data.shard import Shard, content_digest, open_shard
from mltrain.errors import DamagedError
from tests.support.datasets import Features, make_rows, schema_of

EVERYTHING = Features(numeric=3, categorical=2, vectors=1, ragged=2, weight=True, keep=True)


def encoded(rows: int = 100, features: Features = EVERYTHING) -> tuple[Schema, dict[str, Any], EncodedShard]:
    schema = schema_of(features)
    values = make_rows(schema, np.arange(rows), seed=3)
    return schema, values, write_shard(values, schema)


def reopen(folder: Path, shard: EncodedShard, schema: Schema, **changes: Any) -> Shard:
    path = folder / f"{shard.blob}.arrow"
    path.write_bytes(shard.buffer)
    return open_shard(path, schema, **{"blob": shard.blob, "size_bytes": shard.size_bytes, **changes})


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_every_kind_of_column_comes_back(tmp_path: Path, rows: int) -> None:
    schema, values, shard = encoded(rows)
    opened = reopen(tmp_path, shard, schema)
    assert opened.rows == shard.rows == rows
    names = tuple(column.name for column in schema.columns)
    table = opened.table(names)
    for name in names:
        wanted = values[name].tolist() if isinstance(values[name], np.ndarray) else values[name].to_pylist()
        assert table[name].to_pylist() == wanted, name


def test_all_dtypes_come_back(tmp_path: Path) -> None:
    dtypes = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
    schema = Schema(
        (Column("id", "key", "carried", "string"), *(Column(d, "feature", "numeric", d) for d in dtypes)), ("id",)
    )
    values: dict[str, Any] = {d: np.array([0, 1, 1, 0, 1]).astype(d) for d in dtypes}
    values["id"] = pa.array(["a", "ä", "", "b", "c"])
    opened = reopen(tmp_path, write_shard(values, schema), schema)
    for dtype in dtypes:
        assert opened.matrix(dtype).dtype == np.dtype(dtype)
        assert opened.matrix(dtype)[:, 0].tolist() == values[dtype].tolist()
    assert opened.carried("id").to_pylist() == values["id"].to_pylist()


def test_carried_columns_keep_their_types_and_nulls(tmp_path: Path) -> None:
    types = [
        pa.date32(),
        pa.timestamp("us", "UTC"),
        pa.timestamp("us"),
        pa.decimal128(10, 2),
        pa.bool_(),
        pa.binary(16),
    ]
    columns = [Column("id", "key", "carried", "int64")]
    columns += [Column(f"k{i}", "keep", "carried", str(type_)) for i, type_ in enumerate(types)]
    schema = Schema(tuple(columns), ("id",))
    values: dict[str, Any] = {"id": np.arange(3)}
    day, moment = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    first = [day, moment.replace(tzinfo=datetime.UTC), moment, decimal.Decimal("1.25"), True, b"0123456789abcdef"]
    for i, (type_, value) in enumerate(zip(types, first, strict=True)):
        values[f"k{i}"] = pa.array([value, None, None], type_)
    shard = write_shard(values, schema)
    opened = reopen(tmp_path, shard, schema)
    for i in range(len(types)):
        assert opened.carried(f"k{i}").equals(values[f"k{i}"])
    assert content_digest(opened.batch, schema) == shard.digest


def test_buffers_are_aligned_and_matrices_are_views(tmp_path: Path) -> None:
    schema, _, shard = encoded(333)
    opened = reopen(tmp_path, shard, schema)
    for array in opened.batch.columns:
        assert all(buffer.address % 64 == 0 for buffer in array.buffers() if buffer is not None)
    assert opened.matrix("float32").ctypes.data == opened.matrix("float32").ctypes.data
    assert not opened.matrix("float32").flags.owndata
    assert not opened.ragged("h0")[1].flags.owndata


def test_arrow_reads_a_shard_without_us(tmp_path: Path) -> None:
    schema, values, shard = encoded(50)
    reopen(tmp_path, shard, schema)
    with pa.memory_map(str(tmp_path / f"{shard.blob}.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate(full=True)
    assert table["carried/id"].to_pylist() == values["id"].tolist()


def test_features_come_first_in_each_matrix() -> None:
    schema = schema_of(EVERYTHING)
    matrix = schema.matrices["float32"]
    assert matrix.feature_width == 3 + 3 and matrix.width == 3 + 3 + 2
    assert [c.name for c in schema.numeric] == ["x0", "x1", "x2", "v0"]
    assert matrix.slices["y"].start >= matrix.feature_width


def test_equal_rows_give_equal_bytes() -> None:
    assert encoded()[2].blob == encoded()[2].blob


def test_the_digest_ignores_how_arrow_holds_the_rows() -> None:
    schema, values, shard = encoded(60)
    table = pa.table({k: pa.array(v.tolist()) if isinstance(v, np.ndarray) else v for k, v in values.items()})
    table = table.set_column(table.schema.get_field_index("note"), "note", table["note"].cast(pa.large_string()))
    chunked = pa.concat_tables([table.slice(i, 7) for i in range(0, 60, 7)]).replace_schema_metadata({"by": "someone"})
    doubled = pa.concat_tables([table, table]).combine_chunks().slice(60)
    for variant in (chunked, doubled):
        again = write_shard(variant, schema)
        assert (again.digest, again.blob, again.multiset) == (shard.digest, shard.blob, shard.multiset)


def test_what_lies_under_a_null_does_not_reach_the_digest() -> None:
    schema = Schema((Column("id", "key", "carried", "int64"), Column("k", "keep", "carried", "int64")), ("id",))
    valid = pa.py_buffer(bytes([0b101]))
    digests = set()
    for hidden in (0, 77):
        data = pa.py_buffer(np.array([5, hidden, 9], np.int64))
        kept = pa.Array.from_buffers(pa.int64(), 3, [valid, data])
        digests.add(write_shard({"id": np.arange(3), "k": kept}, schema).digest)
    assert len(digests) == 1


def test_a_null_is_not_a_zero_and_a_moved_letter_is_a_change() -> None:
    schema = Schema((Column("id", "key", "carried", "int64"), Column("k", "keep", "carried", "string")), ("id",))
    variants = [["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None], [None, "abc"]]
    digests = {write_shard({"id": np.arange(2), "k": pa.array(v, pa.string())}, schema).digest for v in variants}
    assert len(digests) == len(variants)


@given(column=st.sampled_from(["id", "x0", "c1", "v0", "h0", "y", "w", "note"]), row=st.integers(0, 19))
@settings(max_examples=40, deadline=None)
def test_a_changed_value_changes_the_digest(column: str, row: int) -> None:
    schema, values, shard = encoded(20)
    plain = values[column].tolist() if isinstance(values[column], np.ndarray) else values[column].to_pylist()
    old = plain[row]
    plain[row] = [*old, 1] if column == "h0" else [v + 1 for v in old] if column == "v0" else f"{old}!"
    if column not in ("h0", "v0", "note"):
        plain[row] = old + 1
    changed = pa.array(plain, pa.list_(pa.float32(), 3) if column == "v0" else None)
    assert write_shard({**values, column: changed}, schema).digest != shard.digest


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    schema, _, shard = encoded(10)
    raw = bytearray(shard.buffer)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flip") / "shard.arrow"
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=f"shard {path} is damaged"):
        open_shard(path, schema, blob=shard.blob, size_bytes=shard.size_bytes)


@given(length=st.integers(0, 2000))
@settings(max_examples=30, deadline=None)
def test_a_truncated_file_is_found_before_it_is_mapped(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    schema, _, shard = encoded(10)
    path = tmp_path_factory.mktemp("cut") / "shard.arrow"
    path.write_bytes(bytes(shard.buffer)[: min(length, shard.size_bytes - 1)])
    with pytest.raises(DamagedError, match=f"the manifest says {shard.size_bytes}"):
        open_shard(path, schema, blob=shard.blob, size_bytes=shard.size_bytes)


def test_a_shard_of_another_schema_is_refused(tmp_path: Path) -> None:
    _, _, shard = encoded(10)
    with pytest.raises(DamagedError, match="the dataset's schema wants"):
        reopen(tmp_path, shard, schema_of(Features(numeric=1)))


def test_a_missing_column_is_named() -> None:
    schema, values, _ = encoded(3)
    del values["c1"]
    with pytest.raises(ValueError, match="column 'c1' is missing"):
        write_shard(values, schema)


@pytest.mark.parametrize("column", ["x0", "c0", "v0", "h0", "y"])
def test_a_null_in_what_models_read_is_refused(column: str) -> None:
    schema, values, _ = encoded(3)
    plain = values[column].tolist() if isinstance(values[column], np.ndarray) else values[column].to_pylist()
    plain[1] = None
    type_ = pa.list_(pa.float32(), 3) if column == "v0" else None
    with pytest.raises(ValueError, match=f"column '{column}' holds nulls"):
        write_shard({**values, column: pa.array(plain, type_)}, schema)


def test_statistics_say_what_a_column_holds() -> None:
    _, values, shard = encoded(100)
    x0 = shard.statistics["x0"]
    assert (x0.count, x0.minimum, x0.maximum) == (100, values["x0"].min(), values["x0"].max())
    assert x0.mean == pytest.approx(float(values["x0"].mean()), rel=1e-5)
    positives = int(values["y"].sum())
    assert shard.statistics["y"].classes == (100 - positives, positives)
    assert shard.statistics["c0"].zeros == int(np.count_nonzero(values["c0"] == 0))
    assert shard.statistics["h0"].count == len(values["h0"].flatten())


def test_the_schema_comes_back_from_json() -> None:
    schema = schema_of(dataclasses.replace(EVERYTHING, label="multiclass"))
    assert Schema.from_json(schema.to_json()) == schema


def test_names_are_unique_in_a_schema() -> None:
    column = Column("a", "feature", "numeric", "float32")
    with pytest.raises(ValueError, match="'a'"):
        Schema((column, dataclasses.replace(column, role="label", type="regression")))
