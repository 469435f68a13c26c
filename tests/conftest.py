"""Engines shared by the tests: each starts when the first test asks for it, once, and is stopped at the end.

The S3 server comes first: Spark's and Ray's processes inherit its address and credentials when they start.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import s3

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# What a laptop needs and a cluster does not; read by every JVM that the tests start, spark-submit's too.
_SPARK_DEFAULTS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.sql.shuffle.partitions": "4",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_LOGICAL_CPUS = 8
_UNIT = Path(__file__).parent / "unit"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, one worker runs all tests of one engine; elsewhere the tests of a module stay together."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        engine = next((name for name in ("ray_cluster", "spark") if name in fixtures), None)
        if engine or not item.path.is_relative_to(_UNIT):
            item.add_marker(pytest.mark.xdist_group(engine or item.path.stem))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    """A running S3 server; the AWS_* variables of this process point at it."""
    with s3.serve(tmp_path_factory.mktemp("s3")) as server, s3.environment(server):
        yield server


@pytest.fixture
def bucket(s3_server: s3.S3Server) -> str:
    """The URI of an empty bucket, ``s3://…``."""
    return s3_server.bucket()


@pytest.fixture(scope="session")
def spark_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes every Spark that starts from here on small, and keeps its files out of the working directory."""
    directory = tmp_path_factory.mktemp("spark")
    settings = {
        **_SPARK_DEFAULTS,
        "spark.sql.warehouse.dir": str(directory / "warehouse"),
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={directory} -Xss4m",
    }
    (directory / "spark-defaults.conf").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPARK_CONF_DIR", str(directory))
        environment.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def spark(s3_server: s3.S3Server, spark_conf: None) -> "Iterator[SparkSession]":
    """A local Spark with Delta and s3a, as ``mltrain.features`` starts one."""
    from mltrain.features import session

    started = session("tests")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_server: s3.S3Server) -> Iterator[str]:
    """The address of a Ray cluster of one node. It is stopped with the tests, also when they are killed."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_DEDUP_LOGS"] = "0"
    head = {"num_cpus": _LOGICAL_CPUS, "object_store_memory": 256 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "dashboard_agent_listen_port": 0})
    yield str(cluster.address)
    ray.shutdown()
    cluster.shutdown()
