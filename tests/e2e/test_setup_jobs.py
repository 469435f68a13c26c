"""The job scripts as clusters run them: real ``spark-submit``, real ``ray job submit``."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from mltrain.data import Dataset
from mltrain.features import packages
from tests.support import processes
from tests.support.datasets import make_dataset
from tests.support.s3 import S3Server

_BIN = Path(sys.executable).parent
_SUBMIT = (
    "spark-submit --master local[2] {packages} $(mltrain jobs path build_dataset) -c table.yaml -s dataset.version=0"
)
_TABLE = """
name: sums
root: {root}
dataset:
  table: {table}
  key: [id]
  label: {{column: large, type: binary, positive: "yes"}}
  split: {{method: random, fractions: {{train: 0.8, test: 0.2}}, seed: 3}}
"""
_EXPERIMENT = """
name: made-mlp
root: {root}
dataset: made
model: {{factory: "mltrain.models:tabular_mlp", args: {{hidden: [8]}}}}
objective: {{metric: validation/auc, mode: max}}
train:
  epochs: 1
  global_batch_size: 128
  optimizer: {{name: adamw, lr: 1e-2}}
  workers: {{min: 1, max: 2, cpus: 1, gpus: 0}}
tune:
  trials: 2
  search: random
  scheduler: {{name: fifo}}
  space: {{train.optimizer.lr: {{loguniform: [1e-3, 1e-1]}}}}
"""


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment's programs come first, as in an activated one."""
    monkeypatch.setenv("PATH", f"{_BIN}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def table(bucket: str, s3_server: S3Server, tmp_path: Path) -> str:
    """A root in object storage with a Delta table of two versions, and ``table.yaml`` in ``tmp_path``."""
    uri = f"{bucket}/table"
    options = {**s3_server.env, "AWS_ALLOW_HTTP": "true"}
    for first in (0, 1000):
        ids = range(first, first + 1000)
        rows = pa.table({"id": ids, "x": [i * 0.5 for i in ids], "large": ["yes" if i % 3 else "no" for i in ids]})
        write_deltalake(uri, rows, mode="append", storage_options=options)
    (tmp_path / "table.yaml").write_text(_TABLE.format(root=f"{bucket}/root", table=uri))
    return f"{bucket}/root"


def _shell(line: str, directory: Path, timeout_s: float = 300.0) -> processes.Completed:
    return processes.run(["bash", "-c", line], directory / "logs", cwd=directory, timeout_s=timeout_s)


@pytest.mark.usefixtures("path", "spark_conf")
def test_spark_submit_with_the_packages_builds_the_dataset_of_the_version(table: str, tmp_path: Path) -> None:
    done = _shell(_SUBMIT.format(packages="--packages $(mltrain jobs packages)"), tmp_path)
    assert done.exit_code == 0, done.stdout[-3000:]
    dataset = Dataset.open("sums", root=table)
    assert sum(dataset.rows(split) for split in dataset.splits) == 1000


@pytest.mark.usefixtures("path", "spark_conf")
def test_spark_submit_without_the_packages_ends_with_2_and_prints_the_flags(table: str, tmp_path: Path) -> None:
    done = _shell(_SUBMIT.format(packages=""), tmp_path)
    assert done.exit_code == 2, done.stdout[-3000:]
    said = done.stdout + done.stderr  # spark-submit merges the two of a Python program
    assert packages.submit_flags() in said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def job_server(s3_server: S3Server) -> Iterator[str]:
    """The address of the job server of a Ray cluster whose processes find this environment's programs."""
    import ray
    from ray.cluster_utils import Cluster

    # Jobs go through the node's agent; on its fixed default port another cluster of this machine may listen.
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
    head = {"num_cpus": 4, "object_store_memory": 256 << 20, "include_dashboard": True, **ports}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{_BIN}{os.pathsep}{os.environ['PATH']}")
        cluster = Cluster(initialize_head=True, head_node_args=head)
    node: Any = cluster.head_node
    yield f"http://{node.address_info['webui_url']}"
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("job", ["train", "sweep"])
def test_ray_job_submit_runs_it_on_the_cluster_and_the_run_is_in_the_runs_table(
    job_server: str, bucket: str, tmp_path: Path, job: str
) -> None:
    make_dataset(bucket, rows=1000)
    work = tmp_path / "work"
    work.mkdir()
    (work / "experiment.yaml").write_text(_EXPERIMENT.format(root=bucket))
    submit = f"ray job submit --address {job_server} --working-dir {work} --"
    done = _shell(f"{submit} python $(mltrain jobs path {job}) -c experiment.yaml --run-id by-job", tmp_path)
    assert done.exit_code == 0, (done.stdout + done.stderr)[-3000:]
    from mltrain import results

    rows = results.runs(bucket).to_pylist()
    assert {row["status"] for row in rows} == {"finished"}
    assert "by-job" in {row["run_id"] for row in rows}
