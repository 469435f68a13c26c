"""Trainings on four hosts to which things happen at random moments, also while they recover from the one before.

A case: a run on workers of all hosts; twenty moments, at each of which one or two things happen, some of which are
undone on the way; then everything is mended, the run goes on for a while and stops. Every row was in its step once, the
sums were exact, with a fixed number of workers all weights are those of an undisturbed run to the last bit, and of the
run nothing is left.
"""

import contextlib
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mltrain.errors import StoppedError
from mltrain.train import retries
from tests.chaos.result import Result
from tests.support.datasets import make_dataset
from tests.support.drill import Drill, check_exact, drill, paced
from tests.support.hosts import Host, Hosts, hosts, unavailable
from tests.support.processes import wait_until
from tests.support.training import BATCH, ROWS

_FAULTS = "faults altogether"
_NEVER = 1_000_000
_LONG_S, _GONE_S = 300.0, 120.0
# Together with the rest of the model too large for one bucket.
_EXACT = 2_200_000
# What a Ray node consists of, whether anything runs on it or not; before it takes such a name, a file of Ray's runs.
_OF_A_NODE = ("raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")

Undo = Callable[[], None]


def run(count: int, seed: int, folder: Path, moments: int = 20) -> Result:
    """Goes from case to case until ``count`` things have happened, or too much has failed."""
    result = Result("elastic", seed)
    if (why := unavailable()) is not None:
        result.figures["skipped"] = why
        return result
    make_dataset(folder, rows=ROWS, shards=6)
    with hosts(4, folder / "hosts", cpus=2) as made, pytest.MonkeyPatch.context() as endless:
        # Workers that are killed while they start, again and again, look like workers that cannot start.
        endless.setattr(retries, "_FAILED_STARTS", _NEVER)
        endless.setattr(retries, "_BARREN", _NEVER)
        number = seed
        while result.counts[_FAULTS] < count and not result.failures[5:]:
            with result.case(number), _temporary_files_in(folder / f"temporary-{number}"):
                made.mend()
                with tempfile.TemporaryDirectory(dir=folder) as steps:
                    _Case(random.Random(number), moments, made, folder, Path(steps), result).run(f"case-{number}")
            # A run of hours says how far it is.
            sys.stderr.write(f"after case {number}: {dict(result.counts)}, {len(result.failures)} failures\n")
            number += 1
    return result


