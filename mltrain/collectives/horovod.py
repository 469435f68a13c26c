"""Collectives by Horovod (patched, see cluster/horovod): Gloo on CPUs, NCCL on GPUs, new in every generation."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mltrain.collectives.distributed import DistributedCollectives, Operation
from mltrain.collectives.interface import Membership
from mltrain.collectives.rendezvous import HOROVOD_BUILD
from mltrain.collectives.waiting import OPERATION_DEADLINE_S, InThread
from mltrain.errors import CollectiveAborted, MissingDependencyError

# A clean shutdown agrees with the peers; one that takes longer than this is aborted.
_SHUTDOWN_S = 2.0


class HorovodCollectives(DistributedCollectives):
    """Horovod re-initialised in this process for every generation.

    ``hvd.synchronize`` would wait for ever: it is called when ``hvd.poll`` says that it will not.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        MissingDependencyError: Horovod is not installed, or it is not the patched build.
    """

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self._hvd = _import_horovod()
        self._initialised = False

    def leave(self) -> None:
        if self._initialised:
            # After a failure an agreed shutdown would wait for ranks that wait for us.
            failure = self._guarded(self._hvd.shutdown, _SHUTDOWN_S)
            if failure is not None:
                raise CollectiveAborted(f"could not leave generation {self._membership.generation}: {failure}")
        self._initialised = False

    def _form(self, membership: Membership, deadline_s: float) -> Exception | None:
        self._initialised = True
        os.environ.update(_environment(membership, self._device, deadline_s))
        with self.waiting:
            return self._guarded(self._hvd.init, deadline_s + 1.0)

    def _cut(self) -> None:
        if self._initialised:
            self._hvd.abort()

    def _allreduce(self, tensor: Tensor, name: str) -> Operation:
        return self._operation(self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum))

    def _broadcast(self, flat: Tensor, root: int, name: str) -> Operation:
        return self._operation(self._hvd.broadcast_async_(flat, root, name=name))

    def _allgather(self, tensor: Tensor, counts: list[int], name: str) -> Operation:
        done, finish = self._operation(self._hvd.allgather_async(tensor, name=name))
        return Operation(done, lambda: list(torch.split(finish(), counts)))

    def _operation(self, handle: int) -> Operation:
        return Operation(lambda: bool(self._hvd.poll(handle)), lambda: self._hvd.synchronize(handle))

    def _guarded(self, call: Callable[[], None], deadline_s: float) -> Exception | None:
        """Runs a blocking call in a thread; once aborted or overdue, aborts Horovod until it has ended."""
        under_way = InThread(call, "horovod")
        deadline = time.monotonic() + deadline_s
        # Polled finely at first: forming a small generation takes milliseconds.
        pause_s = 0.001
        while not under_way.ended(pause_s):
            pause_s = min(0.01, pause_s * 1.5)
            late = time.monotonic() - deadline
            if self._aborted.is_set() or late > 0:
                self._hvd.abort()
            if late > OPERATION_DEADLINE_S:
                return TimeoutError(
                    f"horovod did not end within {deadline_s + OPERATION_DEADLINE_S:.0f} s of being aborted"
                )
        return under_way.error


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
