"""A run on a fleet that comes and goes, in simulated time, decided by the library's own policies.

What the library would do is asked of it: when a node that goes is left (`mltrain.spot.policy`), who takes part
(`mltrain.train.membership`), which nodes are held back (`mltrain.train.nodes`) and when to make a checkpoint
(`mltrain.train.interval`). What things cost is given. The run
leaves the events of a real one, and where its nodes' seconds went follows from them alike (`mltrain.results.spent`).
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.spot.traces import Trace
from mltrain.results.spent import Spent, spent
from mltrain.spot import Kind, Notice, decide
from mltrain.train import membership
from mltrain.train.interval import checkpoint_interval_s
from mltrain.train.membership import Action, Generation, Limits, WorkerState, WorkerStatus
from mltrain.train.nodes import Ledger


@dataclass(frozen=True)
class Costs:
    """What things cost, in seconds. `benchmarks/goodput.py` says where its figures come from.

    Attributes:
        node_start_s: from a node's begin until Ray has it: the cloud's, and in no bound.
        place_s: until a worker is started on it.
        worker_start_s: from then until it could take part.
        react_s: from a fact to the controller's decision.
        leave_s: from the end of a generation's last step until all have left it.
        abort_s: from the decision to break a generation off until all have left it.
        form_s: from a generation's plan to its first step.
        interval_s: between heartbeats.
        deadline_s: without one, after which a worker is silent.
        give_up_s: after which a silent worker is given up.
        step_s: a step's part that does not depend on the number of workers.
        work_s: a step's part that they share.
        stall_s: for which a checkpoint holds the training up.
        write_s: from then until it is durable.
        restore_s: to load one.
        driver_start_s: from a driver's loss until another one has begun.
    """

    node_start_s: float = 60.0
    place_s: float = 1.0
    worker_start_s: float = 10.0
    react_s: float = 0.05
    leave_s: float = 0.05
    abort_s: float = 0.05
    form_s: float = 0.4
    interval_s: float = 0.5
    deadline_s: float = 2.0
    give_up_s: float = 2.0
    step_s: float = 0.02
    work_s: float = 8.0
    stall_s: float = 0.5
    write_s: float = 10.0
    restore_s: float = 5.0
    driver_start_s: float = 60.0


@dataclass(frozen=True)
class Notices:
    """What the cloud says beforehand.

    Attributes:
        lead_s: before a node goes.
        missing: share of losses without a notice.
        false_s: mean time of one node between notices that nothing follows; infinity if there are none.
        leave_s: before the end that a node is left, or at the notice if that comes later; by default when the library's
            policy says so.
        again_s: after the end that did not come, until the node can be used again.
    """

    lead_s: float = 120.0
    missing: float = 0.0
    false_s: float = math.inf
    leave_s: float | None = None
    again_s: float = 30.0

    def given(self, node: str, seed: int) -> bool:
        """Whether there is one of this node's end."""
        return random.Random(f"{seed}/{node}").random() >= self.missing


@dataclass(frozen=True)
class Goodput:
    """What came of a fleet's time, in seconds times nodes.

    Attributes:
        bound_s: nodes' time less their start: more cannot be had.
        spent: what the run's nodes did; idle also before a worker was started there, and after it had left.
        generations: memberships formed.
        rollbacks: times that the state came from a checkpoint.
        events: of the run.
    """

    bound_s: float
    spent: Spent
    generations: int
    rollbacks: int
    events: Sequence[dict[str, Any]] = field(repr=False)

    @property
    def share(self) -> float:
        """Training over the bound."""
        return self.spent.training / self.bound_s


def goodput(events: Sequence[dict[str, Any]], bound_s: float, between: tuple[float, float] | None = None) -> Goodput:
    """Of a run, real or simulated, whose nodes were there for so long; of a part of it, if two times are given."""
    if between is None:
        total = _spent(events)
    else:
        total, before = _spent(_until(events, between[1])), _spent(_until(events, between[0]))
        for name, seconds in vars(before).items():
            setattr(total, name, getattr(total, name) - seconds)
        events = [event for event in events if between[0] < event["time"] <= between[1]]
    total.idle += bound_s - total.total
    generations = sum(event["event"] == "generation formed" for event in events)
    rollbacks = sum(event["event"] == "state lost" for event in events)
    return Goodput(bound_s, total, generations, rollbacks, events)


