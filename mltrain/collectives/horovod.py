"""Collectives by Horovod (patched, see cluster/horovod): Gloo on CPUs, NCCL on GPUs, new in every generation."""

import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mltrain.collectives.interface import Handle, Membership
from mltrain.collectives.local import LocalCollectives
from mltrain.collectives.packing import pack, unpack
from mltrain.collectives.rendezvous import HOROVOD_BUILD
from mltrain.collectives.waiting import OPERATION_DEADLINE_S, Waiting, wait_until
from mltrain.errors import CollectiveAborted, MissingDependencyError

# A clean shutdown agrees with the peers; one that takes longer than this is aborted.
_SHUTDOWN_S = 2.0


class HorovodCollectives:
    """Horovod re-initialised in this process for every generation.

    Waits poll with an abort flag and a deadline, because ``hvd.synchronize`` waits for ever. A generation of one rank
    does without Horovod. One thread uses the collectives; `abort` may come from any other.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        MissingDependencyError: Horovod is not installed, or it is not the patched build.
    """

    def __init__(self, *, device: str = "cpu") -> None:
        self._hvd = _import_horovod()
        self.waiting = Waiting()
        self._device = device
        self._membership = Membership()
        self._aborted = threading.Event()
        self._alone: LocalCollectives | None = None
        self._initialised = False

    @property
    def rank(self) -> int:
        return self._membership.rank

    @property
    def size(self) -> int:
        return self._membership.size

    def join(self, membership: Membership, deadline_s: float) -> None:
        self._membership = membership
        self._check()
        if membership.size == 1:
            self._alone = LocalCollectives()
            return
        self._alone = None
        self._initialised = True
        os.environ.update(_environment(membership, self._device, deadline_s))
        with self.waiting:
            failure = self._guarded(self._hvd.init, deadline_s + 1.0)
        if failure is not None or self._aborted.is_set():
            raise CollectiveAborted(
                f"rank {membership.rank} could not join generation {membership.generation}: {failure}"
            )

    def leave(self) -> None:
        if self._initialised:
            # After a failure an agreed shutdown would wait for ranks that wait for us.
            failure = self._guarded(self._hvd.shutdown, _SHUTDOWN_S)
            if failure is not None:
                raise CollectiveAborted(f"could not leave generation {self._membership.generation}: {failure}")
        self._initialised = False
        self._alone = None
        self._aborted.clear()

    def abort(self) -> None:
        self._aborted.set()
        if self._initialised:
            self._hvd.abort()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Handle:
        self._check()
        if self._alone is not None:
            return self._alone.allreduce_sum(tensor, name)
        return self._start(lambda: self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum))

    def broadcast(self, tensors: Sequence[Tensor], root: int) -> None:
        self._check()
        if self._alone is not None or not tensors:
            return
        for number, (flat, members) in enumerate(pack(tensors)):
            self._start(functools.partial(self._hvd.broadcast_async_, flat, root, name=f"broadcast.{number}")).wait()
            if self.rank != root:
                unpack(flat, members)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._check()
        if self._alone is not None:
            return [tensor]
        rows = torch.tensor([tensor.shape[0]], dtype=torch.int64)
        counts: list[int] = self._allgather(rows, "gather.rows").tolist()
        if sum(counts) == 0:
            return [tensor.new_empty((0, *tensor.shape[1:])) for _ in counts]
        return list(torch.split(self._allgather(tensor.contiguous(), "gather.values"), counts))

    def _allgather(self, tensor: Tensor, name: str) -> Tensor:
        handle = self._start(lambda: self._hvd.allgather_async(tensor, name=name))
        handle.wait()
        result = handle.result
        assert isinstance(result, Tensor)
        return result

    def _start(self, operation: Callable[[], int]) -> "_HorovodHandle":
        try:
            return _HorovodHandle(self._hvd, operation(), self._aborted, self.waiting)
        except (RuntimeError, ValueError) as error:
            # Horovod refuses operations once its background loop has ended, which a lost peer makes it do.
            if not self._aborted.is_set() and isinstance(error, ValueError):
                raise
            raise CollectiveAborted(str(error)) from error

    def _check(self) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted(f"generation {self._membership.generation} was aborted")

    def _guarded(self, call: Callable[[], None], deadline_s: float) -> BaseException | None:
        """Runs a blocking call in a thread; once aborted or overdue, aborts Horovod until it has ended."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except Exception as error:  # handed to the caller, in the calling thread
                failures.append(error)

        thread = threading.Thread(target=run, name="horovod", daemon=True)
        thread.start()
        deadline = time.monotonic() + deadline_s
        # Polled finely at first: forming a small generation takes milliseconds.
        pause_s = 0.001
        while thread.is_alive():
            thread.join(pause_s)
            pause_s = min(0.01, pause_s * 1.5)
            late = time.monotonic() - deadline
            if self._aborted.is_set() or late > 0:
                self._hvd.abort()
            if late > OPERATION_DEADLINE_S:
                return TimeoutError(
                    f"horovod did not end within {deadline_s + OPERATION_DEADLINE_S:.0f} s of being aborted"
                )
        return failures[0] if failures else None


class _HorovodHandle:
    def __init__(self, hvd: Any, handle: int, aborted: threading.Event, waiting: Waiting) -> None:
        self._hvd = hvd
        self._handle = handle
        self._aborted = aborted
        self._waiting = waiting
        self.result: object = None

    def wait(self) -> None:
        wait_until(lambda: bool(self._hvd.poll(self._handle)), self._aborted, self._waiting)
        try:
            self.result = self._hvd.synchronize(self._handle)
        except Exception as error:
            # HorovodInternalError cannot be named without importing Horovod; whatever is raised ends the generation.
            raise CollectiveAborted(f"a peer was lost: {error}") from error


def _import_horovod() -> Any:
    try:
        import horovod
        import horovod.torch as hvd
    except ImportError as error:
        raise MissingDependencyError(
            f"Horovod is not installed ({error}). Training on workers needs mltrain's patched build: run `make setup` "
            "in mltrain's repository, or set train.workers=0 to train in this process."
        ) from error
    if horovod.__version__ != HOROVOD_BUILD:
        raise MissingDependencyError(
            f"Horovod {horovod.__version__} is installed, and workers need mltrain's build {HOROVOD_BUILD}: run `make "
            "setup` in mltrain's repository, then `mltrain doctor`."
        )
    return hvd


def _environment(membership: Membership, device: str, deadline_s: float) -> dict[str, str]:
    """Horovod reads these again at every ``init`` (but not with HOROVOD_ELASTIC=1)."""
    host, port = membership.rendezvous.rsplit(":", 1)
    environment = {
        "HOROVOD_RANK": str(membership.rank),
        "HOROVOD_SIZE": str(membership.size),
        "HOROVOD_LOCAL_RANK": str(membership.local_rank),
        "HOROVOD_LOCAL_SIZE": str(membership.local_size),
        "HOROVOD_CROSS_RANK": str(membership.cross_rank),
        "HOROVOD_CROSS_SIZE": str(membership.cross_size),
        "HOROVOD_HOSTNAME": membership.host,
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": host,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(max(1, round(deadline_s))),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        # What is summed together decides in which order the ranks' numbers are added: left to the moment, no two runs
        # would agree to the last bit. Gradients come in buckets anyway.
        "HOROVOD_FUSION_THRESHOLD": "0",
        "HOROVOD_LOG_LEVEL": os.environ.get("HOROVOD_LOG_LEVEL", "fatal"),
    }
    if membership.interface is not None:
        environment["HOROVOD_GLOO_IFACE"] = membership.interface
    if device != "cpu":
        environment["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    return environment
