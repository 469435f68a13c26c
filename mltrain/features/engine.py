"""The Spark session of a dataset build: the submitter's where there is one, otherwise a local one."""

import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from mltrain import errors
from mltrain.errors import BuildError, MissingDependencyError, RequestError, TableError
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
_ROWS_PER_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"
_BYTES_PER_BATCH = "spark.sql.execution.arrow.maxBytesPerBatch"
_ANY_NUMBER_OF_BYTES = 2**31 - 1
_OPENING_COUNTS_AS = "spark.sql.files.openCostInBytes"
_OPENING_BYTES = 1 << 18
_ARROW_ROWS_PER_BATCH, _FEWEST_ROWS_PER_BATCH = 32768, 256
_VALUES_PER_BATCH, _VALUES_OF_ANY_LENGTH = 1 << 23, 128
_KEPT_LOGS = 20
_ANY_BUCKET = "s3://any"
# The last line of a Python traceback: what was raised, by its full name.
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)): (.*)$", re.MULTILINE)
# What the JVM says of an exception's cause, and of the file that a scan was reading.
_CAUSE = re.compile(r"^Caused by: (?:[\w$]+\.)*(.*)$", re.MULTILINE)
_READING = re.compile(r"Encountered error while reading file (.+?)\.(?: SQLSTATE| File does not| *$)", re.MULTILINE)
_GONE = "FAILED_READ_FILE.FILE_NOT_EXIST"


def session(app_name: str) -> SparkSession:
    """The active session if there is one, the submitter's under ``spark-submit``, otherwise one on this machine.

    A session that starts here is local unless ``spark-defaults.conf`` or ``PYSPARK_SUBMIT_ARGS`` name a master, reads
    Delta tables and object storage, and writes what the engine says into :func:`log_path` instead of the terminal.

    Raises:
        MissingDependencyError: no Java, or the jars cannot be fetched.
        RequestError: a session or JVM that already runs lacks the Delta jars.
    """
    active, running = SparkSession.getActiveSession(), SparkContext._active_spark_context is not None
    if active is None:
        context = SparkContext._active_spark_context or _start(app_name)
        builder = SparkSession.builder
        for key, value in packages.CONF.items():
            builder = builder.config(key, value)
        active = builder.getOrCreate()
        if (context.master or "").startswith("local"):
            _fit_to_one_machine(active)
    try:
        _require_delta(active)
    except RequestError:
        if not running:
            active.stop()
        raise
    return active


