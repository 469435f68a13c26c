"""The controller of one training: facts about workers in, a plan out, and the plan carried out. It holds no tensors."""

import logging
import queue
import time
from typing import TYPE_CHECKING, Any

from mltrain.collectives import Membership, RendezvousServer
from mltrain.errors import MltrainError, TrainingError
from mltrain.train import market, membership, placement
from mltrain.train.control import Ending, Outcome, Row, Verdict
from mltrain.train.fleet import Fleet, Member, Returned
from mltrain.train.membership import Action, Generation, Limits, Plan, WorkerState
from mltrain.train.placement import WorkerSource
from mltrain.train.record import RunRecord
from mltrain.train.retries import Retries
from mltrain.train.signals import StopRequest
from mltrain.train.spec import Spec, Task
from mltrain.train.vigil import Running, Vigil

if TYPE_CHECKING:
    from mltrain.train.checkpoints import Checkpoint
    from mltrain.train.lease import Lease

_LOG = logging.getLogger(__name__)

_TICK_S = 0.1
# Workers that are not there after so long are worth a line.
_PATIENT_S = 5.0
# So long those who wait to join, or whose node is to be left, wait for a checkpoint that is on its way to storage: all
# ranks would stand still until it is there.
_JOINS_LATER_S, _LEAVES_LATER_S = 60.0, 10.0


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
        self._record = record
        self._stop = stop
        self._workers = workers = spec.config.train.workers
        self._market = spec.config.cluster.market
        self._limits = Limits(workers.min, workers.max, workers.wait_s)
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._fleet = Fleet(spec, source, run_id, lease, self._inbox)
        self._running: Running | None = None
        self._generations = 0
        self._retries = Retries()
        self._vigil = Vigil(self._fleet, record)
        self._short_since: float | None = None
        self._regroups_since: float | None = None
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
        try:
            while True:
                self._record.watch()
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
        member = self._fleet.members.get(event.worker)
        if member is None:
            return
        if isinstance(event, Returned):
            self._returned(member, event)
        elif event.message is None:
            self._lose(member, "its connection ended")
        else:
            self._message(member, event.message)

    def _message(self, member: Member, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "hello":
            if member.state is WorkerState.PLACING:
                member.state = WorkerState.WARMING
            member.output, member.port = f"{message['host']}:{message['output']}", message["port"]
            self._record.event(
                "worker placed", worker=member.id, host=message["host"], pid=message["pid"], output=message["output"]
            )
            return
        if kind == "notice":
            self._record.event(message["event"], worker=member.id, node=member.slot.node, **message["fields"])
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
        elif kind == "probed":
            self._running.reached[member.id] = message["reached"]
        else:
            self._record.handle(message)
            self._announce_decisions()
            if kind == "part":
                self._running.checkpoint_asked = False

    def _returned(self, member: Member, event: Returned) -> None:
        if event.error is not None:
            self._lose(member, f"{event.call} failed: {type(event.error).__name__}: {_first_line(event.error)}")
        elif event.call == "warm":
            self._warmed(member, event.result)
        elif event.call == "run" and event.generation == member.generation:
            member.busy = False
            member.step = event.result.step
            if self._running is not None and event.generation == self._running.generation.number:
                self._running.outcomes[member.id] = event.result
                if event.result.ending is not Ending.STOPPED and event.result.ending is not Ending.FINISHED:
                    # Without this rank the others cannot go on.
                    self._abort_generation()

    def _warmed(self, member: Member, result: Any) -> None:
        if isinstance(result, Outcome):
            # For a reason that another worker would share.
            self._failure = result
            return
        member.place = result
        member.state = WorkerState.READY
        self._retries.ready()
        self._record.event(
            "worker ready", worker=member.id, node=result["node"], pid=result["pid"], warm_s=result["warm_s"]
        )

    def _watch(self) -> None:
        """Loses whom nobody should wait for any more; a generation that stands still is looked into."""
        for loss in self._vigil.losses(self._running):
            self._lose(loss.member, loss.why, silent=loss.silent)
        if self._running is not None and self._running.aborted_at is None and self._vigil.stalled(self._running):
            self._interrupt()
            self._vigil.probe(self._running)

    # Decisions

    def _plan(self) -> Plan:
        self._fleet.look()
        statuses, now = self._fleet.statuses(), time.monotonic()
        available = sum(s.state in (WorkerState.READY, WorkerState.JOINED) and not s.draining for s in statuses)
        if available >= self._limits.min:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        waited = 0.0 if self._short_since is None else now - self._short_since
        self._say_waiting(waited, available)
        current = None if self._running is None else self._running.generation
        if current is None:
            statuses = membership.needed(statuses, self._held()[0])
        return membership.plan(current, statuses, self._limits, waited, fresh=self._fresh)

    def _apply(self, plan: Plan) -> Outcome | None:
        if self._running is None and self._save_before(plan.release):
            return None
        for worker in plan.release:
            self._release(self._fleet.members[worker])
        if plan.action is not Action.REGROUP:
            # Nobody wants to any more: whoever does next waits anew.
            self._regroups_since = None
        if plan.action is Action.SHRINK:
            self._interrupt()
        elif plan.action is Action.REGROUP and not self._regroups_later():
            self._ask_to_stop(checkpoint=self._nobody_stays())
        elif plan.action is Action.FORM and not self._state_may_turn_up():
            self._form(plan.members, plan.reason)
        elif plan.action is Action.STOP:
            return self._give_up(plan.reason)
        elif plan.action is Action.CONTINUE and self._running is not None:
            self._ask_for_checkpoint(self._running)
        return None

    def _regroups_later(self) -> bool:
        """Whether a checkpoint on its way to storage goes first, while the generation trains on."""
        now = time.monotonic()
        if self._regroups_since is None:
            self._regroups_since = now
        longest_s = _LEAVES_LATER_S if self._leaving() else _JOINS_LATER_S
        return self._record.saving and not self._nobody_stays() and now - self._regroups_since < longest_s

    def _nobody_stays(self) -> bool:
        """Whether all that hold the run's state are about to go away."""
        assert self._running is not None
        return self._leaving().issuperset(self._running.generation.members)

    def _leaving(self) -> set[str]:
        assert self._running is not None
        return {status.id for status in self._fleet.statuses() if status.draining}.intersection(
            self._running.generation.members
        )

    def _save_before(self, leaving: tuple[str, ...]) -> bool:
        """What only workers hold that are about to go away is saved first."""
        holders = self._holders()
        newest = self._record.newest
        unsaved = any(newest is None or member.step > newest.step for member in holders)
        if not unsaved or not {member.id for member in holders}.issubset(leaving):
            return False
        self._form(self._in_rank_order(holders), "saving what goes away", halt=True)
        return True

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
        if self._state_may_turn_up():
            return None
        if holders := self._holders():
            # Also again, if one of them is lost while they do.
            self._halting = True
            self._form(self._in_rank_order(holders), f"saving before the end: {reason}", halt=True)
            return None
        return Outcome(Ending.STOPPED, self._record.recorded, reason=reason)

    def _holders(self) -> list[Member]:
        """Who holds the run's latest state."""
        return [self._fleet.members[worker] for worker in self._held()[0]]

    def _state_may_turn_up(self) -> bool:
        """Whether silent workers may hold a later state than the others: soon they are heard again, or lost."""
        return self._held()[1]

    def _held(self) -> tuple[tuple[str, ...], bool]:
        newest = self._record.newest
        return membership.holders(self._fleet.holdings(), -1 if newest is None else newest.step)

    def _in_rank_order(self, members: list[Member]) -> tuple[str, ...]:
        wanted = {member.id for member in members}
        return membership.rank_order([status for status in self._fleet.statuses() if status.id in wanted])

    def _finished_generation(self) -> Outcome | None:
        """Once every member's call has ended, and what it said before has arrived: what that means."""
        running = self._running
        if running is None or self._awaited(running) or self._vigil.probing(running):
            return None
        outcomes = [outcome for outcome in running.outcomes.values() if outcome is not None]
        failed = [outcome for outcome in outcomes if outcome.ending is Ending.FAILED]
        if failed:
            return failed[0]
        for loss in self._vigil.unreached(running):
            self._lose(loss.member, loss.why, silent=loss.silent)
        self._end_generation(running)
        first = running.outcomes.get(running.generation.members[0])
        if first is not None and first.ending is Ending.FINISHED:
            return first
        stopped = [outcome for outcome in outcomes if outcome.ending is Ending.STOPPED]
        if stopped and (self._halting or self._stop.requested or self._record.verdict is Verdict.STOP):
            newest = self._record.newest
            if newest is not None and newest.step >= stopped[0].step:
                return stopped[0]
            # They stopped to regroup, without a checkpoint, just before the end was asked for: they save now.
        damaged = [outcome for outcome in outcomes if outcome.ending is Ending.DAMAGED]
        if damaged and self._restoring is not None:
            self._record.set_aside(self._restoring.step, damaged[0].reason)
            self._record.restore_point()
        if len(outcomes) == len(running.generation.members):
            # Formed again, but not for ever.
            self._fail(self._retries.ended(outcomes[0].reason))
        return self._failure

    def _awaited(self, running: Running) -> list[str]:
        """Members that have not left yet, but for the silent ones: nobody waits for these."""
        members = self._fleet.members
        present = [
            w for w in running.generation.members if w in members and members[w].state is not WorkerState.SUSPECT
        ]
        return [worker for worker in present if worker not in running.outcomes or worker not in running.left]

    # Actions

    def _form(self, members: tuple[str, ...], reason: str, *, halt: bool = False) -> None:
        held, latest = self._holders(), self._generations
        holders = {member.id for member in held}
        self._generations += 1
        number = self._generations
        server = RendezvousServer(self._fleet.host)
        self._running = Running(Generation(number, members), server)
        self._record.begin_generation(number, list(members), reason)
        places = [self._fleet.members[worker].place or {} for worker in members]
        seats = membership.seats([str(place["node"]) for place in places])
        self._restoring = None if holders.intersection(members) else self._record.newest
        if not holders.intersection(members):
            self._rewind(0 if self._restoring is None else self._restoring.step)
        elif held[0].generation < latest:
            self._rewind(max(member.step for member in held))
        # Also less than before: of a damaged checkpoint's evaluation they are told again.
        self._told = self._record.decided
        for rank, worker in enumerate(members):
            member, place, seat = self._fleet.members[worker], places[rank], seats[rank]
            joined = Membership(
                number, rank, len(members), seat.local_rank, seat.local_size, seat.cross_rank, seat.cross_size,
                place["address"], place["interface"], server.address,
            )  # fmt: skip
            task = Task(
                driver_epoch=self._record.driver_epoch,
                recorded=self._record.recorded,
                decided=self._record.decided,
                halt=halt,
                restore=self._restoring if rank == 0 else None,
                void=worker not in holders,
            )
            member.state, member.rank, member.generation, member.busy = WorkerState.JOINED, rank, number, True
            self._fleet.call(member, "run", number, joined, task)

    def _rewind(self, step: int) -> None:
        """Nobody holds the latest state any more: what was done since ``step`` is done again."""
        if self._lost_at is not None:
            self._void_steps += self._record.recorded - step
            self._record.event("state lost", step=step)
        self._record.recorded = step

    def _interrupt(self) -> None:
        """Members are lost: the others leave the generation, and the step under way is done again."""
        if self._lost_at is None:
            self._lost_at, self._void_steps = time.monotonic(), self._void_steps + 1
        self._abort_generation()

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

    def _ask_for_checkpoint(self, running: Running) -> None:
        if self._record.checkpoint_due() and not running.checkpoint_asked:
            running.checkpoint_asked = True
            self._command(running.generation.members[0], "checkpoint")

    def _announce_decisions(self) -> None:
        if self._record.decided > self._told and self._running is not None:
            self._told = self._record.decided
            for worker in self._running.generation.members:
                self._command(worker, "decided", step=self._told)

    def _command(self, worker: str, kind: str, **more: Any) -> None:
        assert self._running is not None
        self._fleet.command(worker, kind, self._running.generation.number, **more)

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
        members = self._fleet.members
        writing = [members[worker] for worker in running.generation.members if worker in members]
        number = running.generation.number
        for member in writing:
            self._fleet.call(member, "finish", number, number)
        while any(member.id in members and member.id not in running.written for member in writing):
            self._take_events()
            self._watch()

    def _end_generation(self, running: Running) -> None:
        running.server.close()
        self._running = None
        reasons = sorted({outcome.reason for outcome in running.outcomes.values() if outcome is not None})
        self._record.event("generation ended", generation=running.generation.number, reasons=reasons)
        for member in self._fleet.members.values():
            if member.state is WorkerState.JOINED:
                member.state = WorkerState.READY
        self._fresh = not self._holders()

    def _start_workers(self, count: int) -> None:
        for member in self._fleet.want(count):
            slot = member.slot
            self._record.event(
                "worker started", worker=member.id, node=slot.node, market=slot.market, stand_in=slot.stand_in
            )

    def _release(self, member: Member) -> None:
        self._record.event("worker released", worker=member.id)
        self._fleet.retire(member)

    def _lose(self, member: Member, why: str, *, silent: bool = False) -> None:
        """A worker is gone, or as good as gone: it is killed, its slot given back, its generation over."""
        running = self._running
        taking_part = running is not None and member.id in running.waiting_for
        held_s = self._fleet.lost(member, silent=silent)
        self._record.event(
            "worker lost", worker=member.id, node=member.slot.node, rank=member.rank, reason=why, output=member.output,
            generation=member.generation if member.busy else None, held_s=held_s,
        )  # fmt: skip
        if not (member.warm or silent):
            self._fail(self._retries.not_started(member.started, time.monotonic(), why, member.output))
        if member.busy:
            reached = max(self._record.recorded, *(m.step for m in self._fleet.members.values()), 0)
            self._fail(self._retries.lost(member.generation, reached, why, member.output))
        if running is not None and taking_part:
            running.outcomes[member.id] = None
            self._interrupt()

    def _fail(self, error: TrainingError | None) -> None:
        if error is not None:
            self._failure = Outcome(Ending.FAILED, self._record.recorded, error)

    def _recovered(self, step: int) -> None:
        """The first step of a generation is done."""
        self._retries.stepped()
        if self._lost_at is not None:
            downtime_s = time.monotonic() - self._lost_at
            self._record.event("training again", step=step, downtime_s=downtime_s, steps_repeated=self._void_steps)
            self._lost_at, self._void_steps = None, 0

    def _say_waiting(self, waited_s: float, available: int) -> None:
        """Once for each time that there are too few."""
        if waited_s > _PATIENT_S and not self._said_waiting:
            self._record.event(
                "too few workers", ready=available, least=self._limits.min,
                room=placement.room(self._workers, self._market), nodes=market.described(self._market),
                left_s=max(0.0, self._limits.wait_s - waited_s),
            )  # fmt: skip
        self._said_waiting = waited_s > _PATIENT_S

    def _tear_down(self) -> None:
        if self._running is not None:
            self._abort_generation()
            self._running.server.close()
        self._fleet.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
