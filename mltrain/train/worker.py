"""One worker: a Ray actor around a trainer. Commands come over its own connection while a generation runs."""

import dataclasses
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltrain.errors import CollectiveAborted
from mltrain.train.control import Ending, Message, Outcome, Row, Wishes, failure
from mltrain.train.link import Link
from mltrain.train.reach import Listener, reached

if TYPE_CHECKING:
    from mltrain.collectives import Collectives, Membership
    from mltrain.train.spec import Spec, Task

# A trainer that is told to abort gets this long before the process ends, when its controller is lost.
_LAST_WORDS_S = 1.0
# Where this process prints to, and how much of it goes with a failure.
_STDOUT, _STDERR = "/proc/self/fd/1", "/proc/self/fd/2"
_OUTPUT_BYTES = 64 << 10


@dataclass(frozen=True)
class Contact:
    """How a worker finds its controller.

    Attributes:
        address: of the controller's hub.
        secret: shared by the controller and its workers.
        run_id: of the run.
        driver_epoch: of the controller; with the generation it fences off what older ones still say.
        interval_s: between heartbeats.
        silence_s: after so long without the controller a worker exits.
    """

    address: tuple[str, int]
    secret: str
    run_id: str
    driver_epoch: int
    interval_s: float
    silence_s: float


class Asked:
    """What a generation was asked for. A rank may not have begun it when that comes, and nobody asks twice."""

    def __init__(self) -> None:
        self._generation = 0
        self._stop = self._checkpoint = False

    def take(self, generation: int, *, stop: bool, checkpoint: bool) -> None:
        """A generation is asked for this, besides what it was asked for before."""
        if generation < self._generation:
            return
        if generation > self._generation:
            self._generation, self._stop, self._checkpoint = generation, False, False
        self._stop |= stop
        self._checkpoint |= checkpoint

    def wishes(self, generation: int) -> Wishes:
        """What a generation was asked for; a checkpoint once."""
        if generation != self._generation:
            return Wishes()
        wishes = Wishes(self._stop, self._checkpoint)
        self._checkpoint = False
        return wishes


class RemoteControl:
    """A `Control` whose other side is a hub."""

    def __init__(self, worker_id: str, contact: Contact) -> None:
        self._contact = contact
        self._collectives: Collectives | None = None
        self._rows: list[list[Any]] = []
        self._rows_lock = threading.Lock()
        self._changed = threading.Condition()
        self._generation = 0
        self._aborted_through = 0
        self._asked = Asked()
        self._decided = 0
        self._listener = Listener()
        self._link = Link(
            contact.address,
            {
                "worker": worker_id,
                "secret": contact.secret,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "output": os.readlink(_STDERR),
                "port": self._listener.port,
            },
            interval_s=contact.interval_s,
            silence_s=contact.silence_s,
            on_command=self._command,
            on_beat=self._beat,
            on_lost=self._lost,
        )

    def use(self, collectives: "Collectives") -> None:
        """What an abort aborts."""
        self._collectives = collectives

    def begin(self, generation: int, decided: int) -> None:
        """A generation starts; evaluations up to step ``decided`` were answered.

        Raises:
            CollectiveAborted: it is older than one seen before, or was aborted before it began.
        """
        with self._changed:
            if generation <= max(self._generation, self._aborted_through):
                raise CollectiveAborted(f"generation {generation} is over")
            self._generation = generation
            self._decided = max(self._decided, decided)

    def metrics(self, row: Row) -> None:
        with self._rows_lock:
            self._rows.append([row.step, row.epoch, row.generation, row.values])

    def send(self, message: Message) -> None:
        self.tell(message, self._generation)

    def tell(self, message: Message, generation: int) -> None:
        """Sends a message of a generation, which need not be the latest."""
        self._flush()
        self._link.send({**message, "generation": generation})

    def notice(self, kind: str, fields: Message) -> None:
        """Something was said about this node, in a generation or not."""
        self._link.send({"type": "notice", "event": kind, "fields": fields})

    def wishes(self) -> Wishes:
        with self._changed:
            return self._asked.wishes(self._generation)

    def check(self) -> None:
        if self._aborted_through >= self._generation:
            raise CollectiveAborted(f"generation {self._generation} was aborted")

    def broken(self) -> None:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

    def wait_decided(self, step: int) -> None:
        with self._changed:
            while self._decided < step:
                self.check()
                self._changed.wait()

    def _beat(self) -> Message:
        self._flush()
        waited_s, waiting_s = (0.0, 0.0) if self._collectives is None else self._collectives.waiting.seconds()
        return {"generation": self._generation, "waited_s": waited_s, "waiting_s": waiting_s}

    def _command(self, message: Message) -> None:
        if message["driver_epoch"] != self._contact.driver_epoch:
            return
        if message["type"] == "probe":
            peers = {worker: (host, port) for worker, (host, port) in message["peers"].items()}
            found = reached(peers, float(message["within_s"]))
            self._link.send({"type": "probed", "generation": message["generation"], "reached": found})
            return
        kind, generation = message["type"], int(message["generation"])
        with self._changed:
            if kind == "abort":
                self._aborted_through = max(self._aborted_through, generation)
            if kind == "decided":
                self._decided = max(self._decided, int(message["step"]))
            if kind in ("checkpoint", "stop"):
                self._asked.take(generation, stop=kind == "stop", checkpoint=bool(message.get("checkpoint", True)))
            self._changed.notify_all()
        if kind == "abort" and self._collectives is not None:
            self._collectives.abort(generation)

    def _flush(self) -> None:
        with self._rows_lock:
            rows, self._rows = self._rows, []
        if rows:
            self._link.send({"type": "rows", "rows": rows, "generation": self._generation})

    def _lost(self, why: str) -> None:
        """Without its controller a worker must neither train nor write: what it did since is void."""
        with self._changed:
            self._aborted_through = self._generation
            self._changed.notify_all()
        if self._collectives is not None:
            self._collectives.abort(self._generation)
        time.sleep(_LAST_WORDS_S)
        os._exit(1)


