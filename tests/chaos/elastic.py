"""Trainings on four hosts to which things happen at random moments, also while they recover from the one before.

A case: a run on workers of all hosts; six faults; everything is mended; the run goes on for a while and stops. Every
row was in its step once, the sums were exact, and nothing of the run is left.
"""

import contextlib
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.chaos.result import Result
from tests.support.datasets import make_dataset
from tests.support.drill import Drill, check_exact, drill, paced
from tests.support.hosts import Host, Hosts, hosts, unavailable
from tests.support.processes import wait_until
from tests.support.training import ROWS

FAULTS = 6
_GONE_S = 30.0


def run(count: int, seed: int, folder: Path) -> Result:
    """Runs ``count`` trainings."""
    result = Result("elastic", seed)
    if (why := unavailable()) is not None:
        result.figures["skipped"] = why
        return result
    make_dataset(folder, rows=ROWS, shards=6)
    with hosts(4, folder / "hosts", cpus=2) as made:
        for number in range(seed, seed + count):
            with result.case(number):
                made.mend()
                with tempfile.TemporaryDirectory(dir=folder) as steps:
                    _Case(random.Random(number), made, folder, Path(steps), result).run(f"case-{number}")
    return result


class _Case:
    def __init__(self, chance: random.Random, hosts: Hosts, root: Path, steps: Path, result: Result) -> None:
        self._chance = chance
        self._hosts = hosts
        self._root = root
        self._steps = steps
        self._counts = result.counts
        self._undo: list[tuple[Host, Callable[[], None]]] = []

    def run(self, run_id: str) -> None:
        collectives = self._chance.choice(["horovod", "torch"])
        workers = {"min": 1, "max": self._chance.randint(4, 6), "wait_s": 120}
        mapping = paced(self._root, self._hosts.address, self._steps, workers, collectives=collectives)
        before = _leftovers(self._hosts)
        with drill(mapping, run_id) as drilled:
            drilled.until("training", generation=1)
            for _ in range(FAULTS):
                # Often before the run has recovered from the one before.
                time.sleep(self._chance.choice([0.0, 0.1, 0.5, 1.0, 3.0]) * self._chance.random())
                self._fault(drilled)
            for host, undo in self._undo:
                undo()
                host.wait()
            self._progress(drilled)
            drilled.stop()
        self._counts["runs"] += 1
        self._counts["workers lost"] += len(drilled.events("worker lost"))
        self._counts["generations"] += len(drilled.events("generation formed"))
        self._counts["steps repeated"] += sum(e["steps_repeated"] for e in drilled.events("training again"))
        wait_until(lambda: _leftovers(self._hosts) <= before, _GONE_S, f"end of {_leftovers(self._hosts) - before}")
        check_exact(self._root, run_id, mapping)

    def _fault(self, drilled: Drill) -> None:
        whole = [host for host in self._hosts if host not in [afflicted for afflicted, _ in self._undo]]
        kinds = ["kill a worker", "stop a worker for a moment", "stop a worker for long"]
        if len(whole) > 1:
            kinds += ["cut a host for a moment", "cut a host", "part a host from the controller", "part two hosts"]
            kinds += ["stop a host", "drain a host", "power a host off"]
        kind = self._chance.choice(kinds)
        self._counts[kind] += 1
        if kind.endswith("worker") or "a worker for" in kind:
            self._worker(kind)
            return
        host, other = self._chance.sample(whole, 2)
        if kind == "cut a host for a moment":
            host.cut()
            time.sleep(self._chance.uniform(0.1, 1.2))
            host.heal()
        elif kind == "cut a host":
            host.cut()
            self._undo.append((host, host.heal))
        elif kind == "part a host from the controller":
            host.part(self._hosts.head)
            self._undo.append((host, host.heal))
        elif kind == "part two hosts":
            host.part(other.address)
            self._undo.append((host, host.heal))
        elif kind == "stop a host":
            host.stop()
            self._undo.append((host, host.resume))
        elif kind == "drain a host":
            host.drain(60)
            self._undo.append((host, lambda: _restart(host)))
        else:
            host.power_off()
            self._undo.append((host, host.start))

    def _worker(self, kind: str) -> None:
        workers = [process for host in self._hosts for process in host.processes() if _is_worker(process)]
        if not workers:
            return
        victim = self._chance.choice(workers)
        with contextlib.suppress(psutil.NoSuchProcess):
            if kind == "kill a worker":
                victim.send_signal(signal.SIGKILL)
                return
            victim.send_signal(signal.SIGSTOP)
            time.sleep(self._chance.uniform(0.1, 1.2) if "moment" in kind else self._chance.uniform(2.5, 6.0))
            victim.send_signal(signal.SIGCONT)

    def _progress(self, drilled: Drill) -> None:
        """Waits for some steps that were not begun before."""
        seen = {path.name for path in self._steps.iterdir()}
        wait_until(
            lambda: len({p.name for p in self._steps.iterdir()} - seen) > 20 or not drilled.running, 180, "progress"
        )


def _restart(host: Host) -> None:
    host.power_off()
    host.start()


def _is_worker(process: psutil.Process) -> bool:
    try:
        # Ray calls an actor's process after its class.
        return str(process.name()).startswith("ray::Worker")
    except psutil.NoSuchProcess:
        return False


def _leftovers(hosts: Hosts) -> set[str]:
    """What a run could leave: workers, actors, placement groups, and sockets that this process listens on."""
    import ray
    from ray.util.placement_group import placement_group_table

    found = {f"process {p.pid}" for host in hosts for p in host.processes() if _is_worker(p)}
    # Ray's public list of actors needs its dashboard.
    found |= {f"actor {key}" for key, actor in ray._private.state.actors().items() if actor["State"] != "DEAD"}
    groups = placement_group_table()
    found |= {f"placement group {key}" for key, group in groups.items() if group["state"] != "REMOVED"}
    connections = psutil.Process().net_connections("tcp")
    return found | {f"port {c.laddr.port}" for c in connections if c.status == psutil.CONN_LISTEN}
