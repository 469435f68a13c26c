"""Tables, schemas and storage that cannot become a dataset: refused with exit code 2 and with names."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from mltrain.cli.app import run
from mltrain.storage import open_store
from tests.support import s3, tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_ROWS = 200
GOOD: dict[str, Any] = {
    "id": pa.array(range(_ROWS), pa.int64()),
    "x": pa.array([i / 7 for i in range(_ROWS)], pa.float64()),
    "city": pa.array([f"c{i % 5}" for i in range(_ROWS)]),
    "y": pa.array([i % 2 for i in range(_ROWS)], pa.int64()),
    "tags": pa.array([[i, i + 1] for i in range(_ROWS)], pa.list_(pa.int64())),
}


def _with(name: str, values: list[Any], kind: pa.DataType) -> dict[str, Any]:
    return {**GOOD, name: pa.array(values, kind)}


def _one(values: list[Any], value: Any) -> list[Any]:
    return [value, *values[1:]]


_ids = list(range(_ROWS))
_labels = [i % 2 for i in range(_ROWS)]
_words = ["no" if i % 2 else "yes" for i in range(_ROWS)]
_multiclass = {"column": "y", "type": "multiclass", "classes": ["yes", "no"]}
_day = datetime.date(2024, 1, 1)

# The table, what the dataset file says besides the defaults, what the message names.
_CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], list[str]]] = {
    "an empty table": ({name: column[:0] for name, column in GOOD.items()}, {}, ["has no rows"]),
    "a null key": (_with("id", _one(_ids, None), pa.int64()), {}, ["id", "null"]),
    "a key twice": (_with("id", _one(_ids, 1), pa.int64()), {}, ["id"]),
    "a float key": (GOOD, {"key": ["x"]}, ["x", "double"]),
    "a list as key": (GOOD, {"key": ["tags"]}, ["tags"]),
    "a key that is not there": (GOOD, {"key": ["idd"]}, ["idd", "id"]),
    "a label that is not there": (GOOD, {"label": {"column": "z", "type": "binary"}}, ["z"]),
    "a feature that is not there": (GOOD, {"features": {"citi": {}}}, ["citi", "city"]),
    "a weight that is not there": (GOOD, {"weight": "w"}, ["'w'"]),
    "a kept column that is not there": (GOOD, {"keep": ["k"]}, ["'k'"]),
    "a split column that is not there": (GOOD, {"split": {"time": "day"}}, ["'day'"]),
    "a null label": (_with("y", _one(_labels, None), pa.int64()), {}, ["y", "null"]),
    "a binary label of three values": (_with("y", [i % 3 for i in _ids], pa.int64()), {}, ["y"]),
    "a binary label of words": (_with("y", _words, pa.string()), {}, ["y", "positive"]),
    "a positive class that is not there": (
        _with("y", _words, pa.string()),
        {"label": {"column": "y", "type": "binary", "positive": "si"}},
        ["y", "si"],
    ),
    "an unknown class": (_with("y", _one(_words, "maybe"), pa.string()), {"label": _multiclass}, ["y", "maybe"]),
    "a label of words for a regression": (
        _with("y", _words, pa.string()),
        {"label": {"column": "y", "type": "regression"}},
        ["y"],
    ),
    "a weight of words": (GOOD, {"weight": "city"}, ["city"]),
    "a numeric feature of words": (GOOD, {"features": {"city": {"type": "numeric"}}}, ["city", "numeric"]),
    "a binary column": (_with("blob", [b"x"] * _ROWS, pa.binary()), {}, ["blob"]),
    "lists of any length as a vector": (
        _with("v", [[0.5] * (i % 3) for i in _ids], pa.list_(pa.float64())),
        {},
        ["v", "size"],
    ),
    "no feature at all": (GOOD, {"features": {"*": {"drop": True}}}, ["feature"]),
    "an empty split": (GOOD, {"split": {"fractions": {"train": 0.999999, "validation": 0.000001}}}, ["validation"]),
    "a split by time of words": (GOOD, {"split": {"time": "city"}}, ["city"]),
    "a null in the split column": (
        _with("part", _one(["train", "validation"] * (_ROWS // 2), None), pa.string()),
        {"split": {"column": "part"}},
        ["part", "null"],
    ),
    "a feature of nulls only": (_with("x", [None] * _ROWS, pa.float64()), {}, ["x"]),
    "a column of nulls only as days": (_with("d", [None] * (_ROWS - 1) + [_day], pa.date32()), {"key": ["d"]}, ["d"]),
    "a version that is not there": (GOOD, {"version": 7}, ["7", "0"]),
    "a time before the table": (GOOD, {"timestamp": "2001-01-01"}, ["2001-01-01"]),
    "a time that is none": (GOOD, {"timestamp": "yesterday"}, ["yesterday"]),
}


def _config(tmp_path: Path, table: str, root: str, said: Mapping[str, Any]) -> str:
    dataset = {"table": table, "key": ["id"], "label": {"column": "y", "type": "binary"}, **said}
    with (tmp_path / "file.yaml").open("w") as stream:
        YAML(typ="safe").dump({"name": "bad", "root": root, "dataset": dataset}, stream)
    return str(tmp_path / "file.yaml")


def _refused(arguments: list[str], named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = run(arguments)
    said = capsys.readouterr()
    assert exit_code == 2, said.err
    assert said.out == ""
    message = said.err[said.err.index("error: ") :]
    assert "Traceback" not in said.err
    for name in named:
        assert name in message, message


def _no_dataset_was_made(root: Path) -> bool:
    return not (root / "datasets").exists() and not list(root.glob("shards/*/manifest.json"))


@pytest.mark.parametrize("case", _CASES)
def test_a_table_that_cannot_be_a_dataset(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    columns, said, named = _CASES[case]
    table = tables.write(tmp_path / "table", columns)
    _refused(["dataset", "build", "-c", _config(tmp_path, table, str(tmp_path / "root"), said)], named, capsys)
    assert _no_dataset_was_made(tmp_path / "root")


@pytest.mark.parametrize("what", ["nothing", "a file", "a folder"])
def test_a_place_without_a_delta_table(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    table = tmp_path / "table"
    if what == "a file":
        table.write_text("x,y\n1,2\n")
    if what == "a folder":
        table.mkdir()
        (table / "part.csv").write_text("x,y\n1,2\n")
    config = _config(tmp_path, str(table), str(tmp_path / "root"), {})
    _refused(["dataset", "build", "-c", config], [str(table), "Delta table"], capsys)
    assert _no_dataset_was_made(tmp_path / "root")


_STORAGE = {
    "a bucket that is not there": ("s3://no-such-bucket/ml", {}, ["s3://no-such-bucket/ml", "NoSuchBucket"]),
    "a wrong secret": (None, {"AWS_SECRET_ACCESS_KEY": "wrong"}, ["SignatureDoesNotMatch", "credentials"]),
    "an unknown key": (None, {"AWS_ACCESS_KEY_ID": "nobody"}, ["credentials"]),
    "an endpoint that nobody serves": ("s3://b", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ["cannot be written"]),
    "an account that is not named": ("az://container/ml", {}, ["AZURE_STORAGE_ACCOUNT_NAME"]),
    "a root that is a file": ("FILE", {}, ["choose another root"]),
    "a root that is not ours": ("/proc/mltrain", {}, ["choose another root"]),
}


@pytest.mark.parametrize("case", _STORAGE)
def test_a_root_that_cannot_be_written(
    s3_server: s3.S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    root, environment, named = _STORAGE[case]
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    (tmp_path / "a file").write_text("")
    root = s3_server.bucket() if root is None else str(tmp_path / "a file") if root == "FILE" else root
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = _config(tmp_path, tables.write(tmp_path / "table", GOOD), root, {})
    _refused(["dataset", "build", "-c", config, "-s", "storage.deadline_s=1"], named, capsys)


def test_a_root_that_may_only_be_read(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3.serve(tmp_path_factory.mktemp("read-only"), read_only=True) as server, s3.environment(server):
        root = server.bucket()
        config = _config(tmp_path, tables.write(tmp_path / "table", GOOD), root, {})
        _refused(["dataset", "build", "-c", config], [root, "access denied"], capsys)
        assert list(open_store(root).list()) == []