class Worker:
    """The actor's class. Calls may overlap: `run` takes as long as a generation."""

    def __init__(self, worker_id: str, contact: Contact) -> None:
        self._control = RemoteControl(worker_id, contact)
        self._trainer: Any = None
        self._agent: Any = None

    def warm(self, spec: "Spec", cpus: float) -> Outcome | dict[str, Any]:
        """Imports, builds the model, opens the data: everything that takes time, before anybody waits for it.

        Returns:
            Where it runs, or how it failed.
        """
        import ray
        import torch

        from mltrain import collectives, spot
        from mltrain.train.trainer import Trainer
        from mltrain.train.usercode import RAISED

        self._agent = spot.watch(spec.config.cluster.notices, self._control.notice)
        torch.set_num_threads(max(1, int(cpus)))
        began = time.perf_counter()
        try:
            made = collectives.create(spec.config.train.collectives, device=spec.device)
            self._control.use(made)
            self._trainer = Trainer(spec, self._control, made)
        except RAISED as error:  # the controller reports it
            return _with_output(failure(error, -1))
        address = ray.util.get_node_ip_address()
        return {
            "node": ray.get_runtime_context().get_node_id(),
            "address": address,
            "interface": _interface(address),
            "pid": os.getpid(),
            "warm_s": time.perf_counter() - began,
        }

    def run(self, membership: "Membership", task: "Task") -> Outcome:
        """Takes part in a generation."""
        try:
            self._control.begin(membership.generation, task.decided)
            outcome: Outcome = self._trainer.run(membership, task)
        except CollectiveAborted as error:
            outcome = Outcome(Ending.ABORTED, self._trainer.replica.progress, reason=str(error))
        # Nothing of this generation comes after it on this connection.
        self._control.tell({"type": "left"}, membership.generation)
        return _with_output(outcome) if outcome.ending is Ending.FAILED else outcome

    def finish(self, generation: int) -> None:
        """The run is about to fail: ends the background work, and says so when this rank's part is durable."""
        self._trainer.close()
        self._control.tell({"type": "written"}, generation)


def _with_output(outcome: Outcome) -> Outcome:
    """Adds what this process has printed last to the traceback: the file it went to may go with its node."""
    printed = ""
    for name, descriptor in (("stdout", _STDOUT), ("stderr", _STDERR)):
        path = Path(os.readlink(descriptor))
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _OUTPUT_BYTES))
                printed += f"\n{name} ({path}):\n{file.read().decode(errors='replace')}"
    return dataclasses.replace(outcome, traceback=outcome.traceback + printed)


def _interface(address: str) -> str | None:
    """The network interface that has ``address``."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == address for entry in addresses):
            return str(name)
    return None
