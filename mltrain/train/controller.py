"""The controller of one training: facts about workers in, a plan out, and the plan carried out. It holds no tensors."""

import logging
import queue
import secrets
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mltrain.collectives import Membership, RendezvousServer
from mltrain.errors import MltrainError, TrainingError
from mltrain.train import membership
from mltrain.train.control import Ending, Outcome, Row, Verdict
from mltrain.train.link import Hub, Received
from mltrain.train.membership import Action, Generation, Limits, Plan, WorkerState, WorkerStatus
from mltrain.train.placement import Slot, WorkerSource, resources
from mltrain.train.record import RunRecord
from mltrain.train.signals import StopRequest
from mltrain.train.spec import Spec, Task
from mltrain.train.worker import Contact, Worker

if TYPE_CHECKING:
    from mltrain.train.checkpoints import Checkpoint
    from mltrain.train.lease import Lease

_LOG = logging.getLogger(__name__)

_TICK_S = 0.1
# A survivor that has not left an aborted generation by then is killed and replaced.
_LEAVE_S = 2.0
# Workers that are not there after so long are worth a line.
_PATIENT_S = 5.0
# Workers that died one after another before they were ready: something is wrong that starting more does not mend.
_FAILED_STARTS = 5
# Generations that ended one after another before a step was done: something is wrong that forming more does not mend.
_FRUITLESS = 10
# A worker that was started less than this ago is waited for when the first generation forms.
_SETTLE_S = 15.0
# A worker exits when it has not heard of its controller for so many heartbeat deadlines.
_SILENCE = 10


@dataclass
class _Member:
    """What the controller holds of a worker."""

    id: str
    slot: Slot
    actor: Any
    started: float
    state: WorkerState = WorkerState.PLACING
    node: str | None = None
    place: dict[str, Any] | None = None
    rank: int | None = None
    step: int = -1
    output: str = "Ray's logs"

    def status(self, draining: frozenset[str]) -> WorkerStatus:
        return WorkerStatus(self.id, self.node, self.state, self.rank, self.slot.id in draining)


@dataclass(frozen=True)
class _Returned:
    """An actor's call ended."""

    worker: str
    call: str
    generation: int
    result: Any
    error: BaseException | None


class _Running:
    """The generation under way."""

    def __init__(self, generation: Generation, server: RendezvousServer) -> None:
        self.generation = generation
        self.server = server
        self.outcomes: dict[str, Outcome | None] = {}
        self.left: set[str] = set()
        self.written: set[str] = set()
        self.aborted_at: float | None = None
        self.stop_asked = False
        self.checkpoint_asked = False

    @property
    def waiting_for(self) -> list[str]:
        return [member for member in self.generation.members if member not in self.outcomes]


