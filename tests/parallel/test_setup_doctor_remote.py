"""Doctor where the work runs: on Spark's executors and on Ray's nodes."""

import json
import socket
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.setup import prerequisites
from mltrain.cli import checks
from mltrain.cli.app import run
from mltrain.cli.doctor import doctor
from tests.support import s3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def _status(rows: list[checks.Check], name: str) -> set[str]:
    return {row.status for row in rows if row.name == name}


def test_on_spark_the_executors_answer(spark: "SparkSession", bucket: str) -> None:
    rows = doctor("spark", root=bucket)
    assert {row.where for row in rows} == {socket.gethostname()}
    assert _status(rows, "python") == {"ok"}
    assert _status(rows, "storage root") == {"ok"}
    assert _status(rows, "torch") == set()


def test_on_spark_a_root_that_executors_cannot_write_is_broken(spark: "SparkSession", tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _status(doctor("spark", root=str(tmp_path / "file" / "root")), "storage root") == {"broken"}


def test_the_root_of_a_config_file_is_looked_at(
    spark: "SparkSession", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "one.yaml").write_text("name: one\ndataset: adult\nroot: file/root\n")
    assert run(["doctor", "--on", "spark", "-c", str(tmp_path / "one.yaml"), "--output", "json"]) == 1
    (row,) = (row for row in json.loads(capsys.readouterr().out) if row["name"] == "storage root")
    assert row["status"] == "broken"
    assert str(tmp_path / "file" / "root") in row["detail"]


@pytest.fixture
def executors_python(spark: "SparkSession") -> Iterator[Callable[[str | Path], None]]:
    """Makes the executors' next tasks run another interpreter."""
    context = spark.sparkContext
    before = context.pythonExec

    def use(interpreter: str | Path) -> None:
        context.pythonExec = str(interpreter)

    yield use
    context.pythonExec = before


def test_on_spark_executors_that_cannot_import_mltrain_are_named(
    executors_python: Callable[[str | Path], None], tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    executors_python(tmp_path / "bare" / "bin" / "python")
    rows = doctor("spark", root=str(tmp_path))
    assert {(row.name, row.status) for row in rows} == {("mltrain", "missing")}
    assert "No module named" in rows[0].detail


def test_on_spark_another_python_version_is_broken(
    executors_python: Callable[[str | Path], None], tmp_path: Path
) -> None:
    others = [
        python
        for version in prerequisites.PYTHONS
        if version != sys.version_info[:2]
        for python in prerequisites.pythons(version)
    ]
    if not others:
        pytest.skip("this machine has one supported version of Python")
    executors_python(others[0].executable)
    (row,) = doctor("spark", root=str(tmp_path))
    assert row.status == "broken"
    assert "PYTHON_VERSION_MISMATCH" in row.detail


def test_on_ray_every_node_answers(ray_cluster: str, bucket: str) -> None:
    import ray

    with ray.init(address=ray_cluster, log_to_driver=False):
        rows = doctor("ray", root=bucket)
    assert _status(rows, "torch") == {"ok"}
    assert _status(rows, "horovod") == {checks.horovod().status}
    assert _status(rows, "storage root") == {"ok"}
    assert "here" not in {row.where for row in rows}


def test_a_server_that_only_reads_is_a_broken_root(tmp_path: Path) -> None:
    with s3.serve(tmp_path, read_only=True) as server, s3.environment(server):
        row = checks.storage(server.bucket())
    assert row.status == "broken"
    assert row.remedy
