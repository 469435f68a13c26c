"""Ray for a run: one that is there, or one of its own that ends with it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mltrain.errors import MissingDependencyError, RequestError, TrainingError
from mltrain.progress import Progress
from mltrain.train.control import Ending, Outcome
from mltrain.train.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from mltrain.config import ClusterConfig, Market, Workers
    from mltrain.train.lease import Lease
    from mltrain.train.placement import WorkerSource
    from mltrain.train.record import RunRecord
    from mltrain.train.spec import Spec

_LOG = logging.getLogger(__name__)

# Attempts to start Ray here: on a machine that is busy, Ray's own deadline may be too short for the first.
_STARTS = 2


def train(
    spec: "Spec",
    record: "RunRecord",
    stop: StopRequest,
    source: "WorkerSource | None",
    run_id: str,
    lease: "Lease",
) -> Outcome:
    """Trains on Ray workers to the end or to a stop."""
    try:
        with ray_cluster(spec.config.cluster, record.say, stop) as alone:
            from mltrain.train.controller import Controller
            from mltrain.train.placement import PlacementGroups

            workers = spec.config.train.workers
            market = spec.config.cluster.market
            if alone and (refusal := _too_small(workers, market)) is not None:
                return Outcome(Ending.FAILED, -1, refusal)
            slots = source or PlacementGroups(run_id, workers, market)
            return Controller(spec, record, slots, stop, run_id, lease).run()
    except Interrupted:
        return Outcome(Ending.STOPPED, record.recorded, reason=stop.reason)


@contextlib.contextmanager
def ray_cluster(config: "ClusterConfig", say: Progress = _LOG.info, stop: StopRequest | None = None) -> Iterator[bool]:
    """Connects to Ray, or starts it; whatever was started here is stopped here.

    ``auto`` is RAY_ADDRESS (which may be ``local``), else a running cluster, else one of this process's own; ``local``
    always the last. ``say`` is told which it is. ``stop`` ends the attempts.

    Yields:
        Whether it was started here: what there is not now never joins it.

    Raises:
        Interrupted: a stop was requested before Ray was there.
        MissingDependencyError: Ray is not installed.
        RequestError: there is no cluster at the address, it runs other versions of Ray or Python, or one of this
            process's own would lack the nodes that ``config`` wants.
        RayFailedError: Ray did not start, or what is done with it failed for a reason of Ray's.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"train.workers needs Ray ({error}): pip install 'mltrain[ray]', or set train.workers=0 to train in "
            "this process"
        ) from error
    if ray.is_initialized():
        with _failures(ray):
            yield False
        return
    alone = _connect(ray, config, say, stop or StopRequest())
    with _printing_to_log(ray):
        try:
            with _failures(ray):
                yield alone
        finally:
            ray.shutdown()


def _too_small(workers: "Workers", market: "Market") -> RequestError | None:
    from mltrain.train.placement import resources, room

    there = room(workers, market)
    if there >= workers.min:
        return None
    each = " and ".join(f"{much:g} {name}" for name, much in resources(workers).items())
    return RequestError(
        f"train.workers wants at least {workers.min} of {each} each, and Ray on this machine has room for {there}; no "
        "node ever joins a Ray of the run's own. Use fewer or smaller workers, or join a larger cluster "
        "(cluster.address)."
    )


class RayFailedError(TrainingError):
    """Ray did not start, or its cluster failed. What was stored before is as good as ever."""


@contextlib.contextmanager
def _failures(ray: Any) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:
        raise RayFailedError(f"the Ray cluster failed: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _signals_kept(ray: Any) -> Iterator[None]:
    """``ray.init`` takes SIGTERM for itself, twice: that would end the driver without a checkpoint.

    In Python, to exit; then below Python, to print a stack. The first is kept from it, the second is undone.
    """
    before, utils = signal.getsignal(signal.SIGTERM), ray._private.utils
    take, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = take
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _out_of_our_group(ray: Any) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """The processes that Ray starts here, which lead sessions of their own.

    A signal for this process often goes to its whole group: Ctrl-C, timeout(1), ``kill -- -PGID``. In the group Ray
    would die of it, and with it the workers that are to make a checkpoint. There is no public way to have it elsewhere.
    They end with this process all the same, however it ends: Ray has the kernel see to that, on Linux.
    """
    services = ray._private.services
    popen, processes = services.ConsolePopen, []

    def start(*args: Any, **options: Any) -> Any:
        processes.append(popen(*args, start_new_session=sys.platform == "linux", **options))
        return processes[-1]

    services.ConsolePopen = start
    try:
        yield processes
    finally:
        services.ConsolePopen = popen


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


def _connect(ray: Any, config: "ClusterConfig", say: Progress, stop: StopRequest) -> bool:
    address = config.address
    if address == "auto" and os.environ.get("RAY_ADDRESS") == "local":
        address = "local"
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": True,
        "runtime_env": dict(config.runtime_env) or None,
    }
    with _signals_kept(ray), _out_of_our_group(ray) as processes:
        try:
            with stop.interrupting():
                alone = address == "local" or not _joined(ray, address, options, say)
                if alone:
                    _refuse_market(config)
                    _start(ray, options, say, stop, processes)
                return alone
        except Interrupted:
            _end(ray, processes)
            raise


def _joined(ray: Any, address: str, options: dict[str, Any], say: Progress) -> bool:
    """Joins the cluster at ``address``. False: that is ``auto``, and none is running."""
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        if address == "auto":
            _LOG.info("no Ray cluster is running")
            return False
        raise _unreachable(address, error) from error
    except (ValueError, RuntimeError) as error:
        raise _unreachable(address, error) from error
    say(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}")
    return True


def _refuse_market(config: "ClusterConfig") -> None:
    market = config.market
    if market.workers != "any":
        raise RequestError(
            f"cluster.market is {market.workers}, and a Ray that the run starts on this machine has no nodes with the "
            f"label {market.label}. Set cluster.market=any to use it all the same, or join a cluster whose nodes have "
            "that label (cluster.address)."
        )


def _unreachable(address: str, error: Exception) -> RequestError:
    if "Version mismatch" in str(error):
        return RequestError(
            f"cluster.address is {address!r}, but that cluster runs other versions than this process. "
            f"{_one_line(error)}. Use the same Ray and Python here and there, or cluster.address=local."
        )
    return RequestError(
        f"cluster.address is {address!r}, but Ray cannot be reached there: {error}. Start it (`ray start --head`), or "
        "use cluster.address=local."
    )


def _start(
    ray: Any, options: dict[str, Any], say: Progress, stop: StopRequest, processes: list["subprocess.Popen[bytes]"]
) -> None:
    say("starting Ray on this machine")
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except (ValueError, TypeError) as error:
            raise RequestError(f"Ray cannot be started with this cluster config: {error}") from error
        except Exception as error:  # a bare one is what Ray raises when its node is not there in time
            _end(ray, processes)
            stop.check()
            if attempt == _STARTS:
                raise RayFailedError(
                    f"Ray did not start on this machine in {_STARTS} attempts: {_one_line(error)} "
                    "The machine may be short of memory or processor time."
                ) from error
            say("Ray did not start, trying again")


def _end(ray: Any, processes: list["subprocess.Popen[bytes]"]) -> None:
    """Ends Ray. Of a start that failed halfway it knows nothing, and leaves its processes."""
    ray.shutdown()
    for process in processes:
        process.kill()
        process.wait()
    processes.clear()
