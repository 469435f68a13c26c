"""Collectives by torch.distributed: Gloo on CPUs, NCCL on GPUs, a process group of its own for every generation."""

import contextlib
import functools
import http.client
import math
import os
import socket
import threading
import urllib.parse
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from mltrain.collectives.interface import Handle, Membership
from mltrain.collectives.local import LocalCollectives
from mltrain.collectives.packing import pack, unpack
from mltrain.collectives.waiting import OPERATION_DEADLINE_S, Waiting, wait_until
from mltrain.errors import CollectiveAborted

# Of each group: one finishes a bucket while another goes on.
_THREADS = 2
# The rendezvous server is the controller's: it answers, or the worker is lost anyway.
_ANSWER_S = 10.0


class TorchCollectives:
    """A process group that is made anew for every generation, beside ``torch.distributed``'s default one.

    Gloo's ``abort`` frees nobody (torch 2.13): an abort here ends the group's connections, and whoever waits on them
    fails. One thread uses the collectives; `abort` may come from any other.

    Args:
        device: ``"cpu"`` (Gloo) or ``"cuda"`` (NCCL).
    """

    def __init__(self, *, device: str = "cpu") -> None:
        self.waiting = Waiting()
        self._device = device
        self._membership = Membership()
        self._aborted = threading.Event()
        self._alone: LocalCollectives | None = None
        self._group: Any = None
        self._connections = _Connections()

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
        formed = _InThread(functools.partial(self._form, membership, deadline_s))
        try:
            wait_until(formed.ended, self._aborted, self.waiting, deadline_s)
        except CollectiveAborted:
            # Blocked in a connect it ends at its own deadline: nobody waits for that.
            self._aborted.set()
            raise
        if formed.error is not None:
            raise CollectiveAborted(
                f"rank {membership.rank} could not join generation {membership.generation}: {formed.error}"
            ) from formed.error
        self._group, self._connections = formed.result
        self._check()

    def leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            if self._aborted.is_set():
                self._end(group)
            # Its destructor waits for its threads.
            threading.Thread(target=group.shutdown, name="process group", daemon=True).start()
        self._connections.close()
        self._connections = _Connections()
        self._alone = None
        # Another one: a join that was given up still looks at the old one, and ends by it.
        self._aborted = threading.Event()

    def abort(self) -> None:
        self._aborted.set()
        group = self._group
        if group is not None:
            self._end(group)

    def allreduce_sum(self, tensor: Tensor, name: str) -> Handle:
        self._check()
        if self._alone is not None:
            return self._alone.allreduce_sum(tensor, name)
        return self._start(lambda: self._group.allreduce([tensor]))

    def broadcast(self, tensors: Sequence[Tensor], root: int) -> None:
        self._check()
        if self._alone is not None:
            return
        options = dist.BroadcastOptions()
        options.rootRank = root
        for flat, members in pack(tensors):
            if flat.numel() == 0:
                continue
            self._start(functools.partial(self._group.broadcast, [flat], options)).wait()
            if self.rank != root:
                unpack(flat, members)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._check()
        if self._alone is not None:
            return [tensor]
        mine = torch.tensor([tensor.shape[0]], dtype=torch.int64, device=tensor.device)
        counts = [int(count) for count in self._allgather(mine)]
        most = max(counts)
        if most * math.prod(tensor.shape[1:]) == 0:
            return [tensor.new_empty((count, *tensor.shape[1:])) for count in counts]
        # All ranks send as many rows.
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        return [part[:count] for part, count in zip(self._allgather(padded), counts, strict=True)]

    def _allgather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._start(lambda: self._group.allgather([parts], [tensor])).wait()
        return parts

    def _start(self, operation: Callable[[], Any]) -> "_TorchHandle":
        try:
            return _TorchHandle(operation(), self._aborted, self.waiting)
        except RuntimeError as error:
            # What a group whose peer is lost raises.
            raise CollectiveAborted(str(error)) from error

    def _check(self) -> None:
        if self._aborted.is_set():
            raise CollectiveAborted(f"generation {self._membership.generation} was aborted")

    def _form(self, membership: Membership, deadline_s: float) -> tuple[Any, "_Connections"]:
        store = _Store(membership.rendezvous, self._aborted)
        timeout = timedelta(seconds=deadline_s)
        # torch's stubs know little of these.
        torch_dist: Any = dist
        if self._device != "cpu":
            nccl = torch_dist.ProcessGroupNCCL.Options()
            nccl._timeout = timeout
            return torch_dist.ProcessGroupNCCL(store, membership.rank, membership.size, nccl), _Connections()
        before = _ports("LISTEN")
        options = torch_dist.ProcessGroupGloo._Options()
        options._devices = [torch_dist.ProcessGroupGloo.create_device(interface=membership.interface or "")]
        options._threads = _THREADS
        options._timeout = timeout
        mine = _ports("LISTEN") - before
        store.set(f"ports/{membership.rank}", ",".join(map(str, mine)))
        group = torch_dist.ProcessGroupGloo(store, membership.rank, membership.size, options)
        group.set_timeout(timedelta(seconds=OPERATION_DEADLINE_S))
        theirs = [store.get(f"ports/{rank}").decode() for rank in range(membership.size) if rank != membership.rank]
        return group, _Connections(mine, {int(port) for ports in theirs for port in ports.split(",")})

    def _end(self, group: Any) -> None:
        group.abort()
        self._connections.end()


