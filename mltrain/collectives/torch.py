"""Collectives by torch.distributed: Gloo on CPUs, NCCL on GPUs, a process group of its own for every generation."""

import contextlib
import functools
import os
import socket
import stat
import threading
import urllib.parse
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mltrain.collectives import rendezvous
from mltrain.collectives.distributed import DistributedCollectives, Operation
from mltrain.collectives.interface import Membership
from mltrain.collectives.waiting import OPERATION_DEADLINE_S, InThread, wait_until
from mltrain.errors import CollectiveAborted

# Of each group: one finishes a bucket while another goes on.
_THREADS = 2


class TorchCollectives(DistributedCollectives):
    """A process group that is made anew for every generation, beside ``torch.distributed``'s default one.

    Gloo's ``abort`` frees nobody (torch 2.13): an abort here ends the group's connections, and whoever waits on them
    fails.

    Args:
        device: ``"cpu"`` (Gloo) or ``"cuda"`` (NCCL).
    """

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self._group: Any = None
        self._connections = _Connections()

    def leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            if self._aborted.is_set():
                self._end(group)
            # Its destructor waits for its threads.
            threading.Thread(target=group.shutdown, name="process group", daemon=True).start()
        self._connections.close()
        self._connections = _Connections()

    def _form(self, membership: Membership, deadline_s: float) -> Exception | None:
        formed = InThread(functools.partial(self._make, membership, deadline_s, self._aborted), "join")
        try:
            wait_until(formed.ended, self._aborted, self.waiting, deadline_s)
        except CollectiveAborted as error:
            # Blocked in a connect it ends at its own deadline: nobody waits for that.
            self._aborted.set()
            return error
        if formed.error is None:
            self._group, self._connections = formed.result
        return formed.error

    def _cut(self) -> None:
        group = self._group
        if group is not None:
            self._end(group)

    def _end(self, group: Any) -> None:
        group.abort()
        self._connections.end()

    def _allreduce(self, tensor: Tensor, name: str) -> Operation:
        work = self._group.allreduce([tensor])
        return Operation(work.is_completed, work.wait)

    def _broadcast(self, flat: Tensor, root: int, name: str) -> Operation:
        options = dist.BroadcastOptions()
        options.rootRank = root
        work = self._group.broadcast([flat], options)
        return Operation(work.is_completed, work.wait)

    def _allgather(self, tensor: Tensor, counts: list[int], name: str) -> Operation:
        # All ranks send as many rows.
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        work = self._group.allgather([parts], [padded])

        def finish() -> list[Tensor]:
            work.wait()
            return [part[:count] for part, count in zip(parts, counts, strict=True)]

        return Operation(work.is_completed, finish)

    def _make(self, membership: Membership, deadline_s: float, aborted: threading.Event) -> "tuple[Any, _Connections]":
        rank, size, timeout = membership.rank, membership.size, timedelta(seconds=deadline_s)
        # torch's stubs know little of these.
        torch_dist: Any = dist
        if self._device != "cpu":
            nccl = torch_dist.ProcessGroupNCCL.Options()
            nccl._timeout = timeout
            store = _Store(membership.rendezvous, aborted)
            return torch_dist.ProcessGroupNCCL(store, rank, size, nccl), _Connections()
        before = _listening()
        options = torch_dist.ProcessGroupGloo._Options()
        options._devices = [torch_dist.ProcessGroupGloo.create_device(interface=membership.interface or "")]
        options._threads = _THREADS
        options._timeout = timeout
        mine = _listening() - before
        meeting = _Meeting(membership, mine, aborted)
        group = torch_dist.ProcessGroupGloo(meeting, rank, size, options)
        group.set_timeout(timedelta(seconds=OPERATION_DEADLINE_S))
        return group, _Connections(mine, meeting.ports)


class _Connections:
    """A Gloo group's connections: handles of our own, so that none of them can become something else's.

    Args:
        mine: ports that the group listens on.
        theirs: ports that its peers' groups listen on.
    """

    def __init__(self, mine: Collection[int] = (), theirs: Collection[int] = ()) -> None:
        def ours(found: socket.socket) -> bool:
            peer = found.getpeername()[1]
            return peer in theirs or found.getsockname()[1] in mine

        self._sockets = _sockets(ours) if mine else []

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


class _Meeting(dist.Store):  # type: ignore[misc, name-defined]
    """What Gloo's ranks tell each other as a group forms, a value each, in one request a rank.

    Args:
        mine: ports that this rank's group listens on.

    Attributes:
        ports: those of the others.
    """

    def __init__(self, membership: Membership, mine: Collection[int], aborted: threading.Event) -> None:
        super().__init__()
        self.ports: set[int] = set()
        self._membership = membership
        self._mine = ",".join(map(str, mine)).encode()
        self._aborted = aborted
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: str | bytes) -> None:
        """Called once, with this rank's number at the end of the key."""
        scope, rank, size = key.rpartition("/")[0], self._membership.rank, self._membership.size
        part = self._mine + b"\n" + (value.encode() if isinstance(value, str) else bytes(value))
        brought = rendezvous.exchange(self._membership.rendezvous, "torch", rank, size, part, self._aborted)
        for peer, theirs in enumerate(brought):
            ports, _, self._values[f"{scope}/{peer}"] = theirs.partition(b"\n")
            self.ports.update(() if peer == rank else map(int, ports.split(b",")))

    def get(self, key: str) -> bytes:
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """All have come: `set` has waited for them."""


class _Store(dist.Store):  # type: ignore[misc, name-defined]
    """The generation's `RendezvousServer`, as NCCL's process group asks for it."""

    def __init__(self, address: str, aborted: threading.Event) -> None:
        super().__init__()
        self._address = address
        self._aborted = aborted

    def set(self, key: str, value: str | bytes) -> None:
        self._ask("PUT", key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        # The server holds every request for a moment; an abort ends this.
        while (found := self._ask("GET", key)) is None:
            continue
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

    def _ask(self, method: str, key: str, body: bytes = b"") -> bytes | None:
        return rendezvous.ask(self._address, method, f"/torch/{urllib.parse.quote(key, safe='')}", body, self._aborted)


def _sockets(wanted: Callable[[socket.socket], bool]) -> list[socket.socket]:
    """Handles of our own to this process's TCP sockets, those that are wanted."""
    found = []
    for descriptor in map(int, os.listdir("/dev/fd")):
        # Suppressed: it was closed meanwhile, or is connected to nothing.
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            # `socket.dup` would make the original a blocking one.
            handle = stack.enter_context(socket.socket(fileno=os.dup(descriptor)))
            if handle.family in (socket.AF_INET, socket.AF_INET6) and wanted(handle):
                found.append(handle)
                stack.pop_all()
    return found


def _listening() -> frozenset[int]:
    """TCP ports that this process listens on."""
    found = _sockets(lambda handle: handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) != 0)
    ports = frozenset(int(handle.getsockname()[1]) for handle in found)
    for handle in found:
        handle.close()
    return ports
