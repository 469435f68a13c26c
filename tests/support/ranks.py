"""Ranks as real processes on loopback, each with collectives of its own, told what to do over a pipe."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import psutil

from mltrain import collectives
from mltrain.collectives import Collectives, Membership, RendezvousServer

_WAIT_S = 60.0
# Importing torch and Horovod takes seconds: the ranks are forked from one process that has done so.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["horovod.torch", "mltrain.collectives.torch"])


def _serve(name: str, pipe: Connection) -> None:
    made = collectives.create(name)
    lock = threading.Lock()

    def reply(number: int, value: object) -> None:
        with lock:
            pipe.send((number, value))

    def run(number: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            reply(number, function(made, *arguments))
        except Exception as error:
            reply(number, error)

    pipe.send((-1, os.getpid()))
    with ThreadPoolExecutor(1) as main:
        while (task := pipe.recv()) is not None:
            number, function, arguments = task
            if function == "abort":
                made.abort(*arguments)
                reply(number, None)
            else:
                main.submit(run, number, function, arguments)


class Rank:
    """One process. Calls run one after another in its collectives' thread; ``abort`` comes from another."""

    def __init__(self, name: str) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(name, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._sent = 0
        self._replies: dict[int, object] = {}

    def ready(self) -> None:
        self._receive(-1)

    def send(self, function: Callable[..., Any] | str, *arguments: Any) -> int:
        self._sent += 1
        self._pipe.send((self._sent, function, arguments))
        return self._sent

    def receive(self, number: int) -> Any:
        value = self._receive(number)
        if isinstance(value, Exception):
            raise value
        return value

    def call(self, function: Callable[..., Any] | str, *arguments: Any) -> Any:
        return self.receive(self.send(function, *arguments))

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join()

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def connections(self, status: str) -> int:
        """How many TCP connections it has in a state, as psutil calls it."""
        found = psutil.Process(self._process.pid).net_connections("tcp")
        return sum(connection.status == status for connection in found)

    def bytes_written(self) -> int:
        """To files and connections, since it began."""
        return int(psutil.Process(self._process.pid).io_counters().write_chars)

    def _receive(self, wanted: int) -> object:
        while wanted not in self._replies:
            if not self._pipe.poll(_WAIT_S):
                raise TimeoutError(f"no answer within {_WAIT_S} s")
            number, value = self._pipe.recv()
            self._replies[number] = value
        return self._replies.pop(wanted)


class Ranks:
    """Several ranks and the rendezvous of their generations."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self.all = [Rank(name) for _ in range(size)]
        for rank in self.all:
            rank.ready()
        self.generation = 0
        self._server = RendezvousServer()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self.all:
            if rank._process.is_alive():
                rank.kill()
        self._server.close()

    def replace(self, number: int) -> None:
        """Kills a rank's process; another is in its place for whoever needs one next."""
        self.all[number].kill()
        self.all[number] = Rank(self._name)

    @property
    def rendezvous(self) -> str:
        """Address of the newest generation's server."""
        return self._server.address

    def form(self, members: Sequence[Rank], deadline_s: float = 30.0, size: int | None = None) -> list[int]:
        """Starts to join ``members``; returns the calls to wait for."""
        self.generation += 1
        self._server.close()
        self._server = RendezvousServer()
        size = len(members) if size is None else size
        return [
            member.send(
                _join,
                Membership(self.generation, rank, size, rank, size, 0, 1, "localhost", "lo", self._server.address),
                deadline_s,
            )
            for rank, member in enumerate(members)
        ]

    def formed(self, members: Sequence[Rank]) -> None:
        self.gather(members, self.form(members))

    @staticmethod
    def gather(members: Sequence[Rank], calls: Sequence[int]) -> list[Any]:
        return [member.receive(call) for member, call in zip(members, calls, strict=True)]

    @staticmethod
    def each(members: Sequence[Rank], function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return Ranks.gather(members, [member.send(function, *arguments) for member in members])


def _join(made: Collectives, membership: Membership, deadline_s: float) -> None:
    made.join(membership, deadline_s)