def log_path() -> Path:
    """Where the engine that this process starts writes its log."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mltrain" / "logs" / f"spark-{os.getpid()}.log"


def _where_the_log_is() -> str:
    path = log_path()
    return f"the engine's log: {path}" if path.exists() else "the engine's log is where its submitter put it"


def _fit_to_one_machine(active: SparkSession) -> None:
    """Few partitions where few cores work on them, unless the submitter said how many."""
    cores = active.sparkContext.defaultParallelism
    wanted = {"spark.databricks.delta.snapshotPartitions": cores, "spark.sql.shuffle.partitions": max(8, 4 * cores)}
    given = active.sparkContext.getConf()
    for key, value in wanted.items():
        if not given.contains(key):
            active.conf.set(key, str(value))


@contextmanager
def arrow_batches(active: SparkSession, schema: pa.Schema, sizes: Mapping[str, int]) -> Iterator[None]:
    """Sizes the Arrow batches of tasks by rows, while it lasts.

    Spark's limit in bytes looks at every column's buffers again for every row: half of what handing a row over costs.
    Where all columns have values of a known size, the limit in rows keeps batches to tens of megabytes without it.

    Args:
        active: the session.
        schema: the columns that tasks receive, or more.
        sizes: of lists whose length is known.
    """
    with rows_per_batch_at_most(active, rows_per_batch(schema, sizes)), ExitStack() as settings:
        if all(field.name in sizes or _is_fixed(field.type) for field in schema):
            settings.enter_context(_set(active, _BYTES_PER_BATCH, _ANY_NUMBER_OF_BYTES))
        yield


@contextmanager
def few_scan_tasks(active: SparkSession) -> Iterator[None]:
    """Lets a task read many small files, while it lasts, unless the submitter said how many.

    Spark counts opening a file as reading 4 MB, so 32 small files are a task. A task costs more than they do: a Python
    worker, and partial results as long as those of a large one.
    """
    if active.sparkContext.getConf().contains(_OPENING_COUNTS_AS):
        yield
        return
    with _set(active, _OPENING_COUNTS_AS, _OPENING_BYTES):
        yield


@contextmanager
def rows_per_batch_at_most(active: SparkSession, rows: int) -> Iterator[None]:
    """Lowers the number of rows that Arrow batches of tasks have, while it lasts. A lower one stays."""
    given = int(active.conf.get(_ROWS_PER_BATCH) or 0)
    with _set(active, _ROWS_PER_BATCH, given if 0 < given < rows else rows):
        yield


@contextmanager
def _set(active: SparkSession, key: str, value: int) -> Iterator[None]:
    before = active.conf.get(key)
    active.conf.set(key, str(value))
    try:
        yield
    finally:
        active.conf.set(key, str(before))


def rows_per_batch(schema: pa.Schema, sizes: Mapping[str, int]) -> int:
    """How many rows of a schema are about as long as a batch should be."""
    values = sum(sizes.get(field.name) or _values(field.type) for field in schema)
    return max(_FEWEST_ROWS_PER_BATCH, min(_ARROW_ROWS_PER_BATCH, _VALUES_PER_BATCH // max(1, values)))


def _values(kind: pa.DataType) -> int:
    """About how many numbers a value is as long as."""
    return 1 if _is_fixed(kind) else _VALUES_OF_ANY_LENGTH


def _is_fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind))


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turns an engine's failure into ours: what a task raised, or the engine's first line.

    Raises:
        MltrainError: what a task raised, as its own class.
        TableError: a file of the table is gone.
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
        causes, reading = _CAUSE.findall(str(error)), _READING.findall(str(error))
        if reading and _GONE in str(error):
            raise TableError(
                f"{reading[0]} is gone, though the log of this version of the table lists it: a VACUUM may have taken "
                "it. Choose a version that has its files still (dataset.version, dataset.timestamp), or the latest one"
            ) from error
        what = ": ".join(raised[-1]) if raised else causes[-1] if causes else str(error).strip().split("\n")[0]
        if reading and reading[0] not in what:
            what = f"{what}, reading {reading[0]}"
        raise BuildError(f"Spark failed: {what} ({_where_the_log_is()})") from error


def _start(app_name: str) -> SparkContext:
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    # A JVM that runs without a context, as after an earlier build, knows its own defaults: the master, and its jars.
    # One that is launched is handed nothing but what is set here.
    conf = SparkConf(loadDefaults=SparkContext._jvm is not None)
    settings = {"spark.app.name": app_name, **packages.CONF}
    if not submitted:
        settings |= {
            **_QUIET,
            "spark.jars.packages": packages.packages(),
            "spark.jars.excludes": packages.excludes(),
            _ROWS_PER_BATCH: str(_ARROW_ROWS_PER_BATCH),
            # Packed rows hardly shrink, and packing and unpacking them takes longer than writing and reading more.
            "spark.shuffle.compress": "false",
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
    _forget_old_logs(path.parent)
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


def _forget_old_logs(directory: Path) -> None:
    """Leaves room for one more: the newest are kept. A process that still writes to one that goes is not disturbed."""
    aged = []
    for path in directory.glob("spark-*.log"):
        with suppress(FileNotFoundError):  # another process is at it, too
            aged.append((path.stat().st_mtime, path))
    for _, path in sorted(aged, reverse=True)[_KEPT_LOGS - 1 :]:
        path.unlink(missing_ok=True)


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
