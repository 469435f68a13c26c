"""The Spark session of a dataset build: the submitter's where there is one, otherwise a local one."""

import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mltrain import errors
from mltrain.errors import BuildError, MissingDependencyError, RequestError
from mltrain.features import packages

try:
    from py4j.protocol import Py4JError
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException, PySparkRuntimeError
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession
except ImportError as error:
    raise MissingDependencyError(
        f"building datasets needs Spark ({error}): pip install 'mltrain[spark]', and a JDK 17"
    ) from error

from mltrain.storage import spark_options

_QUIET = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "WARN"}
_ARROW_ROWS_PER_BATCH = 32768
_ANY_BUCKET = "s3://any"
# The last line of a Python traceback: what was raised, by its full name.
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)): (.*)$", re.MULTILINE)


def session(app_name: str) -> SparkSession:
    """The active session if there is one, the submitter's under ``spark-submit``, otherwise one on this machine.

    A session that starts here is local unless ``spark-defaults.conf`` or ``PYSPARK_SUBMIT_ARGS`` name a master, reads
    Delta tables and object storage, and writes what the engine says into :func:`log_path` instead of the terminal.

    Raises:
        MissingDependencyError: no Java, or the jars cannot be fetched.
        RequestError: a session or JVM that already runs lacks the Delta jars.
    """
    active = SparkSession.getActiveSession()
    if active is None:
        context = SparkContext._active_spark_context or _start(app_name)
        builder = SparkSession.builder
        for key, value in packages.CONF.items():
            builder = builder.config(key, value)
        active = builder.getOrCreate()
        if (context.master or "").startswith("local"):
            _fit_to_one_machine(active)
    _require_delta(active)
    return active


def log_path() -> Path:
    """Where the engine that this process starts writes its log."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mltrain" / "logs" / f"spark-{os.getpid()}.log"


def _fit_to_one_machine(active: SparkSession) -> None:
    """Few partitions where few cores work on them, unless the submitter said how many."""
    cores = active.sparkContext.defaultParallelism
    wanted = {"spark.databricks.delta.snapshotPartitions": cores, "spark.sql.shuffle.partitions": max(8, 4 * cores)}
    given = active.sparkContext.getConf()
    for key, value in wanted.items():
        if not given.contains(key):
            active.conf.set(key, str(value))


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turns an engine's failure into ours: what a task raised, or the engine's first line.

    Raises:
        MltrainError: what a task raised, as its own class.
        BuildError: anything else that the engine could not do.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        raised = _RAISED.findall(str(error))
        for name, message in reversed(raised):
            kind = getattr(errors, name.removeprefix("mltrain.errors."), None)
            if name.startswith("mltrain.errors.") and kind is not None:
                raise kind(message) from error
        what = ": ".join(raised[-1]) if raised else str(error).strip().split("\n")[0]
        raise BuildError(f"Spark failed: {what} (the engine's log: {log_path()})") from error


def _start(app_name: str) -> SparkContext:
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    conf = SparkConf(loadDefaults=False)
    settings = {"spark.app.name": app_name, **packages.CONF}
    if not submitted:
        settings |= {
            **_QUIET,
            "spark.jars.packages": packages.packages(),
            "spark.jars.excludes": packages.excludes(),
            "spark.sql.execution.arrow.maxRecordsPerBatch": str(_ARROW_ROWS_PER_BATCH),
        }
    conf.setAll(list(settings.items()))
    gateway = None if submitted or SparkContext._gateway else _launch(conf)
    # Not before: settings that the JVM is launched with are on its command line, for every user to see.
    conf.setAll(list(spark_options(_ANY_BUCKET).items()))
    context = SparkContext(conf=conf, gateway=gateway)
    if (context.master or "").startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        # Spark would start the `python3` on PATH, which need not be the one that has mltrain.
        context.pythonExec = sys.executable
    return context


def _launch(conf: SparkConf) -> Any:
    if not shutil.which("java") and not os.environ.get("JAVA_HOME"):
        raise MissingDependencyError("Spark needs Java: install a JDK 17 (Debian: openjdk-17-jre-headless)")
    path = log_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with path.open("ab") as log:
        try:
            return launch_gateway(conf, popen_kwargs={"stdout": log, "stderr": log})  # type: ignore[no-untyped-call]
        except PySparkRuntimeError as error:
            with path.open(errors="replace") as lines:
                last = _last_lines(lines)
            raise MissingDependencyError(
                f"Spark did not start ({time.monotonic() - started:.0f} s): {last}\n"
                f"The log is {path}. Jars come from Maven Central once and are then kept in ~/.ivy2.5.2; "
                "`mltrain doctor` checks Java and the jars."
            ) from error


def _last_lines(lines: IO[str]) -> str:
    return "\n".join(deque((line.rstrip() for line in lines if line.strip()), maxlen=5))


def _require_delta(active: SparkSession) -> None:
    loader = active.sparkContext._jvm.java.lang.Thread.currentThread().getContextClassLoader()  # type: ignore[union-attr]
    try:
        loader.loadClass(packages.EXTENSION)
    except Exception as error:
        raise RequestError(
            "this Spark has no Delta Lake, and jars cannot be added to a running JVM. "
            f"Start it with the flags\n  {packages.submit_flags()}"
        ) from error
    extensions = active.conf.get("spark.sql.extensions", "") or ""
    if packages.EXTENSION not in extensions:
        raise RequestError(
            "this Spark session has the Delta jars but was started without Delta's settings. Start it with\n  "
            + " ".join(f"--conf {key}={value}" for key, value in packages.CONF.items())
        )
