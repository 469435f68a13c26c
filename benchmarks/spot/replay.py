"""A fleet's hour on this machine: hosts in network namespaces come and go as its nodes did, and the real run trains."""

import bisect
import contextlib
import heapq
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.spot.simulator import Costs, Goodput, Notices, goodput, simulate
from benchmarks.spot.traces import Life, Trace
from mltrain.results import read_events, read_metrics
from mltrain.storage import open_store
from tests.support.datasets import make_dataset
from tests.support.drill import Drill, drill, paced
from tests.support.hosts import Host, Hosts, hosts

Event = dict[str, Any]

_GROW_S = 180.0
_LOOK_S = 0.05
# On a busy machine a Ray node may give up while it starts: then it is started again.
_AGAIN_S = 40.0
# Rounds of calibration; in each a host goes announced and another unannounced.
_ROUNDS = 2
_CHECKPOINT_S = 20.0
# A step's pause: workers that share this machine's processors should seldom wait for them.
_PACE_S = 0.1


@dataclass(frozen=True)
class Replayed:
    """What a replay found.

    Attributes:
        trace: as it was replayed: nodes begin when Ray had them.
        costs: measured beforehand, in another run.
        real: the run's goodput.
        simulated: the simulator's, of the same fleet with these costs.
        afterwards: likewise, with the costs that the replay itself had: a machine may be busier than it was before.
        node_start_s: of each node that came, from its host's start until Ray had it.
        stepped_s: seconds times nodes in the real run's steps by their own clocks, which do not see what is between two
            steps: a check of what its events say.
    """

    trace: Trace
    costs: Costs
    real: Goodput
    simulated: Goodput
    afterwards: Goodput
    node_start_s: Sequence[float]
    stepped_s: float


def replay(trace: Trace, notices: Notices, folder: Path, say: Callable[[str], None], seed: int = 0) -> Replayed:
    """Replays a (small, compressed) trace. Nodes that are there at its begin train already when it begins.

    Args:
        trace: of which at most as many nodes are there at a time as this machine can be hosts.
        notices: which losses are announced, when, and when nodes are left then (``leave_s``). Nothing is announced that
            does not happen.
        folder: for what the runs store.
        say: told how it goes.
        seed: of what is drawn.
    """
    make_dataset(folder, rows=20_000, shards=8)
    with hosts(trace.most, folder / "logs", cpus=1) as made:
        with _training(folder, made, "calibration") as run:
            costs = _calibrate(run, made, folder, say)
        say(f"measured: {costs}")
        made.mend()
        fleet = _Fleet(trace, notices, made, seed)
        fleet.prepare()
        with _training(folder, made, "replay") as run:
            _until_members(run, sum(life.begin_s == 0.0 for life in trace.lives))
            began = time.time()
            ups = fleet.play(say)
            ended = began + trace.duration_s
    store = open_store(folder)
    events = read_events(store, "replay")
    # A node that Ray never had was none.
    came = [life for life in trace.lives if life.begin_s == 0.0 or life.node in ups]
    happened = replace(trace, lives=tuple(replace(each, begin_s=ups.get(each.node, 0.0)) for each in came))
    real = goodput(events, happened.node_s, (began, ended))
    starts = [ups[life.node] - life.begin_s for life in trace.lives if life.node in ups]
    metrics = read_metrics(store, "replay")
    now = measured(events, (), metrics["train/step_s"].to_pylist(), costs)
    found, afterwards = (predicted(happened, each, notices, seed) for each in (costs, now))
    return Replayed(happened, costs, real, found, afterwards, starts, _stepped_s(events, metrics, began, ended))


def _stepped_s(events: Sequence[Event], metrics: pa.Table, began: float, ended: float) -> float:
    formed = sorted((e["time"], len(e["members"])) for e in events if e["event"] == "generation formed")
    total = 0.0
    for time_, step_s in zip(metrics["time"].to_pylist(), metrics["train/step_s"].to_pylist(), strict=True):
        if began < (at := time_.timestamp()) <= ended:
            total += step_s * formed[bisect.bisect(formed, (at, math.inf)) - 1][1]
    return total


def predicted(trace: Trace, costs: Costs, notices: Notices, seed: int) -> Goodput:
    """The simulator's goodput of a trace at whose begin the nodes that are there train already."""
    ahead_s = costs.place_s + costs.worker_start_s + costs.form_s + 10 * costs.react_s + costs.step_s
    lives = tuple(
        Life(life.node, life.begin_s + ahead_s if life.begin_s else 0.0, life.end_s + ahead_s, life.taken)
        for life in trace.lives
    )
    shifted = replace(trace, lives=lives, duration_s=trace.duration_s + ahead_s)
    found = simulate(shifted, replace(costs, node_start_s=0.0), notices, every_s=_CHECKPOINT_S, seed=seed)
    return goodput(found.events, trace.node_s, (ahead_s, shifted.duration_s))


@contextlib.contextmanager
def _training(folder: Path, made: Hosts, name: str) -> Iterator[Drill]:
    steps = folder / f"{name}-steps"
    steps.mkdir()
    mapping = paced(folder, made.address, steps, {"min": 1, "max": len(made)})
    mapping["model"]["args"]["pace_s"] = _PACE_S
    mapping["train"]["checkpoint"] = {"every": {"seconds": _CHECKPOINT_S}}
    with drill(mapping, name) as run:
        yield run
        run.stop()


def _until_members(run: Drill, count: int) -> None:
    """Waits until a generation of so many trains."""
    while len((formed := run.until("generation formed", _GROW_S))["members"]) < count:
        pass
    run.until("training", generation=formed["generation"])


