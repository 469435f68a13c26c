"""A run's own record: events, metrics per step and the result, below ``runs/<run-id>/``.

Events are JSON lines, metrics are Parquet in long form (one row a step and a name, so that every part has the same
columns and Spark, DuckDB and pandas read the directory as it is). Objects are numbered and never written twice:
``events/<attempt>-<number>.jsonl``, ``metrics/<attempt>-<number>.parquet``. Every opening of the log is an *attempt*
of its own, claimed by creating its first object, so a run that is resumed writes beside what it wrote before, and so
does a driver that has not yet noticed that it was replaced.
"""

import io
import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mltrain.errors import DamagedError, MltrainError, NotFoundError, RequestError, StorageError
from mltrain.storage import Store
from mltrain.storage.parsing import parse_object

logger = logging.getLogger(__name__)

METRICS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("generation", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
_SLOWEST_FLUSH_S = 60.0
LONGEST_RUN_ID = 100
# As names in configs are (`mltrain.config.strict.Name`).
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def run_path(run_id: str, kind: str = "runs") -> str:
    """Where a run (``kind="sweeps"``: a sweep) lies below the root.

    Raises:
        RequestError: the id is none.
    """
    return f"{kind}/{checked_run_id(run_id)}"


def checked_run_id(run_id: object, longest: int = LONGEST_RUN_ID) -> str:
    """``run_id``, if it can be the id of a run: part of paths, URIs and commands.

    Raises:
        RequestError: it cannot.
    """
    if isinstance(run_id, str) and len(run_id) <= longest and _RUN_ID.fullmatch(run_id):
        return run_id
    shown = repr(run_id)
    raise RequestError(
        f"run id {shown if len(shown) <= 120 else shown[:100] + '...'}: wanted letters, digits, '.', '_' and '-', "
        f"beginning with a letter or digit, at most {longest} characters"
    )


class RunLog:
    """Writes a run's record. Recording never waits for storage: a thread writes every few seconds, and ``close``.

    Args:
        store: the root's store.
        run_id: the run.
        kind: ``runs`` or ``sweeps``.
        flush_s: seconds between two writes. In a long run they become rarer, up to one a minute.
    """

    def __init__(self, store: Store, run_id: str, *, kind: str = "runs", flush_s: float = 5.0) -> None:
        self._store = store.sub(run_path(run_id, kind))
        self._flush_s = flush_s
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._events: list[dict[str, Any]] = []
        self._rows: list[tuple[int, int, int, float, dict[str, float]]] = []
        self._attempt: int | None = None
        self._numbers = {"events": 0, "metrics": 0}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except MltrainError as second:
            if error is None:
                raise
            # What failed first says more, and is likely to be why this fails too.
            logger.warning("metrics and events are not written: %s", second)

    def event(self, kind: str, /, **fields: Any) -> None:
        """Records that something happened, now. ``fields`` are plain data."""
        self._record(self._events, {"time": time.time(), "event": kind, **fields})

    def metrics(self, step: int, values: Mapping[str, float], *, epoch: int = 0, generation: int = 0) -> None:
        """Records the metrics of a step.

        Args:
            step: the step after which they were taken.
            values: by name, ``<split>/<name>``.
            epoch: the step's epoch.
            generation: the membership that computed them. A step that is repeated is recorded again; readers take the
                last attempt's, and within it the last generation's.
        """
        plain = {name: float(value) for name, value in values.items()}
        self._record(self._rows, (step, epoch, generation, time.time(), plain))

    def result(self, content: Mapping[str, Any]) -> None:
        """Writes ``result.json``, after everything that was recorded before."""
        self.flush()
        self._store.put("result.json", _json(content))

    def flush(self) -> None:
        """Writes what was recorded so far.

        Raises:
            StorageError: storage failed. What could not be written is kept and tried again.
        """
        with self._writing:
            if self._attempt is None:
                self._attempt = self._claim()
            with self._lock:
                events, rows = list(self._events), list(self._rows)
            if events:
                self._write("events", "jsonl", b"".join(_json(event) + b"\n" for event in events))
                with self._lock:
                    del self._events[: len(events)]
            if rows:
                self._write("metrics", "parquet", _parquet(rows, self._attempt))
                with self._lock:
                    del self._rows[: len(rows)]

    def close(self) -> None:
        """Writes the rest and ends the thread; a log that is closed records no more.

        Raises:
            StorageError: storage failed.
        """
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        if self._attempt is not None or self._events or self._rows:
            self.flush()

    def _record(self, pending: list[Any], record: Any) -> None:
        with self._lock:
            if self._closing.is_set():
                raise ValueError(f"the log of {self._store.uri} is closed")
            pending.append(record)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="run-log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._closing.wait(min(_SLOWEST_FLUSH_S, self._flush_s + (time.monotonic() - started) / 50)):
            try:
                self.flush()
            except StorageError as error:
                # Metrics may wait for storage; a run that cannot write at its end fails in close().
                logger.warning("metrics and events are not written yet, trying again: %s", error)

    def _claim(self) -> int:
        taken = (_attempt(meta.path) for prefix in ("events", "metrics") for meta in self._store.list(prefix))
        attempt = max(taken, default=0) + 1
        # The writer's name makes the object unlike any other's, so exactly one opening claims a number.
        first = _json({"time": time.time(), "event": "log opened", "writer": uuid.uuid4().hex}) + b"\n"
        while not self._store.put_if_absent(_object("events", attempt, 0, "jsonl"), first):
            attempt += 1
        self._numbers["events"] = 1
        return attempt

    def _write(self, kind: str, suffix: str, content: bytes) -> None:
        assert self._attempt is not None
        self._store.put(_object(kind, self._attempt, self._numbers[kind], suffix), content)
        self._numbers[kind] += 1


def read_events(store: Store, run_id: str, *, kind: str = "runs") -> list[dict[str, Any]]:
    """The events of a run, oldest first; each has ``time`` (Unix seconds), ``event`` and ``attempt``.

    Raises:
        DamagedError: an object does not hold JSON lines.
    """
    run = store.sub(run_path(run_id, kind))
    events = []
    for meta in run.list("events"):
        try:
            lines = [parse_object(line) for line in run.get(meta.path).splitlines()]
        except ValueError as error:
            raise DamagedError(f"{run.join(meta.path)} does not hold JSON lines: {error}") from error
        events += [{**line, "attempt": _attempt(meta.path)} for line in lines]
    return events


def read_metrics(store: Store, run_id: str) -> pa.Table:
    """The metrics of a run: a row a step with ``step``, ``epoch``, ``time`` and a column a metric, or null.

    Raises:
        DamagedError: a part is not Parquet.
    """
    run = store.sub(run_path(run_id))
    parts = [_read_part(run, meta.path) for meta in run.list("metrics")]
    return wide(latest(pa.concat_tables([METRICS_SCHEMA.empty_table(), *parts])))


def read_result(store: Store, run_id: str, *, kind: str = "runs") -> dict[str, Any]:
    """What ``result.json`` holds.

    Raises:
        NotFoundError: there is none: no such run, or it has not ended.
        DamagedError: it is not JSON.
    """
    run = store.sub(run_path(run_id, kind))
    try:
        return parse_object(run.get("result.json"))
    except ValueError as error:
        raise DamagedError(f"{run.join('result.json')} is not JSON: {error}") from error
    except NotFoundError as error:
        raise NotFoundError(
            f"{run.uri} has no result: no such run, or it has not ended. `mltrain runs list` names the runs"
        ) from error


def latest(table: pa.Table) -> pa.Table:
    """Drops what was computed again: of each step and name the last attempt's and generation's row stays.

    A later generation starts from a state in which nothing after its first step had happened, so it replaces all rows
    of earlier ones that come after that step, also those that it did not reach itself.
    """
    if table.num_rows == 0:
        return table
    order = pc.sort_indices(table, [(name, "ascending") for name in ("attempt", "generation", "time")])
    table = table.take(order)
    columns = (table[name].to_pylist() for name in ("attempt", "generation", "step", "name"))
    kept: dict[tuple[int, str], int] = {}
    current: tuple[int, int] | None = None
    for row, (attempt, generation, step, name) in enumerate(zip(*columns, strict=True)):
        if (attempt, generation) != current:
            current = (attempt, generation)
            kept = {key: index for key, index in kept.items() if key[0] <= step}
        kept[step, name] = row
    return table.take(pa.array(sorted(kept.values()), pa.int64()))


def wide(table: pa.Table) -> pa.Table:
    """From a row a step and name to a row a step, in the order of steps, with the names as sorted columns."""
    table = table.take(pc.sort_indices(table, [("step", "ascending"), ("time", "ascending")]))
    steps, first, row = np.unique(table["step"].to_numpy(), return_index=True, return_inverse=True)
    fixed = {name: table[name].take(pa.array(first)).combine_chunks() for name in ("epoch", "time")}
    names, values = table["name"].to_numpy(zero_copy_only=False), table["value"].to_numpy()
    columns = {"step": pa.array(steps, pa.int64()), **fixed}
    for name in sorted(set(names)):
        mine = names == name
        column, missing = np.zeros(len(steps)), np.ones(len(steps), dtype=bool)
        column[row[mine]] = values[mine]
        missing[row[mine]] = False
        columns[name] = pa.array(column, mask=missing)
    return pa.table(columns)


def _read_part(run: Store, path: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(run.get(path)), schema=METRICS_SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"{run.join(path)} is not a part of a run's metrics: {error}") from error


def _parquet(rows: Sequence[tuple[int, int, int, float, dict[str, float]]], attempt: int) -> bytes:
    long = [
        (step, epoch, attempt, generation, int(at * 1e6), name, value)
        for step, epoch, generation, at, values in rows
        for name, value in values.items()
    ]
    table = pa.table([list(column) for column in zip(*long, strict=True)] or [[]] * 7, schema=METRICS_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _object(kind: str, attempt: int, number: int, suffix: str) -> str:
    return f"{kind}/{attempt:04d}-{number:06d}.{suffix}"


def _attempt(path: str) -> int:
    return int(path.rsplit("/", 1)[-1].split("-", 1)[0])


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(content), default=str, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value
