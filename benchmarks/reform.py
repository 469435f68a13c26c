"""Claim: survivors re-form a generation of 8 processes on one machine in under a second.

Processes on this machine form a generation with Horovod, reduce once, abort and leave it, and form the next, over and
over. A re-form is leaving plus forming; the first forming of each size is not counted. Seconds by the clock until the
last process is done; CPU seconds are those of all processes and the server together, so half of them is what two cores
need at least.

    python -m benchmarks.reform [--sizes 2,4,8,16,32] [--rounds 10] [--torch] [--stock DIR]

With ``--torch`` rounds alternate with those of the other collectives, by torch.distributed.
With ``--stock`` rounds alternate with those of Horovod as it is released, started and shut down as its own elastic mode
does, with its own rendezvous server. DIR is where that release was installed (``cluster/horovod/build.sh`` with
``cluster/horovod/patches`` emptied makes a wheel that torch compiles; ``pip install --no-deps --target DIR WHEEL``).
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

# A size whose round takes longer is not tried again, nor a larger one.
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Round:
    """Seconds of one generation: by the clock for all ranks to form it and to leave it, and of processors in both."""

    form_s: float
    leave_s: float
    cpu_s: float

    @property
    def reform_s(self) -> float:
        return self.form_s + self.leave_s


class Ours:
    """The collectives and the rendezvous of a training."""

    name = "horovod"

    def __init__(self) -> None:
        from mltrain import collectives

        self._made = collectives.create(self.name)
        self._generation = 0

    @staticmethod
    def serve(size: int) -> tuple[str, Callable[[], None]]:
        """Starts a rendezvous; returns its address and what ends it."""
        from mltrain.collectives import RendezvousServer

        server = RendezvousServer()
        return server.address, server.close

    def join(self, rank: int, size: int, address: str) -> None:
        from mltrain.collectives import Membership

        self._generation += 1
        place = Membership(self._generation, rank, size, rank, size, 0, 1, "localhost", "lo", address)
        self._made.join(place, _PATIENCE_S)

    def reduce(self) -> None:
        import torch

        tensor = torch.ones(1000)
        self._made.allreduce_sum(tensor, "ones").wait()
        assert tensor[0].item() == self._made.size

    def leave(self) -> None:
        self._made.abort(self._generation)
        self._made.leave()


class Torch(Ours):
    """The same, by torch.distributed."""

    name = "torch"


class Stock:
    """Horovod as it is released. It has no abort: its ranks agree to shut down."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd: Any = hvd

    @staticmethod
    def serve(size: int) -> tuple[str, Callable[[], None]]:
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.runner.http.http_server import RendezvousServer

        server = RendezvousServer()
        port = server.start()
        server.init(get_host_assignments(parse_hosts(f"localhost:{size}"), size))
        return f"127.0.0.1:{port}", server.stop

    def join(self, rank: int, size: int, address: str) -> None:
        host, port = address.split(":")
        places: dict[str, object] = {
            "RANK": rank,
            "SIZE": size,
            "LOCAL_RANK": rank,
            "LOCAL_SIZE": size,
            "CROSS_RANK": 0,
            "CROSS_SIZE": 1,
        }
        settings: dict[str, object] = {
            "GLOO_RENDEZVOUS_ADDR": host,
            "GLOO_RENDEZVOUS_PORT": port,
            "GLOO_IFACE": "lo",
            "CONTROLLER": "gloo",
        }
        settings |= {"CPU_OPERATIONS": "gloo", "HOSTNAME": "localhost", "GLOO_TIMEOUT_SECONDS": round(_PATIENCE_S)}
        os.environ.update({f"HOROVOD_{name}": str(value) for name, value in (places | settings).items()})
        self._hvd.init()

    def reduce(self) -> None:
        import torch

        assert self._hvd.allreduce(torch.ones(1000), op=self._hvd.Sum)[0].item() == self._hvd.size()

    def leave(self) -> None:
        self._hvd.shutdown()


_SIDES: dict[str, type[Ours] | type[Stock]] = {"ours": Ours, "torch": Torch, "stock": Stock}


def _rank(side: str, rank: int, size: int, pipe: Connection) -> None:
    """Does what it is told over a pipe, and says how much processor time it has used so far."""
    made = _SIDES[side]()
    pipe.send(time.process_time())
    while (order := pipe.recv()) is not None:
        if order == "leave":
            made.leave()
        else:
            made.join(rank, size, order)
            pipe.send(time.process_time())
            pipe.recv()
            made.reduce()
        pipe.send(time.process_time())