def _spent(events: Iterable[dict[str, Any]]) -> Spent:
    total = Spent()
    for each in spent(events).values():
        total.add(each)
    return total


def _until(events: Sequence[dict[str, Any]], time: float) -> list[dict[str, Any]]:
    """What had happened then; the last event only says that it was then."""
    found = [event for event in events if event["time"] <= time]
    return [*found, {"attempt": found[-1]["attempt"], "time": time, "event": "then"}]


def bound_s(trace: Trace, node_start_s: float) -> float:
    """Seconds times nodes that could train at best."""
    return sum(max(0.0, life.end_s - life.begin_s - node_start_s) for life in trace.lives)


def simulate(
    trace: Trace,
    costs: Costs,
    notices: Notices,
    *,
    every_s: float | None = None,
    driver_lost_s: float = math.inf,
    seed: int = 0,
) -> Goodput:
    """A run on the whole fleet, a worker a node.

    Args:
        trace: the fleet.
        costs: of everything.
        notices: of losses.
        every_s: between checkpoints; by default the `auto` interval's.
        driver_lost_s: mean time between losses of the controller.
        seed: of what is drawn: when in its heartbeat a node goes, which losses have no notice, false notices.
    """
    run = _Run(trace, costs, notices, every_s, seed)
    run.play(driver_lost_s)
    return goodput(run.events, bound_s(trace, costs.node_start_s))


@dataclass
class _Node:
    name: str
    taken: bool
    gone: bool = False
    noticed: bool = False
    draining: bool = False


@dataclass
class _Worker:
    id: str
    node: _Node
    state: WorkerState = WorkerState.WARMING
    rank: int | None = None
    generation: int = 0

    @property
    def there(self) -> bool:
        return self.state in (WorkerState.READY, WorkerState.JOINED) and not self.node.gone


@dataclass
class _Going:
    """The generation under way. Its steps are counted from ``since``, when ``step`` were done; None: it stands."""

    generation: Generation
    step_s: float
    step: int
    since: float | None = None
    stopping: bool = False
    aborted: bool = False
    writing_until: float = -math.inf
    asked: bool = False

    def steps(self, now: float) -> int:
        return self.step + (0 if self.since is None else max(0, math.floor((now - self.since) / self.step_s + 1e-9)))

    def boundary(self, now: float) -> float:
        """The end of the step after the one under way: what is asked for now rides along with that one."""
        assert self.since is not None
        return self.since + (self.steps(max(now, self.since)) - self.step + 2) * self.step_s


