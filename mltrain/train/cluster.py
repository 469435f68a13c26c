"""Ray for a run: one that is there, or one of its own that ends with it."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mltrain.errors import MissingDependencyError, RequestError
from mltrain.progress import Progress
from mltrain.train.control import Outcome
from mltrain.train.signals import StopRequest

if TYPE_CHECKING:
    from mltrain.config import ClusterConfig
    from mltrain.train.lease import Lease
    from mltrain.train.placement import WorkerSource
    from mltrain.train.record import RunRecord
    from mltrain.train.spec import Spec

_LOG = logging.getLogger(__name__)


def train(
    spec: "Spec",
    record: "RunRecord",
    stop: StopRequest,
    source: "WorkerSource | None",
    run_id: str,
    lease: "Lease",
) -> Outcome:
    """Trains on Ray workers to the end or to a stop."""
    with ray_cluster(spec.config.cluster, record.say):
        from mltrain.train.controller import Controller
        from mltrain.train.placement import PlacementGroups

        slots = source or PlacementGroups(run_id, spec.config.train.workers)
        controller = Controller(spec, record, slots, stop, run_id, lease)
        return controller.run()


@contextlib.contextmanager
def ray_cluster(config: "ClusterConfig", say: Progress = _LOG.info) -> Iterator[None]:
    """Connects to Ray, or starts it; whatever was started here is stopped here.

    ``auto`` is RAY_ADDRESS (which may be ``local``), else a running cluster, else one of this process's own; ``local``
    always the last. ``say`` is told which it is.

    Raises:
        MissingDependencyError: Ray is not installed.
        RequestError: there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"train.workers needs Ray ({error}): pip install 'mltrain[ray]', or set train.workers=0 to train in "
            "this process"
        ) from error
    if ray.is_initialized():
        yield
        return
    with _signals_kept():
        _connect(ray, config, say)
    with _printing_to_log(ray):
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """``ray.init`` takes SIGTERM for itself, which would end the driver without a checkpoint."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _printing_to_log(ray: Any) -> Iterator[None]:
    """Ray's own messages, such as that a worker was killed, go to the log.

    ``log_to_driver=False`` leaves them out, and Ray prints them to stdout, where results go. There is no public way to
    have them elsewhere. What they say of a lost worker is in the run's events.
    """

    def log(data: dict[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            _LOG.info("Ray: %s", line)

    worker = ray._private.worker
    before, worker.print_to_stdstream = worker.print_to_stdstream, log
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _connect(ray: Any, config: "ClusterConfig", say: Progress) -> None:
    address = config.address
    if address == "auto" and os.environ.get("RAY_ADDRESS") == "local":
        address = "local"
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    runtime_env = dict(config.runtime_env) or None
    try:
        if address == "auto":
            try:
                ray.init(address="auto", runtime_env=runtime_env, **quiet)
                say(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}")
                return
            except ConnectionError:
                _LOG.info("no Ray cluster is running")
        if address in ("auto", "local"):
            say("starting Ray on this machine")
            ray.init(address="local", include_dashboard=False, runtime_env=runtime_env, **quiet)
        else:
            ray.init(address=address, runtime_env=runtime_env, **quiet)
            say(f"joined the Ray cluster at {address}")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"cluster.address is {address!r}, but Ray cannot be reached there: {error}. Start it "
            "(`ray start --head`), or use cluster.address=local."
        ) from error
