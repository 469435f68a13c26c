"""Loggers beside the run's own Parquet: they get the same numbers, on the controller's side."""

import logging
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mltrain.errors import MissingDependencyError, MltrainError, StorageError
from mltrain.results.log import run_path
from mltrain.storage import Store

logger = logging.getLogger(__name__)

_UPLOAD_S = 30.0


class MetricLogger(Protocol):
    """Gets every metric of a run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, by name."""

    def close(self) -> None:
        """Writes what is left. Nothing is logged afterwards."""


class Loggers:
    """The loggers that a config names, as one.

    Args:
        names: from the config's ``loggers``.
        store: the root's store.
        run_id: the run.
    """

    def __init__(self, names: Sequence[str], store: Store, run_id: str) -> None:
        made = {"tensorboard": TensorBoard}
        self._loggers: list[MetricLogger] = [made[name](store, run_id) for name in names]

    def __enter__(self) -> "Loggers":
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
            logger.warning("a logger is not closed: %s", second)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the metrics of a step to every logger."""
        for each in self._loggers:
            each.log(step, values)

    def close(self) -> None:
        """Closes every logger."""
        for each in self._loggers:
            each.close()


class TensorBoard:
    """TensorBoard event files below ``runs/<run-id>/logs/tensorboard/``.

    Event files only grow, which object storage cannot do: they are written in a temporary directory and uploaded whole
    every half minute and at the end. ``tensorboard --logdir <root>/runs`` shows runs by name.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise MissingDependencyError(
                f"loggers: [tensorboard] needs TensorBoard ({error}): pip install 'mltrain[torch]'"
            ) from error
        self._event: Any = Event
        self._summary: Any = Summary
        self._store = store.sub(f"{run_path(run_id)}/logs/tensorboard")
        self._directory = tempfile.TemporaryDirectory(prefix="mltrain-tensorboard-")
        self._writer = EventFileWriter(self._directory.name)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each value."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def close(self) -> None:
        """Uploads what is left."""
        self._closing.set()
        self._thread.join()
        self._writer.close()
        self._upload()
        self._directory.cleanup()

    def _run(self) -> None:
        while not self._closing.wait(_UPLOAD_S):
            try:
                self._writer.flush()
                self._upload()
            except StorageError as error:
                # Curves may wait for storage; close() raises.
                logger.warning("TensorBoard's files are not uploaded yet, trying again: %s", error)

    def _upload(self) -> None:
        for file in Path(self._directory.name).iterdir():
            self._store.upload(file.name, file)