class _Run:
    def __init__(self, trace: Trace, costs: Costs, notices: Notices, every_s: float | None, seed: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._trace = trace
        self._costs = costs
        self._notices = notices
        self._every_s = every_s
        self._seed = seed
        self._drawn = random.Random(seed)
        self._now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._limits = Limits(1, trace.most, math.inf)
        self._nodes: dict[str, _Node] = {}
        self._attempt = 0
        self._saved_step = 0
        self._rollbacks = 0
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        self._attempt += 1
        self._workers: dict[str, _Worker] = {}
        self._ledger = Ledger()
        self._going: _Going | None = None
        self._generations = self._started = 0
        self._step = self._saved_step
        self._saved_at = self._now
        self._cost_s = 0.0
        self._fresh = True
        self._lost_at: float | None = None
        self._void = 0
        self._alive = True
        self._say("run started", step=self._step)

    def play(self, driver_lost_s: float) -> None:
        for life in self._trace.lives:
            node = _Node(life.node, life.taken)
            self._at(life.begin_s + self._costs.node_start_s, partial(self._up, node))
            self._at(life.end_s, partial(self._gone, node))
            if life.taken and self._notices.given(life.node, self._seed):
                self._announce(node, max(life.begin_s, life.end_s - self._notices.lead_s), life.end_s)
            false_at = life.begin_s + self._costs.node_start_s
            while (false_at := false_at + _wait(self._drawn, self._notices.false_s)) < life.end_s:
                self._announce(node, false_at, false_at + self._notices.lead_s, false=True)
        lost_at = 0.0
        while (lost_at := lost_at + _wait(self._drawn, driver_lost_s)) < self._trace.duration_s:
            self._at(lost_at, self._driver_lost)
        while self._queue and self._queue[0][0] <= self._trace.duration_s:
            self._now, _, act = heapq.heappop(self._queue)
            act()
        self._now = self._trace.duration_s
        self._say("run stopped")

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (time, next(self._order), act))

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        """Later, unless the attempt ends before."""
        attempt = self._attempt

        def later() -> None:
            if self._alive and self._attempt == attempt:
                act()

        self._at(self._now + seconds, later)

    def _say(self, kind: str, **more: Any) -> None:
        self.events.append({"attempt": self._attempt, "time": self._now, "event": kind, **more})

    # Nodes

    def _up(self, node: _Node) -> None:
        if not node.gone:
            self._nodes[node.name] = node
            self._after(self._costs.place_s, self._decide)

    def _announce(self, node: _Node, at_s: float, end_s: float, *, false: bool = False) -> None:
        def notice() -> None:
            node.noticed = True

        def drain() -> None:
            node.draining = True
            self._decide()

        def again() -> None:
            node.noticed = node.draining = False
            self._decide()

        self._at(at_s, notice)
        if self._notices.leave_s is not None:
            self._at(max(at_s, end_s - self._notices.leave_s), drain)
        else:
            said = Notice("simulated", node.name, Kind.LEAVING, "goes", end_s)
            self._at(at_s + (decide([said], at_s).again_s or 0.0), drain)
        if false:
            self._at(end_s + self._notices.again_s, again)

    def _gone(self, node: _Node) -> None:
        node.gone = True
        self._nodes.pop(node.name, None)
        for worker in [worker for worker in self._workers.values() if worker.node is node]:
            if not node.taken:
                continue
            since_s = self._drawn.random() * self._costs.interval_s
            if self._going is not None and worker.id in self._going.generation.members:
                # The others wait for it in the step under way.
                self._going.step, self._going.since = self._going.steps(self._now), None
            silent_s = self._costs.deadline_s + self._costs.react_s
            self._after(silent_s - since_s, partial(self._silent, worker, silent_s))

    def _silent(self, worker: _Worker, silent_s: float) -> None:
        if worker.id not in self._workers:
            return
        self._say("worker silent", worker=worker.id, silent_s=silent_s)
        worker.state = WorkerState.SUSPECT
        self._ledger.silent(worker.node.name, self._now)
        self._after(self._costs.give_up_s, lambda: self._end(worker, "worker lost"))
        self._decide()

    def _end(self, worker: _Worker, how: str) -> None:
        if self._workers.pop(worker.id, None) is not None:
            self._say(how, worker=worker.id, generation=None)
            self._decide()

    def _driver_lost(self) -> None:
        if not self._alive:
            return
        self._say("driver lost")
        self._alive, self._rollbacks = False, self._rollbacks + 1
        self._at(self._now + self._costs.driver_start_s, self._driver_back)

    def _driver_back(self) -> None:
        self._begin_attempt()
        self._decide()

    # Decisions

    def _decide(self) -> None:
        if not self._alive:
            return
        held = self._ledger.held(self._now)
        facts = [
            WorkerStatus(w.id, w.node.name, w.state, w.rank, w.node.draining, w.node.name in held)
            for w in self._workers.values()
        ]
        going = self._going
        running = None if going is None else going.generation
        plan = membership.plan(running, facts, self._limits, 0.0, fresh=self._fresh)
        self._start(plan.start, held)
        for name in plan.release:
            self._say("worker released", worker=name)
            del self._workers[name]
        if plan.action is Action.SHRINK and going is not None:
            self._abort(going)
        elif plan.action is Action.REGROUP and going is not None:
            self._stop(going)
        elif plan.action is Action.FORM:
            self._form(plan.members)

    def _start(self, count: int, held: frozenset[str]) -> None:
        taken = {worker.node.name for worker in self._workers.values()}
        free = [n for n in self._nodes.values() if not n.noticed and n.name not in taken | held]
        for node in free[:count]:
            self._started += 1
            worker = _Worker(f"worker-{self._attempt}-{self._started}", node)
            self._workers[worker.id] = worker
            self._say("worker started", worker=worker.id, market="spot")
            self._after(self._costs.worker_start_s, partial(self._ready, worker))

    def _ready(self, worker: _Worker) -> None:
        if worker.id in self._workers and not worker.node.gone:
            worker.state = WorkerState.READY
            self._say("worker ready", worker=worker.id)
            self._after(self._costs.react_s, self._decide)

    def _form(self, members: tuple[str, ...]) -> None:
        held = any(self._workers[name].generation == self._generations > 0 for name in members)
        self._generations += 1
        if not held:
            if self._lost_at is not None:
                self._void += self._step - self._saved_step
                self._rollbacks += 1
                self._say("state lost", step=self._saved_step)
            self._step = self._saved_step
        for rank, name in enumerate(members):
            worker = self._workers[name]
            worker.state, worker.rank, worker.generation = WorkerState.JOINED, rank, self._generations
        step_s = self._costs.step_s + self._costs.work_s / len(members)
        going = self._going = _Going(Generation(self._generations, members), step_s, self._step)
        self._say("generation formed", generation=self._generations, members=list(members), reason="")
        restore_s = self._costs.restore_s if not held and self._step else 0.0
        self._after(self._costs.form_s + restore_s, partial(self._train, going))

    def _train(self, going: _Going) -> None:
        if self._going is not going or going.aborted or self._broken(going):
            return
        going.since = self._now
        self._say("training", generation=going.generation.number, step=going.step)
        self._after(going.step_s, partial(self._stepped, going))
        self._wait_for_checkpoint(going)
        self._decide()

    def _stepped(self, going: _Going) -> None:
        if self._going is going and going.since is not None and self._lost_at is not None:
            downtime_s = self._now - self._lost_at
            self._say("training again", step=self._step + 1, downtime_s=downtime_s, steps_repeated=self._void)
            self._lost_at, self._void = None, 0

    def _broken(self, going: _Going) -> bool:
        return any(name not in self._workers or not self._workers[name].there for name in going.generation.members)

    def _stop(self, going: _Going) -> None:
        """All ranks stop after the same step; a checkpoint on its way is waited for."""
        if not going.stopping and going.since is not None:
            going.stopping = True
            self._after(going.boundary(self._now + self._costs.react_s) - self._now, partial(self._stopped, going))

    def _stopped(self, going: _Going) -> None:
        if self._going is not going or going.since is None:
            return
        going.step, going.since = going.steps(self._now), None
        self._say("generation ended", generation=going.generation.number)
        if all(self._workers[name].node.draining for name in going.generation.members):
            # Nobody stays.
            write_s = self._costs.stall_s + self._costs.write_s
            self._after(write_s, partial(self._durable, going, going.step))
        else:
            write_s = max(0.0, going.writing_until - self._now)
        self._after(write_s + self._costs.leave_s, partial(self._left, going))

    def _abort(self, going: _Going) -> None:
        if self._lost_at is None:
            self._lost_at, self._void = self._now, self._void + 1
        if not going.aborted:
            going.aborted = True
            going.step, going.since = going.steps(self._now), None
            self._say("generation ended", generation=going.generation.number)
            self._after(self._costs.abort_s, partial(self._left, going))

    def _left(self, going: _Going) -> None:
        if self._going is not going:
            return
        self._step, self._going = going.step, None
        for worker in self._workers.values():
            if worker.state is WorkerState.JOINED:
                worker.state = WorkerState.READY
        self._fresh = not any(w.generation == self._generations and w.there for w in self._workers.values())
        self._decide()

    # Checkpoints

    def _interval_s(self) -> float:
        if self._every_s is not None:
            return self._every_s
        return checkpoint_interval_s(self._cost_s, self._rollbacks, self._now)

    def _wait_for_checkpoint(self, going: _Going) -> None:
        due_s = self._saved_at + self._interval_s() - self._now
        self._after(max(0.0, due_s) + self._costs.react_s, partial(self._checkpoint, going))

    def _checkpoint(self, going: _Going) -> None:
        if self._going is not going or going.since is None or going.stopping or going.asked:
            return
        going.asked = True
        self._after(going.boundary(self._now) - self._now, partial(self._copied, going))

    def _copied(self, going: _Going) -> None:
        if self._going is not going or going.since is None:
            return
        going.step = going.steps(self._now)
        if not going.stopping:
            going.since = self._now + self._costs.stall_s
        step, taken_s = going.step, self._costs.stall_s + self._costs.write_s
        going.writing_until = self._now + taken_s
        self._after(taken_s, partial(self._durable, going, step))

    def _durable(self, going: _Going, step: int) -> None:
        if self._going is going and not going.aborted and not self._broken(going):
            going.asked = False
            self._commit(step)
            self._wait_for_checkpoint(going)

    def _commit(self, step: int) -> None:
        # The interval counts from when a checkpoint was taken.
        self._saved_step, self._saved_at = step, self._now - self._costs.write_s - self._costs.stall_s
        self._cost_s = self._costs.stall_s
        self._say("checkpoint", step=step, stall_s=self._costs.stall_s, waited_s=0.0, write_s=self._costs.write_s)


