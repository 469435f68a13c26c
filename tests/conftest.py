"""Engines shared by the tests: each starts when the first test asks for it, once, and is stopped at the end.

The S3 server comes first: Spark's and Ray's processes inherit its address and credentials when they start.
"""

import os
import tempfile
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
# A JVM of the tests ends before code that took long to compile has paid off.
_SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_LOGICAL_CPUS = 8
_UNIT = Path(__file__).parent / "unit"
# Minutes each, the longest first: what starts last leaves the other worker idle for as long as it takes.
_LONG_GROUPS = (
    "ray_cluster",
    "spark",
    "test_train_hosts",
    "test_demo_local",
    "test_demo_s3",
    "test_train_inprocess",
    "test_setup_jobs",
    "test_examples",
    "test_collectives",
)


def _group(item: pytest.Item) -> str | None:
    fixtures = getattr(item, "fixturenames", ())
    engine = next((name for name in ("ray_cluster", "spark") if name in fixtures), None)
    return engine or (None if item.path.is_relative_to(_UNIT) else item.path.stem)


def _turn(item: pytest.Item) -> int:
    group = _group(item)
    if group is None:
        return len(_LONG_GROUPS) + 1
    return _LONG_GROUPS.index(group) if group in _LONG_GROUPS else len(_LONG_GROUPS)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, one worker runs all tests of one engine; elsewhere the tests of a module stay together.

    Groups start in the order of the items, and unit tests fill what is left.
    """
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_turn)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is killed leaves its temporary files: below pytest's own directories, which go after some sessions."""
    with pytest.MonkeyPatch.context() as environment:
        # Ray's sockets need a short path, and its directory is known to every Ray of the machine.
        environment.setenv("RAY_TMPDIR", tempfile.gettempdir())
        environment.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        yield


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
        "spark.local.dir": str(directory),
        "spark.driver.extraJavaOptions": (
            f"-Dderby.system.home={directory} -Djava.io.tmpdir={directory} -Xss4m {_SHORT_LIVED}"
        ),
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
