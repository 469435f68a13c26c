"""The same rows give the same dataset: on any master, with other partitions, after failures, beside another builder."""

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from mltrain import features
from mltrain.config import DatasetFile
from mltrain.data import Dataset
from mltrain.errors import NotFoundError
from mltrain.storage import open_store
from tests.support import processes, tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TIMEOUT_S = 300
ROWS = 3000


def rows() -> pa.Table:
    """Numbers whose sums depend on their order when they are rounded, and terms that tie."""
    random = np.random.default_rng(7)
    ids = np.arange(ROWS)
    return pa.table(
        {
            "id": pa.array([f"key-{i:05d}" for i in ids]),
            "x": random.lognormal(0, 6, ROWS),
            "z": pa.array(random.normal(1e9, 1, ROWS), mask=random.random(ROWS) < 0.1),
            "c": pa.array([None if i % 11 == 0 else f"c{i % 40}" for i in ids]),
            "h": pa.array([[int(v) for v in random.integers(0, 30, i % 5)] for i in ids], pa.list_(pa.int64())),
            "y": ids % 2,
        }
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tables.write(tmp_path_factory.mktemp("determinism") / "table", rows())


def dataset_file(table: str, root: Path, **dataset: Any) -> DatasetFile:
    features_ = {"*": {}, "h": {"type": "id_list"}}
    return tables.dataset_file(table, root, **{"rows_per_shard": 400, "features": features_, **dataset})


@pytest.fixture(scope="module")
def reference(table: str, spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest, from the tests' own session."""
    return features.build(dataset_file(table, tmp_path_factory.mktemp("reference")), spark=spark).digest


def saved(file: DatasetFile, path: Path) -> Path:
    path.write_text(file.model_dump_json())
    return path


def command(files: Sequence[Path]) -> list[str]:
    return [sys.executable, "-m", "tests.support.build_dataset", *map(str, files)]


def submit_arguments(master: str, **conf: str) -> dict[str, str]:
    settings = " ".join(f"--conf {key.replace('__', '.')}={value}" for key, value in conf.items())
    return {"PYSPARK_SUBMIT_ARGS": f"--master {master} {settings} pyspark-shell"}


def answers(completed: processes.Completed) -> list[dict[str, str]]:
    assert completed.exit_code == 0, completed.stderr[-4000:]
    return [json.loads(line) for line in completed.stdout.splitlines()]


def test_other_packings_of_the_same_rows_give_the_same_digest(
    table: str, reference: str, spark: "SparkSession", tmp_path: Path
) -> None:
    shuffled = rows().take(pa.array(np.random.default_rng(3).permutation(ROWS)))
    parts = [shuffled.slice(start, 113) for start in range(0, ROWS, 113)]
    scattered = tables.write(tmp_path / "scattered", *parts)
    settings = {"spark.sql.files.maxPartitionBytes": "8k", "spark.sql.execution.arrow.maxRecordsPerBatch": "37"}
    # What Parquet's names mean then is Spark's to say: it reads the table, and tasks do not.
    settings["spark.sql.caseSensitive"] = "true"
    before = {key: str(spark.conf.get(key)) for key in (*settings, "spark.sql.shuffle.partitions")}
    try:
        for key, value in {**settings, "spark.sql.shuffle.partitions": "7"}.items():
            spark.conf.set(key, value)
        assert features.build(dataset_file(table, tmp_path / "a"), spark=spark).digest == reference
        assert features.build(dataset_file(scattered, tmp_path / "b"), spark=spark).digest == reference
    finally:
        for key, value in before.items():
            spark.conf.set(key, value)
    deltalake.DeltaTable(scattered).optimize.compact()
    assert deltalake.DeltaTable(scattered).version() == len(parts)
    assert features.build(dataset_file(scattered, tmp_path / "b"), spark=spark).digest == reference


def test_one_changed_value_gives_another_digest(reference: str, spark: "SparkSession", tmp_path: Path) -> None:
    changed = rows().set_column(1, "x", pa.array([*rows()["x"].to_pylist()[:-1], 1.0]))
    table = tables.write(tmp_path / "table", changed)
    assert features.build(dataset_file(table, tmp_path / "root"), spark=spark).digest != reference


def test_two_builders_race_on_other_masters_while_every_task_fails_once(
    table: str, reference: str, spark_conf: None, tmp_path: Path
) -> None:
    """local[1] and local[2] with speculation, meeting at the manifest; each task's first attempt fails."""
    file = saved(dataset_file(table, tmp_path / "root"), tmp_path / "file.json")
    faults = tables.python_with_faults(tmp_path / "faults", fault="wait_for_other")
    speculation = {
        "spark__speculation": "true",
        "spark__speculation__multiplier": "1.01",
        "spark__speculation__quantile": "0.1",
    }
    builders = [submit_arguments("local[1,4]"), submit_arguments("local[2,4]", **speculation)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(processes.started(command([file]), tmp_path / f"logs{i}", env={**faults, **arguments}))
            for i, arguments in enumerate(builders)
        ]
        found = [answers(process.wait(TIMEOUT_S))[0] for process in running]
    assert [answer["digest"] for answer in found] == [reference, reference]
    assert [answer["master"] for answer in found] == ["local[1,4]", "local[2,4]"]
    dataset = Dataset.open(tmp_path / "root" / "datasets" / "test")
    assert dataset.digest == reference
    assert dataset.verify().damaged == {}
    assert len(list(open_store(tmp_path / "root").list("builds"))) == 2


def test_lost_rows_and_a_killed_driver_leave_nothing_that_can_be_seen(
    table: str, spark_conf: None, tmp_path: Path
) -> None:
    file = saved(dataset_file(table, tmp_path / "root"), tmp_path / "file.json")
    environment = tables.python_with_faults(tmp_path / "faults", fault="lose_row")
    with processes.started(
        command([file, file, file]), tmp_path / "logs", env={**environment, **submit_arguments("local[2]")}
    ) as process:
        process.wait_for_output('"message"', TIMEOUT_S)
        (tmp_path / "faults" / "fault").write_text("swap_row")
        processes.wait_until(lambda: process.stdout.count('"message"') == 2, TIMEOUT_S, "second refusal")
        (tmp_path / "faults" / "fault").write_text("kill_driver")
        completed = process.wait(TIMEOUT_S)
    lost, swapped = (json.loads(line) for line in completed.stdout.splitlines())
    assert completed.exit_code == -signal.SIGKILL
    assert lost["error"] == swapped["error"] == "BuildError"
    assert "so nothing was published" in lost["message"]
    assert "other rows, the table" in swapped["message"]
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["builds", "shards"]
    assert [path.name for path in (tmp_path / "root" / "shards").iterdir()] == ["blobs"]
    with pytest.raises(NotFoundError):
        Dataset.open(tmp_path / "root" / "datasets" / "test")


def test_without_a_key_rows_that_only_hash_alike_give_the_same_digest_in_any_order(
    spark: "SparkSession", tmp_path: Path
) -> None:
    ids = np.arange(240)
    nans = np.array([0x7FF8000000000000, 0x7FF8000000000123, -0x8000000000000]).view(np.float64)
    table = pa.table(
        {
            "y": ids % 2,
            "x": np.ones(len(ids)),
            "zero": np.where(ids % 3, 0.0, -0.0),
            "nan": nans[ids % 5 % 3],
            "l": pa.array([[1, None] if i % 4 else [None, 1] for i in ids], pa.list_(pa.int64())),
            "f": pa.array([[0.0, None, nans[0]] if i % 7 else [-0.0, None, nans[1]] for i in ids]),
        }
    )
    settings = {"key": [], "keep": ["zero", "nan", "l", "f"], "features": {"x": {}}}
    found = set()
    for name, order in {"forth": ids, "back": ids[::-1]}.items():
        path = tables.write(tmp_path / name, table.take(pa.array(order)))
        report = features.build(tables.dataset_file(path, tmp_path / "root", name=name, **settings), spark=spark)
        found.add(report.digest)
        kept = pa.concat_tables([Dataset.open(report.uri).read(split, ["zero"]) for split in report.rows])
        assert np.signbit(kept["zero"].to_numpy()).sum() == 80, "a zero keeps its sign"
    assert len(found) == 1