class _Fleet:
    """Hosts that are a trace's nodes, each one node after the other."""

    def __init__(self, trace: Trace, notices: Notices, made: Hosts, seed: int) -> None:
        self._trace = trace
        self._notices = notices
        self._free = list(made)
        self._hosts: dict[str, Host] = {}
        self._starting: dict[str, tuple[Host, float]] = {}
        self._seed = seed

    def prepare(self) -> None:
        """Hosts whose nodes come later are off."""
        for life in self._trace.lives:
            if life.begin_s == 0.0:
                self._hosts[life.node] = self._free.pop(0)
        for host in self._free:
            host.power_off()

    def play(self, say: Callable[[str], None]) -> dict[str, float]:
        """Lets nodes come and go. Returns when Ray had those that came."""
        order, due = itertools.count(), list[tuple[float, int, str, Callable[[], None]]]()
        # The agent drains a node when the policy says so: what comes before that changes nothing.
        assert self._notices.leave_s is not None
        lead_s = min(self._notices.lead_s, self._notices.leave_s)
        for life in self._trace.lives:
            if life.begin_s > 0.0:
                due.append((life.begin_s, next(order), f"{life.node} comes", partial(self._come, life)))
            if life.taken:
                if self._notices.given(life.node, self._seed):
                    said = f"{life.node} is announced to go"
                    at_s = max(life.begin_s, life.end_s - lead_s)
                    due.append((at_s, next(order), said, partial(self._announce, life, life.end_s - at_s)))
                due.append((life.end_s, next(order), f"{life.node} goes", partial(self._go, life)))
        heapq.heapify(due)
        began, ups = time.monotonic(), dict[str, float]()
        while (now := time.monotonic() - began) < self._trace.duration_s:
            while due and due[0][0] <= now:
                at_s, _, what, act = heapq.heappop(due)
                say(f"{now:7.2f} s  {what} ({now - at_s:.2f} s late)")
                act()
            for node in self._look(say):
                ups[node] = time.monotonic() - began
                say(f"{ups[node]:7.2f} s  {node} is there")
            upcoming = due[0][0] if due else math.inf
            time.sleep(max(0.0, min(_LOOK_S, upcoming - (time.monotonic() - began))))
        return ups

    def _come(self, life: Life) -> None:
        host = self._hosts[life.node] = self._free.pop(0)
        self._starting[life.node] = (host, time.monotonic())
        host.start()

    def _look(self, say: Callable[[str], None]) -> Iterator[str]:
        """Nodes that Ray has by now."""
        for node, (host, since) in list(self._starting.items()):
            if host.node_id is not None:
                del self._starting[node]
                yield node
            elif time.monotonic() - since > _AGAIN_S:
                say(f"{node} is started again")
                self._starting[node] = (host, time.monotonic())
                host.power_off()
                host.start()

    def _announce(self, life: Life, lead_s: float) -> None:
        if life.node not in self._starting:
            self._hosts[life.node].drain(lead_s)

    def _go(self, life: Life) -> None:
        self._starting.pop(life.node, None)
        host = self._hosts.pop(life.node)
        host.power_off()
        self._free.append(host)


def _wait(host: Host) -> None:
    """Until Ray has the host's node."""
    since = time.monotonic()
    while host.node_id is None:
        time.sleep(_LOOK_S)
        if time.monotonic() - since > _AGAIN_S:
            since = time.monotonic()
            host.power_off()
            host.start()


def _calibrate(run: Drill, made: Hosts, folder: Path, say: Callable[[str], None]) -> Costs:
    """What things cost here: in each round a host leaves announced, another one without a word; both come back."""
    _until_members(run, len(made))
    placed = []
    for number in range(_ROUNDS):
        for kind in ("announced", "unannounced"):
            host = made[f"h{number % len(made) + 1}"]
            time.sleep(1.0)
            if kind == "announced":
                host.drain(30)
                _until_members(run, len(made) - 1)
            host.power_off()
            if kind == "unannounced":
                run.until("training again")
            say(f"calibration: {host.name} has gone, {kind}")
            host.start()
            _wait(host)
            up = time.monotonic()
            placed.append(run.until("worker started", _GROW_S)["at"] - up)
            _until_members(run, len(made))
    time.sleep(_CHECKPOINT_S + 1.0)
    run.stop()
    store = open_store(folder)
    steps = read_metrics(store, "calibration")["train/step_s"].to_pylist()
    return measured(read_events(store, "calibration"), placed, steps, Costs(work_s=0.0, leave_s=0.0))


def measured(events: Sequence[Event], place_s: Sequence[float], step_s: Sequence[float], known: Costs) -> Costs:
    """Costs as a run's events and steps have them, medians each; of what did not happen, those known."""
    starts, formed = dict[str, float](), dict[int, float]()
    broke: float | None = None
    found: dict[str, list[float]] = {"place_s": list(place_s), "step_s": list(step_s)}
    for event in sorted(events, key=lambda event: event["time"]):
        kind, now = event["event"], event["time"]
        if kind == "worker started":
            starts[event["worker"]] = now
        elif kind == "worker ready" and event["worker"] in starts and formed:
            # Of those that came while others trained: the first ones start all at the same time.
            found.setdefault("worker_start_s", []).append(now - starts[event["worker"]])
        elif kind == "generation formed":
            formed[event["generation"]] = now
        elif kind == "training" and len(formed) > 1:
            found.setdefault("form_s", []).append(now - formed[event["generation"]])
        elif kind == "worker silent":
            broke = now
        elif kind == "generation ended":
            if broke is not None:
                found.setdefault("abort_s", []).append(now - broke)
            broke = None
        elif kind == "checkpoint":
            found.setdefault("stall_s", []).append(event["stall_s"])
            found.setdefault("write_s", []).append(event["write_s"])
    medians = {name: statistics.median(values) for name, values in found.items() if values}
    return replace(known, **medians)
