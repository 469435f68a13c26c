"""``mltrain doctor``: what is installed and works, on this machine, on Spark's executors or on Ray's workers."""

import dataclasses
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mltrain.cli import checks
from mltrain.cli.checks import Check

_PARTITIONS_PER_CORE = 2
_WORKER_WAIT_S = 180.0


def doctor(on: Literal["spark", "ray"] | None = None, root: str = "./out") -> list[Check]:
    """Looks at every part that mltrain stands on.

    Args:
        on: None looks at this machine; "spark" at the executors of the submitted or local Spark; "ray" at every node of
            the Ray cluster that RAY_ADDRESS or a running cluster names, or of one that is started here.
        root: where artefacts would go.

    Raises:
        MltrainError: the engine of ``on`` is not installed or does not start.
    """
    if on == "spark":
        return _on_executors(root)
    if on == "ray":
        return _on_nodes(root)
    spark = checks.requirements("spark")
    rows = [checks.python(), *checks.requirements(""), *spark]
    if spark[0].status != "missing":
        rows += [*checks.java(), *checks.jars()]
    rows += [*checks.torch(), checks.horovod(), *checks.requirements("ray"), *checks.requirements("notebook")]
    return [*_distinct(rows), checks.storage(root), *checks.disk([Path(tempfile.gettempdir()), Path.cwd()])]


def exit_code(rows: list[Check]) -> int:
    """1 when something is broken. What is missing may be left out on purpose."""
    return int(any(row.status == "broken" for row in rows))


def executor(root: str) -> list[Check]:
    """What a Spark executor needs. Java runs there already; torch, Ray and Horovod have no business there."""
    rows = [
        checks.python(),
        *checks.requirements(""),
        checks.storage(root),
        *checks.disk([Path(tempfile.gettempdir())]),
    ]
    return _at(socket.gethostname(), rows)


def worker(root: str) -> list[Check]:
    """What a training worker needs. Spark has no business there."""
    rows = [checks.python(), *checks.requirements(""), *checks.torch(), checks.horovod(), *checks.requirements("ray")]
    rows += [checks.storage(root), *checks.disk([Path(tempfile.gettempdir())])]
    return _at(socket.gethostname(), _distinct(rows))


def _at(where: str, rows: list[Check]) -> list[Check]:
    return [dataclasses.replace(row, where=where) for row in rows]


def _distinct(rows: list[Check]) -> list[Check]:
    """A distribution that several extras ask for is one row."""
    return list(dict.fromkeys(rows))


def _shipped() -> Callable[[str, str], list[tuple[Any, ...]]]:
    """A function that travels by value, so that it can also tell that mltrain is not there."""

    def look(name: str, root: str) -> list[tuple[Any, ...]]:
        try:
            from mltrain.cli import doctor as there
        except ImportError as error:
            install = "install mltrain's wheel there, or ship it: spark.archives, or Ray's runtime_env"
            return [("mltrain", "missing", str(error), install, socket.gethostname())]
        return [dataclasses.astuple(row) for row in getattr(there, name)(root)]

    return look


def _on_executors(root: str) -> list[Check]:
    from mltrain.features import session  # says what to install where pyspark is missing

    context, look = session("mltrain doctor").sparkContext, _shipped()
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    partitions = context.defaultParallelism * _PARTITIONS_PER_CORE
    try:
        answers = context.parallelize(range(partitions), partitions).map(lambda _: look("executor", root)).collect()
    except (PySparkException, Py4JError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        seen = next((line for line in lines if re.match(r"[\w.]*Error: ", line)), lines[0])
        remedy = "executors need the driver's Python version and pyspark: spark.pyspark.python, spark.archives"
        return [Check("python", "broken", seen, remedy, "executors")]
    # What several tasks saw on one host is one row, though each names its own probe.
    return list({row[:2] + row[4:]: Check(*row) for rows in answers for row in rows}.values())


def _on_nodes(root: str) -> list[Check]:
    from mltrain.config import ClusterConfig
    from mltrain.train.cluster import ray_cluster

    with ray_cluster(ClusterConfig()):
        import ray

        return [row for node in ray.nodes() if node["Alive"] for row in _on_node(node, root)]


def _on_node(node: dict[str, Any], root: str) -> list[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    look = ray.remote(num_cpus=0, max_retries=0)(_shipped()).options(scheduling_strategy=there)
    try:
        return [Check(*row) for row in ray.get(look.remote("worker", root), timeout=_WORKER_WAIT_S)]
    except ray.exceptions.RayError as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        return [Check("ray node", "broken", detail, "`ray status`", node["NodeManagerHostname"])]