class _TorchHandle:
    def __init__(self, work: Any, aborted: threading.Event, waiting: Waiting) -> None:
        self._work = work
        self._aborted = aborted
        self._waiting = waiting

    def wait(self) -> None:
        wait_until(self._work.is_completed, self._aborted, self._waiting)
        try:
            self._work.wait()
        except RuntimeError as error:
            raise CollectiveAborted(f"a peer was lost: {error}") from error


class _InThread:
    """A call that may block for long, in a thread that nobody has to wait for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._call = call
        self._ended = threading.Event()
        self.ended = self._ended.is_set
        threading.Thread(target=self._run, name="join", daemon=True).start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:  # handed to the caller, in the calling thread
            self.error = error
        self._ended.set()


class _Connections:
    """A Gloo group's connections: handles of our own, so that none of them can become something else's.

    Args:
        mine: ports that the group listens on.
        theirs: ports that its peers' groups listen on.
    """

    def __init__(self, mine: Collection[int] = (), theirs: Collection[int] = ()) -> None:
        self._sockets: list[socket.socket] = []
        for connection in psutil.Process().net_connections("tcp") if mine else ():
            if connection.status == psutil.CONN_ESTABLISHED and (
                connection.laddr.port in mine or connection.raddr.port in theirs
            ):
                self._sockets.append(socket.socket(fileno=os.dup(connection.fd)))

    def end(self) -> None:
        """Ends them under whoever waits."""
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # the peer was faster
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Gives the handles back."""
        for connection in self._sockets:
            connection.close()
        self._sockets = []


class _Store(dist.Store):  # type: ignore[misc, name-defined]
    """The generation's `RendezvousServer`, as torch.distributed asks for it."""

    def __init__(self, address: str, aborted: threading.Event) -> None:
        super().__init__()
        self._address = address
        self._aborted = aborted

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("PUT", key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        while (found := self._ask("GET", key)) is None:
            if self._aborted.is_set():
                raise CollectiveAborted("aborted during rendezvous")
        return found

    def check(self, keys: list[str]) -> bool:
        return all(self._ask("GET", key) is not None for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        for key in keys:
            self.get(key)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def multi_set(self, keys: list[str], values: list[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def delete_key(self, key: str) -> bool:
        # Everything goes with the generation.
        return True

    def _ask(self, method: str, key: str, body: bytes | None = None) -> bytes | None:
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_S)
        with contextlib.closing(connection):
            connection.request(method, f"/torch/{urllib.parse.quote(key, safe='')}", body)
            answer = connection.getresponse()
            data = answer.read()
            return data if answer.status == 200 else None


def _ports(status: str) -> frozenset[int]:
    """Local TCP ports of this process in a state."""
    found = psutil.Process().net_connections("tcp")
    return frozenset(connection.laddr.port for connection in found if connection.status == status)