class Controller:
    """Keeps a training going while workers come and go.

    Args:
        spec: of the run.
        record: of the run.
        source: of slots.
        stop: asks for an orderly end.
        lease: on the run.
    """

    def __init__(
        self, spec: Spec, record: RunRecord, source: WorkerSource, stop: StopRequest, run_id: str, lease: "Lease"
    ) -> None:
        import ray

        self._ray = ray
        self._spec = spec
        self._record = record
        self._source = source
        self._stop = stop
        self._lease = lease
        self._workers_config = spec.config.train.workers
        self._limits = Limits(self._workers_config.min, self._workers_config.max, self._workers_config.wait_s)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._host = ray.util.get_node_ip_address()
        secret = secrets.token_hex(16)
        self._hub = Hub(self._host, secret, self._inbox)
        beat = spec.config.train.heartbeat
        self._deadline_s = beat.interval_s * beat.misses
        self._contact = Contact(
            self._hub.address, secret, run_id, lease.driver_epoch, beat.interval_s, self._deadline_s * _SILENCE
        )
        self._remote = ray.remote(Worker)
        self._spec_ref = ray.put(spec)
        self._members: dict[str, _Member] = {}
        self._running: _Running | None = None
        self._numbers = 0
        self._generations = 0
        self._failed_starts = 0
        self._fruitless = 0
        self._short_since: float | None = None
        self._said_waiting = False
        self._lost_at: float | None = None
        self._void_steps = 0
        self._restoring: Checkpoint | None = None
        self._failure: Outcome | None = None
        self._fresh = True
        self._halting = False
        self._told = 0

    def run(self) -> Outcome:
        """Trains to the end or to a stop."""
        self._told = self._record.decided
        try:
            while True:
                self._take_events()
                self._watch()
                outcome = self._failure or self._finished_generation() or self._stopping()
                if outcome is None:
                    plan = self._plan()
                    self._start_workers(plan.start)
                    outcome = self._apply(plan)
                if outcome is not None:
                    if outcome.ending is Ending.FAILED:
                        self._finish_failed()
                    return outcome
        finally:
            self._tear_down()

    # Facts

    def _take_events(self) -> None:
        """Waits a moment for something to happen, then takes everything that has."""
        try:
            self._take(self._inbox.get(timeout=_TICK_S))
            while True:
                self._take(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _take(self, event: Any) -> None:
        if isinstance(event, Received):
            member = self._members.get(event.worker)
            if member is None:
                return
            if event.message is None:
                self._lose(member, "its connection ended")
            else:
                self._message(member, event.message)
        elif isinstance(event, _Returned):
            self._returned(event)

    def _message(self, member: _Member, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "hello":
            if member.state is WorkerState.PLACING:
                member.state = WorkerState.WARMING
            member.output = f"{message['host']}:{message['output']}"
            self._record.event(
                "worker placed", worker=member.id, host=message["host"], pid=message["pid"], output=message["output"]
            )
            return
        if self._running is None:
            return
        current = self._running.generation
        if message["generation"] != current.number or member.id not in current.members:
            return
        if kind == "rows":
            for step, epoch, generation, values in message["rows"]:
                self._record.row(Row(step, epoch, generation, values))
        elif kind == "formed":
            self._record.event("training", generation=current.number, step=message["step"], timings=message["timings"])
        elif kind == "stepping":
            self._recovered(message["step"])
        elif kind == "left":
            self._running.left.add(member.id)
        elif kind == "written":
            self._running.written.add(member.id)
        else:
            self._record.handle(message)
            self._announce_decisions()
            if kind == "part":
                self._running.checkpoint_asked = False

    def _returned(self, event: _Returned) -> None:
        member = self._members.get(event.worker)
        if member is None:
            return
        if event.error is not None:
            self._lose(member, f"{event.call} failed: {type(event.error).__name__}: {_first_line(event.error)}")
        elif event.call == "warm":
            self._warmed(member, event.result)
        elif event.call == "run" and self._running is not None and event.generation == self._running.generation.number:
            self._running.outcomes[member.id] = event.result
            member.step = event.result.step
            if event.result.ending is not Ending.STOPPED and event.result.ending is not Ending.FINISHED:
                # Without this rank the others cannot go on.
                self._abort_generation()

    def _warmed(self, member: _Member, result: Any) -> None:
        if isinstance(result, Outcome):
            # For a reason that another worker would share.
            self._failure = result
            return
        member.place = result
        member.node = result["node"]
        member.state = WorkerState.READY
        self._failed_starts = 0
        self._record.event(
            "worker ready", worker=member.id, node=member.node, pid=result["pid"], warm_s=result["warm_s"]
        )

    def _watch(self) -> None:
        """Heartbeats: an overdue worker takes no part; one that left its generation too late is replaced."""
        now = time.monotonic()
        for member in list(self._members.values()):
            heard = self._hub.heard(member.id)
            if heard is None or member.state in (WorkerState.PLACING, WorkerState.WARMING):
                continue
            overdue = now - heard > self._deadline_s
            if overdue and member.state is not WorkerState.SUSPECT:
                self._record.event("worker silent", worker=member.id, silent_s=now - heard)
                member.state = WorkerState.SUSPECT
            elif not overdue and member.state is WorkerState.SUSPECT:
                in_generation = self._running is not None and member.id in self._running.waiting_for
                member.state = WorkerState.JOINED if in_generation else WorkerState.READY
            if now - heard > self._deadline_s + _LEAVE_S:
                self._lose(member, f"silent for {now - heard:.1f} s")
        running = self._running
        if running is not None and running.aborted_at is not None and now - running.aborted_at > _LEAVE_S:
            for worker in running.waiting_for:
                if worker in self._members:
                    self._lose(self._members[worker], f"did not leave its generation within {_LEAVE_S:g} s")

    # Decisions

    def _plan(self) -> Plan:
        now, draining = time.monotonic(), self._source.withdrawn()
        statuses = []
        for member in self._members.values():
            status = member.status(draining)
            if status.state is WorkerState.PLACING and now - member.started < _SETTLE_S:
                status = WorkerStatus(status.id, status.node, WorkerState.WARMING, status.rank, status.draining)
            statuses.append(status)
        self._release_drained(draining)
        available = sum(s.state in (WorkerState.READY, WorkerState.JOINED) and not s.draining for s in statuses)
        if available >= self._limits.min:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        waited = 0.0 if self._short_since is None else now - self._short_since
        self._say_waiting(waited, available)
        current = None if self._running is None else self._running.generation
        return membership.plan(current, statuses, self._limits, waited, fresh=self._fresh)

    def _apply(self, plan: Plan) -> Outcome | None:
        if plan.action is Action.SHRINK:
            self._abort_generation()
        elif plan.action is Action.REGROUP:
            self._ask_to_stop(checkpoint=False)
        elif plan.action is Action.FORM:
            self._form(plan.members, plan.reason)
        elif plan.action is Action.STOP:
            return self._give_up(plan.reason)
        elif plan.action is Action.CONTINUE and self._running is not None:
            self._ask_for_checkpoint(self._running)
        return None

    def _stopping(self) -> Outcome | None:
        """An orderly end was asked for: stop all ranks after a step, with a checkpoint."""
        if not (self._stop.requested or self._record.verdict is Verdict.STOP):
            return None
        if self._running is not None:
            self._ask_to_stop(checkpoint=True)
            return None
        return self._give_up(self._stop.reason)

    def _give_up(self, reason: str) -> Outcome | None:
        """No generation can train: save what the survivors hold, and stop."""
        holders = [
            s for m in self._members.values() if m.step >= 0 and (s := m.status(frozenset())).state is WorkerState.READY
        ]
        if holders and not self._halting:
            self._halting = True
            self._form(membership.rank_order(holders), f"saving before the end: {reason}", halt=True)
            return None
        return Outcome(Ending.STOPPED, self._record.recorded, reason=reason)

    def _finished_generation(self) -> Outcome | None:
        """Once every member's call has ended, and what it said before has arrived: what that means."""
        running = self._running
        if running is None or running.waiting_for or (running.outcomes.keys() & self._members.keys()) - running.left:
            return None
        outcomes = [outcome for outcome in running.outcomes.values() if outcome is not None]
        failed = [outcome for outcome in outcomes if outcome.ending is Ending.FAILED]
        if failed:
            return failed[0]
        self._end_generation(running)
        first = running.outcomes.get(running.generation.members[0])
        if first is not None and first.ending is Ending.FINISHED:
            return first
        stopped = [outcome for outcome in outcomes if outcome.ending is Ending.STOPPED]
        if stopped and (self._halting or self._stop.requested or self._record.verdict is Verdict.STOP):
            return stopped[0]
        damaged = [outcome for outcome in outcomes if outcome.ending is Ending.DAMAGED]
        if damaged and self._restoring is not None:
            self._record.set_aside(self._restoring.step, damaged[0].reason)
            self._record.restore_point()
        return self._fruitless_end(running, outcomes)

    def _fruitless_end(self, running: _Running, outcomes: list[Outcome]) -> Outcome | None:
        """A generation that nobody was lost from and that yet did no step is formed again, but not for ever."""
        if len(outcomes) == len(running.generation.members):
            self._fruitless += 1
        if self._fruitless < _FRUITLESS:
            return None
        error = TrainingError(
            f"{_FRUITLESS} generations in a row ended before a step was done; the last: {outcomes[0].reason}"
        )
        return Outcome(Ending.FAILED, self._record.recorded, error)

    # Actions

    def _form(self, members: tuple[str, ...], reason: str, *, halt: bool = False) -> None:
        self._generations += 1
        number = self._generations
        server = RendezvousServer(self._host)
        generation = Generation(number, members)
        self._running = _Running(generation, server)
        self._record.begin_generation(number, list(members), reason)
        places = [self._members[worker].place or {} for worker in members]
        seats = membership.seats([str(place["node"]) for place in places])
        holders = [worker for worker in members if self._members[worker].step >= 0]
        self._restoring = None if holders else self._record.newest
        if not holders:
            self._rewind(0 if self._restoring is None else self._restoring.step)
        for rank, worker in enumerate(members):
            member, place, seat = self._members[worker], places[rank], seats[rank]
            joined = Membership(
                number, rank, len(members), seat.local_rank, seat.local_size, seat.cross_rank, seat.cross_size,
                place["address"], place["interface"], server.address,
            )  # fmt: skip
            task = Task(
                recorded=self._record.recorded,
                decided=self._record.decided,
                halt=halt,
                restore=self._restoring if rank == 0 else None,
            )
            member.state, member.rank = WorkerState.JOINED, rank
            self._call(member, "run", number, member.actor.run.remote(joined, task))

    def _rewind(self, step: int) -> None:
        """Nobody holds the run's state any more: it goes on from ``step``, and what was done since is done again."""
        if self._lost_at is not None:
            self._void_steps += self._record.recorded - step
        self._record.recorded = step

    def _abort_generation(self) -> None:
        running = self._running
        if running is None or running.aborted_at is not None:
            return
        running.aborted_at = time.monotonic()
        for worker in running.waiting_for:
            self._command(worker, "abort")

    def _ask_to_stop(self, *, checkpoint: bool) -> None:
        running = self._running
        if running is not None and not running.stop_asked:
            running.stop_asked = True
            for worker in running.generation.members:
                self._command(worker, "stop", checkpoint=checkpoint)

    def _ask_for_checkpoint(self, running: _Running) -> None:
        if not running.checkpoint_asked and self._record.checkpoint_due():
            running.checkpoint_asked = True
            self._command(running.generation.members[0], "checkpoint")

    def _announce_decisions(self) -> None:
        if self._record.decided > self._told and self._running is not None:
            self._told = self._record.decided
            for worker in self._running.generation.members:
                self._command(worker, "decided", step=self._told)

    def _command(self, worker: str, kind: str, **more: Any) -> None:
        assert self._running is not None
        number = self._running.generation.number
        self._hub.send(worker, {"type": kind, "driver_epoch": self._lease.driver_epoch, "generation": number, **more})

    def _finish_failed(self) -> None:
        try:
            self._let_finish()
        except MltrainError as error:
            # What failed first is the reason.
            _LOG.warning("after the failure: %s", error)

    def _let_finish(self) -> None:
        """A run that fails still gets the checkpoint on its way: it is committed once all ranks' parts are durable."""
        running = self._running
        if running is None:
            return
        self._abort_generation()
        writing = [self._members[worker] for worker in running.generation.members if worker in self._members]
        number = running.generation.number
        for member in writing:
            self._call(member, "finish", number, member.actor.finish.remote(number))
        while any(member.id in self._members and member.id not in running.written for member in writing):
            self._take_events()
            self._watch()

    def _end_generation(self, running: _Running) -> None:
        running.server.close()
        self._running = None
        self._fresh = not any(member.step >= 0 for member in self._members.values())
        for member in self._members.values():
            if member.state is WorkerState.JOINED:
                member.state = WorkerState.READY

    def _start_workers(self, count: int) -> None:
        if count:
            self._source.request(count)
        for slot in self._source.granted():
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._numbers += 1
        worker = f"worker-{self._lease.driver_epoch}-{self._numbers}"
        needed = resources(self._workers_config)
        actor: Any = self._remote.options(
            num_cpus=needed["CPU"],
            num_gpus=needed.get("GPU", 0),
            max_concurrency=4,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=0),
        ).remote(worker, self._contact)
        member = _Member(worker, slot, actor, time.monotonic())
        self._members[worker] = member
        self._call(member, "warm", 0, actor.warm.remote(self._spec_ref, self._workers_config.cpus))
        self._record.event("worker started", worker=worker)

    def _call(self, member: _Member, call: str, generation: int, ref: Any) -> None:
        def done(future: "Future[Any]") -> None:
            error = future.exception()
            self._inbox.put(_Returned(member.id, call, generation, None if error else future.result(), error))

        ref.future().add_done_callback(done)

    def _lose(self, member: _Member, why: str) -> None:
        """A worker is gone, or as good as gone: it is killed, its slot given back, its generation over."""
        del self._members[member.id]
        ready = member.state not in (WorkerState.PLACING, WorkerState.WARMING)
        running = self._running
        taking_part = running is not None and member.id in running.waiting_for
        self._record.event(
            "worker lost", worker=member.id, node=member.node, rank=member.rank, reason=why, output=member.output,
            generation=running.generation.number if running is not None and taking_part else None,
        )  # fmt: skip
        self._retire(member)
        if not ready:
            self._failed_start(member, why)
        if running is None or not taking_part:
            return
        running.outcomes[member.id] = None
        if self._lost_at is None:
            self._lost_at, self._void_steps = time.monotonic(), self._void_steps + 1
        self._record.say(f"lost {member.id} ({why}); {len(running.generation.members) - 1} of its generation go on")
        self._abort_generation()

    def _failed_start(self, member: _Member, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _FAILED_STARTS:
            error = TrainingError(
                f"{_FAILED_STARTS} workers died one after another before they were ready; the last one: {why} "
                f"(what it printed: {member.output})"
            )
            self._failure = Outcome(Ending.FAILED, self._record.recorded, error)

    def _recovered(self, step: int) -> None:
        """The first step of a generation is done."""
        self._fruitless = 0
        if self._lost_at is not None:
            downtime_s = time.monotonic() - self._lost_at
            self._record.event("training again", step=step, downtime_s=downtime_s, steps_repeated=self._void_steps)
            self._record.say(f"training again after {downtime_s:.1f} s, step {step}")
            self._lost_at, self._void_steps = None, 0

    def _say_waiting(self, waited_s: float, available: int) -> None:
        """Once for each time that there are too few."""
        if waited_s > _PATIENT_S and not self._said_waiting:
            missing = self._limits.min - available
            self._record.say(f"waiting for {missing} worker{'s' if missing > 1 else ''} ({available} ready)")
        self._said_waiting = waited_s > _PATIENT_S

    def _release_drained(self, draining: frozenset[str]) -> None:
        for member in list(self._members.values()):
            in_generation = self._running is not None and member.id in self._running.generation.members
            if member.slot.id in draining and not in_generation:
                del self._members[member.id]
                self._record.event("worker released", worker=member.id)
                self._retire(member)

    def _retire(self, member: _Member) -> None:
        self._ray.kill(member.actor, no_restart=True)
        self._source.release(member.slot)

    def _tear_down(self) -> None:
        if self._running is not None:
            self._abort_generation()
            self._running.server.close()
        for member in self._members.values():
            self._retire(member)
        self._source.close()
        self._hub.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