def _wait(drawn: random.Random, mean_s: float) -> float:
    return math.inf if math.isinf(mean_s) else drawn.expovariate(1.0 / mean_s)


def restarting(
    trace: Trace, costs: Costs, restart_s: float, *, every_s: float | None = None, growth: bool = False
) -> Goodput:
    """The same fleet where every loss restarts the training from its last checkpoint, as job-level recovery does.

    Losses of the same moment are one; a restart that is hit by a loss begins anew. Notices help nothing.

    Args:
        restart_s: from a loss to the first step.
        growth: nodes that come restart it too (after a checkpoint); otherwise they join at no cost at all.
    """
    ready_s = costs.node_start_s + costs.place_s + costs.worker_start_s
    changes: dict[float, list[int]] = {}
    for life in trace.lives:
        if life.begin_s + ready_s < life.end_s:
            changes.setdefault(life.begin_s + ready_s, [0, 0])[0] += 1
            changes.setdefault(life.end_s, [0, 0])[life.taken] -= 1
    total, now, nodes, restarts = Spent(), 0.0, 0, 0
    begins, saved_at, unsaved = 0.0, 0.0, 0.0
    for time in sorted(changes):
        left = min(time, max(now, begins))
        total.pauses += nodes * (left - now)
        now = left
        while now < time:
            interval = every_s or checkpoint_interval_s(costs.stall_s, restarts, now)
            if saved_at + interval <= now:
                stall = min(costs.stall_s, time - now)
                total.pauses += nodes * stall
                now += stall
                if stall == costs.stall_s:
                    saved_at, unsaved = now, 0.0
                continue
            until = min(time, saved_at + interval)
            unsaved += nodes * (until - now)
            total.training += nodes * (until - now)
            now = until
        came, went = changes[time]
        nodes += came + went
        if went and time < trace.duration_s:
            total.move(unsaved, "training", "repeated")
            restarts, begins, saved_at, unsaved = restarts + 1, time + restart_s, time + restart_s, 0.0
        elif came and growth:
            begins = saved_at = max(begins, time + restart_s)
            unsaved = 0.0
    bound = bound_s(trace, costs.node_start_s)
    total.start_up = sum(
        min(costs.place_s + costs.worker_start_s, max(0.0, life.end_s - life.begin_s - costs.node_start_s))
        for life in trace.lives
    )
    total.idle += bound - total.total
    return Goodput(bound, total, restarts, restarts, ())