class _Ranks:
    def __init__(self, side: str, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["horovod.torch", "mltrain.collectives"])
        self._side = side
        self._pipes: list[Connection] = []
        for rank in range(size):
            pipe, theirs = context.Pipe()
            context.Process(target=_rank, args=(side, rank, size, theirs), daemon=True).start()
            theirs.close()
            self._pipes.append(pipe)
        self._cpu_s = self._answers()

    def round(self) -> Round:
        began, served = time.monotonic(), time.process_time()
        used = self._cpu_s
        address, close = _SIDES[self._side].serve(len(self._pipes))
        formed = self._all(address)
        form_s = time.monotonic() - began
        reduced = self._all("reduce")
        began = time.monotonic()
        self._cpu_s = self._all("leave")
        leave_s = time.monotonic() - began
        close()
        cpu_s = formed - used + self._cpu_s - reduced + time.process_time() - served
        return Round(form_s, leave_s, cpu_s)

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)

    def _all(self, order: str) -> float:
        for pipe in self._pipes:
            pipe.send(order)
        return self._answers()

    def _answers(self) -> float:
        return float(sum(pipe.recv() for pipe in self._pipes))


def _serve_side(side: str) -> None:
    """One side in a process of its own: for every size read, ranks, and a round for every "go"."""
    library = importlib.import_module("torch" if side == "torch" else "horovod")
    print(json.dumps({"version": f"{library.__name__} {library.__version__}"}), flush=True)
    ranks = _Ranks(side, 0)
    for line in sys.stdin:
        if line.startswith("size"):
            ranks.end()
            ranks = _Ranks(side, int(line.split()[1]))
            print("{}", flush=True)
        else:
            print(json.dumps(asdict(ranks.round())), flush=True)
    ranks.end()


class _Side:
    """A side's process.

    Attributes:
        version: of its Horovod.
    """

    def __init__(self, side: str, path: str | None) -> None:
        environment = {**os.environ} if path is None else {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", "benchmarks.reform", "--side", side]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._failed = False
        self.version = (self._answer() or {}).get("version")

    def ask(self, order: str) -> dict[str, Any] | None:
        """The answer; None when it has not come in time, and ever after."""
        assert self._process.stdin is not None
        if self._failed:
            return None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        timer = threading.Timer(_PATIENCE_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        self._failed = not line
        return dict(json.loads(line)) if line else None

    def round(self) -> Round | None:
        answer = self.ask("go")
        return None if answer is None else Round(**answer)

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="2,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--stock", metavar="DIR")
    parser.add_argument("--side", choices=list(_SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        _serve_side(arguments.side)
        return
    sides = {"ours": _Side("ours", None)}
    if arguments.torch:
        sides["torch"] = _Side("torch", None)
    if arguments.stock is not None:
        sides["stock"] = _Side("stock", arguments.stock)
    load = ", ".join(f"{value:.0f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {side.version}" for name, side in sides.items())
    print(f"{versions}; Python {platform.python_version()}, {os.cpu_count()} cores, load {load}; seconds")
    print(f"{'ranks':>5} {'side':>6} {'median':>8} {'worst':>8} {'form':>8} {'leave':>8} {'CPU s':>8} {'ratio':>7}")
    for size in map(int, arguments.sizes.split(",")):
        rounds = _alternate(sides, size, arguments.rounds)
        for side, taken in rounds.items():
            _print(size, side, taken, rounds["ours"])
    for ending in sides.values():
        ending.end()


def _alternate(sides: dict[str, _Side], size: int, count: int) -> dict[str, list[Round]]:
    for side in sides.values():
        side.ask(f"size {size}")
    rounds: dict[str, list[Round]] = {name: [] for name in sides}
    for number in range(count + 1):
        for name, side in sides.items():
            found = side.round()
            if found is not None and number > 0:
                rounds[name].append(found)
    return rounds


def _print(size: int, side: str, rounds: list[Round], ours: list[Round]) -> None:
    if not rounds:
        print(f"{size:>5} {side:>6} no round within {_PATIENCE_S:.0f} s, or it failed")
        return
    times = [taken.reform_s for taken in rounds]
    middle = statistics.median(times)
    form, leave, cpu = (statistics.median(getattr(r, f) for r in rounds) for f in ("form_s", "leave_s", "cpu_s"))
    ratio = middle / statistics.median(taken.reform_s for taken in ours)
    print(f"{size:>5} {side:>6} {middle:8.3f} {max(times):8.3f} {form:8.3f} {leave:8.3f} {cpu:8.3f} {ratio:7.1f}")


if __name__ == "__main__":
    main()