class _Case:
    def __init__(
        self, chance: random.Random, moments: int, hosts: Hosts, root: Path, steps: Path, result: Result
    ) -> None:
        self._chance = chance
        self._moments = moments
        self._hosts = hosts
        self._root = root
        self._steps = steps
        self._counts = result.counts
        self._afflicted: set[str] = set()
        self._undo: list[tuple[float, Undo]] = []
        self._ports: set[int] = set()
        self._drills: list[Drill] = []

    def run(self, run_id: str) -> None:
        try:
            self._run(run_id)
        except Exception:
            self._tell()
            raise

    def _run(self, run_id: str) -> None:
        chance, fixed = self._chance, self._chance.random() < 1 / 3
        size = chance.randint(3, 4) if fixed else chance.randint(4, 5)
        workers = {"min": size if fixed else 1, "max": size, "wait_s": 600}
        collectives, rows = chance.choice(["horovod", "torch"]), chance.choice([20, BATCH])
        mapping = paced(
            self._root, self._hosts.address, self._steps, workers, collectives=collectives, max_local_batch_size=rows
        )
        mapping["model"]["args"]["exact"] = _EXACT
        mapping["train"]["checkpoint"]["every"] = {"steps": chance.choice([5, 20, _NEVER])}
        mapping["train"]["evaluate"]["every"] = {"steps": chance.choice([15, _NEVER])}
        before = self._leftovers()
        with contextlib.ExitStack() as stack:
            drilled = stack.enter_context(drill(mapping, run_id))
            self._drills.append(drilled)
            drilled.until("training", generation=1)
            for _ in range(self._moments):
                self._wait(drilled)
                both = chance.random() < 1 / 3
                self._counts["two at once"] += both
                for _ in range(1 + both):
                    self._strike()
                if chance.random() < 1 / 20:
                    self._counts["the run is stopped and resumed"] += 1
                    self._stop(drilled)
                    drilled = stack.enter_context(drill(mapping, run_id))
                    self._drills.append(drilled)
            self._undo_until(float("inf"))
            self._hosts.mend()
            self._progress(drilled)
            self._stop(drilled)
        self._counts[f"runs with {collectives}, {'a fixed' if fixed else 'any'} number of workers"] += 1
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self._leftovers() <= before, _GONE_S, "end of the run")
        assert not (left := self._leftovers() - before), f"left behind: {sorted(left)}"
        check_exact(self._root, run_id, mapping, workers=size if fixed else 0)

    # What happens

    def _strike(self) -> None:
        """Something happens to a worker, or to one of the three hosts at least that nothing is wrong with."""
        whole = [host for host in self._hosts if host.name not in self._afflicted and host.node_id is not None]
        workers = [p for host in self._hosts for p in host.processes() if _name(p).startswith("ray::Worker")]
        kinds = ["kill a worker"] * 3 + ["stop a worker", "stop a worker", "slow a worker", "kill all workers"]
        kinds = kinds if workers else []
        if len(whole) > 2:
            kinds += ["cut a host", "cut a host", "part a host from the controller", "part two hosts"]
            kinds += ["part a host from its peers", "stop a host", "drain a host", "power a host off"]
        if not kinds:
            return
        kind = self._chance.choice(kinds)
        moment = self._chance.choice([True, False]) and not kind.startswith(("kill", "drain", "power"))
        self._counts[f"{kind} for a moment" if moment else kind] += 1
        self._counts[_FAULTS] += 1
        for_s = self._chance.uniform(0.1, 1.2) if moment else self._chance.choice([3.0, 6.0, 1e9])
        if kind.endswith(("worker", "workers")):
            undo = self._to_workers(kind, self._chance.choice(workers), workers)
        else:
            host, other = self._chance.sample(whole, 2)
            self._afflicted.add(host.name)
            undo = self._healed(host, self._to_host(kind, host, other))
        self._undo.append((time.monotonic() + for_s, undo))
        # That it was told to listen somewhere is seen while it does.
        self._ports |= _ports(psutil.CONN_LISTEN)

    def _to_workers(self, kind: str, victim: psutil.Process, workers: list[psutil.Process]) -> Undo:
        if kind == "slow a worker":
            slow = self._steps / f"slow-{victim.pid}"
            slow.touch()
            return lambda: slow.unlink(missing_ok=True)
        number = signal.SIGSTOP if kind == "stop a worker" else signal.SIGKILL
        for process in workers if kind == "kill all workers" else [victim]:
            _signal(process, number)
        return lambda: _signal(victim, signal.SIGCONT)

    def _to_host(self, kind: str, host: Host, other: Host) -> Undo:
        if kind == "cut a host":
            host.cut()
        elif kind == "part a host from the controller":
            host.part(self._hosts.head)
        elif kind == "part two hosts":
            host.part(other.address)
        elif kind == "part a host from its peers":
            for peer in self._hosts:
                if peer is not host:
                    host.part(peer.address)
        elif kind == "stop a host":
            host.stop()
            return host.resume
        elif kind == "drain a host":
            host.drain(60)
            return lambda: _restart(host)
        else:
            host.power_off()
            return host.start
        return host.heal

    def _healed(self, host: Host, undo: Undo) -> Undo:
        def healed() -> None:
            undo()
            self._afflicted.discard(host.name)

        return healed

    # When

    def _wait(self, drilled: Drill) -> None:
        """Until the next moment: often while the run recovers from the one before, or right after."""
        awaited, within_s = self._chance.choice([("generation formed", 3.0), ("training", 10.0), ("", 0.0)])
        if awaited:
            with contextlib.suppress(TimeoutError):
                drilled.until(awaited, timeout_s=within_s)
                self._counts[f"right after: {awaited}"] += 1
        self._undo_until(time.monotonic() + self._chance.choice([0.0, 0.2, 2.0]) * self._chance.random())

    def _undo_until(self, end: float) -> None:
        """Waits; meanwhile what is to be undone by then is."""
        for at, undo in sorted(self._undo, key=lambda one: one[0]):
            if at < end:
                if end < float("inf"):
                    time.sleep(max(0.0, at - time.monotonic()))
                self._undo.remove((at, undo))
                undo()
        if end < float("inf"):
            time.sleep(max(0.0, end - time.monotonic()))

    def _progress(self, drilled: Drill) -> None:
        """Waits for some steps."""
        for path in self._begun():
            path.unlink()
        wait_until(lambda: len(self._begun()) > 20 or not drilled.running, _LONG_S, "progress")

    def _begun(self) -> list[Path]:
        return [path for path in self._steps.iterdir() if re.fullmatch(r"\d+-\d+", path.name)]

    def _tell(self) -> None:
        """A failure, and what led to it."""
        sys.stderr.write(traceback.format_exc())
        for drilled in self._drills:
            drilled.join()
            sys.stderr.write("".join(f"{event}\n" for event in drilled.said))
            if drilled.error is not None:
                sys.stderr.write("".join(traceback.format_exception(drilled.error)))

    # What is left

    def _stop(self, drilled: Drill) -> None:
        drilled.stop()
        if not isinstance(drilled.error, StoppedError):
            raise AssertionError(f"the run did not stop as it should: {drilled.error!r}") from drilled.error
        lost: set[str] = set()
        for event in drilled.said:
            if event["event"] == "worker lost":
                lost.add(event["worker"])
            assert not lost.intersection(event.get("members", ())), "a lost worker takes part again"
        self._counts["workers lost"] += len(lost)
        self._counts["generations"] += len(drilled.events("generation formed"))
        self._counts["steps repeated"] += sum(e["steps_repeated"] for e in drilled.events("training again"))
        self._counts["checkpoints"] += len(drilled.events("checkpoint"))

    def _leftovers(self) -> set[str]:
        """What a run could leave: processes, actors, placement groups, threads, sockets, temporary files."""
        import ray
        from ray.util.placement_group import placement_group_table

        found = {f"{_name(p)} {p.pid} on {h.name}" for h in self._hosts for p in h.processes() if not _of_a_node(p)}
        # Ray's public list of actors needs its dashboard.
        found |= {f"actor {key}" for key, actor in ray._private.state.actors().items() if actor["State"] != "DEAD"}
        groups = placement_group_table()
        found |= {f"placement group {key}" for key, group in groups.items() if group["state"] != "REMOVED"}
        found |= {f"thread {thread.name}" for thread in threading.enumerate()}
        found |= {f"socket at port {port}" for port in _ports(psutil.CONN_LISTEN) | (_ports() & self._ports)}
        files = [*Path(tempfile.gettempdir()).rglob("*")]
        # This machine's shared memory is others' too: of what is there, what this process uses.
        files += [Path(used.path) for used in psutil.Process().memory_maps() if used.path.startswith("/dev/shm/")]
        files += [path for host in self._hosts for path in host.temporary_files()]
        # What a store writes aside before it is shown.
        files += [path for path in self._root.rglob(".mltrain-*") if path.name != ".mltrain-lock"]
        return found | {f"file {path}" for path in files if path.is_file()}


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Nobody else makes temporary files where this process makes them."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _ports(status: str | None = None) -> set[int]:
    """Ports of this process's connections in a state, or in any."""
    connections: list[Any] = psutil.Process().net_connections("tcp")
    return {c.laddr.port for c in connections if status is None or c.status == status}


def _restart(host: Host) -> None:
    host.power_off()
    host.start()


def _name(process: psutil.Process) -> str:
    # Ray calls an actor's process after its class.
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""


def _of_a_node(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        words = " ".join(process.cmdline()[:3])
        return _name(process).startswith(_OF_A_NODE) or "/ray/" in words or "ray.scripts" in words
    return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
