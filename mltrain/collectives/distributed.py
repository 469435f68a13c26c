"""What the collectives of several processes have in common, whichever library carries them."""

import abc
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mltrain.collectives.interface import Handle, Membership
from mltrain.collectives.local import Done
from mltrain.collectives.packing import pack, unpack
from mltrain.collectives.waiting import Waiting, wait_until
from mltrain.errors import CollectiveAborted


class Operation(NamedTuple):
    """What a library has started: whether it is done, and, once it is, what it came to. Both return at once."""

    done: Callable[[], bool]
    finish: Callable[[], Any]


class DistributedCollectives(abc.ABC):
    """Collectives that a library forms anew, in this process, for every generation.

    Waits poll with an abort flag and a deadline. A generation of one rank does without the library. One thread uses the
    collectives; `abort` may come from any other.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, *, device: str = "cpu") -> None:
        self.waiting = Waiting()
        self._device = device
        self._membership = Membership()
        self._aborted = threading.Event()
        self._aborted_through = -1
        self._lock = threading.Lock()

    @property
    def rank(self) -> int:
        return self._membership.rank

    @property
    def size(self) -> int:
        return self._membership.size

    def join(self, membership: Membership, deadline_s: float) -> None:
        with self._lock:
            self._membership = membership
            # Another one: a join that was given up still looks at the old one, and ends by it.
            self._aborted = threading.Event()
            if membership.generation <= self._aborted_through:
                self._aborted.set()
        self._check()
        if membership.size == 1:
            return
        failure = self._form(membership, deadline_s)
        if failure is not None or self._aborted.is_set():
            place = f"rank {membership.rank} could not join generation {membership.generation}"
            raise CollectiveAborted(f"{place}: {failure or 'it was aborted'}") from failure

    @abc.abstractmethod
    def leave(self) -> None: ...

    def abort(self, generation: int) -> None:
        with self._lock:
            self._aborted_through = max(self._aborted_through, generation)
            if self._membership.generation <= generation:
                self._aborted.set()
                self._cut()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Handle:
        self._check()
        if self.size == 1:
            return Done()
        return self._start(self._allreduce, tensor, name)

    def broadcast(self, tensors: Sequence[Tensor], root: int) -> None:
        self._check()
        if self.size == 1:
            return
        for number, (flat, members) in enumerate(pack(tensors)):
            if flat.numel() == 0:
                continue
            self._start(self._broadcast, flat, root, f"broadcast.{number}").wait()
            if self.rank != root:
                unpack(flat, members)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._check()
        if self.size == 1:
            return [tensor]
        mine = torch.tensor([tensor.shape[0]], dtype=torch.int64, device=tensor.device)
        counts = [int(count) for count in self._gathered(mine, [1] * self.size, "gather.rows")]
        if sum(counts) * math.prod(tensor.shape[1:]) == 0:
            return [tensor.new_empty((count, *tensor.shape[1:])) for count in counts]
        return self._gathered(tensor.contiguous(), counts, "gather.values")

    @abc.abstractmethod
    def _form(self, membership: Membership, deadline_s: float) -> Exception | None:
        """Forms a generation of several ranks. Returns what it failed of, at the latest soon after the deadline."""

    @abc.abstractmethod
    def _cut(self) -> None:
        """Fails what any thread is waiting for in the library."""

    @abc.abstractmethod
    def _allreduce(self, tensor: Tensor, name: str) -> Operation: ...

    @abc.abstractmethod
    def _broadcast(self, flat: Tensor, root: int, name: str) -> Operation: ...

    @abc.abstractmethod
    def _allgather(self, tensor: Tensor, counts: list[int], name: str) -> Operation:
        """Comes to a list of every rank's tensor; ``counts`` are their first dimensions."""

    def _gathered(self, tensor: Tensor, counts: list[int], name: str) -> list[Tensor]:
        handle = self._start(self._allgather, tensor, counts, name)
        handle.wait()
        assert isinstance(handle.result, list)
        return handle.result

    def _start(self, begin: Callable[..., Operation], *arguments: Any) -> "_Handle":
        try:
            return _Handle(begin(*arguments), self._aborted, self.waiting)
        except (RuntimeError, ValueError) as error:
            # Libraries refuse operations once they know that a peer is lost; Horovod says ValueError to some mistakes.
            if not self._aborted.is_set() and isinstance(error, ValueError):
                raise
            raise CollectiveAborted(str(error)) from error

    def _check(self) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted(f"generation {self._membership.generation} was aborted")


class _Handle:
    def __init__(self, operation: Operation, aborted: threading.Event, waiting: Waiting) -> None:
        self._operation = operation
        self._aborted = aborted
        self._waiting = waiting
        self.result: object = None

    def wait(self) -> None:
        wait_until(self._operation.done, self._aborted, self._waiting)
        try:
            self.result = self._operation.finish()
        except Exception as error:
            # HorovodInternalError cannot be named without importing Horovod; whatever is raised ends the generation.
            raise CollectiveAborted(f"a peer was lost: {error}") from error
