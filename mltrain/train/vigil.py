"""Watches the workers' signs of life: who is silent, who is slow, who stays too long, who does not reach the others."""

import time
from dataclasses import dataclass

from mltrain.collectives import RendezvousServer
from mltrain.train.control import Outcome
from mltrain.train.fleet import Fleet, Member
from mltrain.train.membership import Generation, WorkerState
from mltrain.train.pulses import Pulses, cut_off
from mltrain.train.record import RunRecord

# A survivor that has not left an aborted generation by then is killed and replaced.
_LEAVE_S = 2.0
# While it imports and opens data, a worker's signs of life may be held up for so many deadlines.
_WARMING = 5
# A generation whose ranks all wait for each other stands still after so many deadlines, then twice as many, if nothing
# was wrong with its network: so long may an operation take.
_STALLED = 2.0
# Ranks are compared so often; their signs of life do not come faster.
_COMPARE_S = 0.25
# So long may a worker take to find out which others it reaches, and its answer to come.
_PROBE_S, _ANSWER_S = 1.0, 0.2


class Running:
    """The generation under way."""

    def __init__(self, generation: Generation, server: RendezvousServer) -> None:
        self.generation = generation
        self.server = server
        self.outcomes: dict[str, Outcome | None] = {}
        self.left: set[str] = set()
        self.written: set[str] = set()
        self.pulses = Pulses(generation.members)
        self.aborted_at: float | None = None
        self.probed_at: float | None = None
        self.reached: dict[str, list[str]] = {}
        self.stop_asked = False
        self.checkpoint_asked = False

    @property
    def waiting_for(self) -> list[str]:
        return [member for member in self.generation.members if member not in self.outcomes]


@dataclass(frozen=True)
class Loss:
    """A worker that nobody should wait for.

    Attributes:
        silent: it may live on, out of reach.
    """

    member: Member
    why: str
    silent: bool = False


class Vigil:
    """Says what the signs of life mean; what is to be done then is the controller's business.

    Args:
        fleet: whose workers are watched.
        record: is told who is silent or slow.
    """

    def __init__(self, fleet: Fleet, record: RunRecord) -> None:
        self._fleet = fleet
        self._record = record
        self._stalled_s = fleet.deadline_s * _STALLED
        self._named: set[str] = set()
        self._compared = 0.0

    def losses(self, running: Running | None) -> list[Loss]:
        """Workers to give up now. Those that are overdue, or heard again, change their state."""
        found = [Loss(m, "it did not start, and its node has lost workers", silent=True) for m in self._fleet.late()]
        for member in self._fleet.members.values():
            silent_s = self._fleet.silent_s(member)
            if silent_s is None:
                continue
            deadline_s = self._fleet.deadline_s * (1 if member.warm else _WARMING)
            if silent_s > deadline_s + _LEAVE_S:
                found.append(Loss(member, f"silent for {silent_s:.1f} s", silent=True))
            elif member.warm and silent_s > deadline_s:
                self._suspect(member, silent_s)
            elif member.state is WorkerState.SUSPECT:
                self._heard_again(member, running)
            elif _overstays(member, running):
                found.append(Loss(member, f"did not leave its generation within {_LEAVE_S:g} s"))
        return found

    def stalled(self, running: Running) -> bool:
        """Whether all ranks have been waiting for each other for too long; names those that are slow."""
        number, now = running.generation.number, time.monotonic()
        if now - self._compared < _COMPARE_S:
            return False
        self._compared = now
        members = {w: m for w in running.generation.members if (m := self._fleet.members.get(w)) is not None}
        for worker, member in members.items():
            pulse = self._fleet.pulse(member, number)
            if pulse is not None:
                running.pulses.hear(worker, pulse)
        slow = running.pulses.slow(now)
        for worker, member in members.items():
            if worker in slow and worker not in self._named:
                busy, others = slow[worker].busy, slow[worker].others
                self._record.event("straggler", worker=worker, node=member.slot.node, busy=busy, others=others)
            member.slow = worker in slow and slow[worker].persists(now)
        self._named = set(slow)
        waiting_s = running.pulses.waiting_s()
        if waiting_s > self._stalled_s:
            self._record.event("generation stalled", generation=number, waiting_s=waiting_s)
        return waiting_s > self._stalled_s

    def probe(self, running: Running) -> None:
        """Asks all members of a generation whom they reach."""
        running.probed_at = time.monotonic()
        members = [m for w in running.generation.members if (m := self._fleet.members.get(w)) is not None]
        for member in members:
            peers = {peer.id: ((peer.place or {})["address"], peer.port) for peer in members if peer is not member}
            number = running.generation.number
            self._fleet.command(member.id, "probe", number, peers=peers, within_s=_PROBE_S)

    def probing(self, running: Running) -> bool:
        """Whether answers to a probe are still to come."""
        if running.probed_at is None or time.monotonic() - running.probed_at > _PROBE_S + _ANSWER_S:
            return False
        return any(w in self._fleet.members and w not in running.reached for w in running.generation.members)

    def unreached(self, running: Running) -> list[Loss]:
        """After a probe: workers without whom all others reach each other."""
        if running.probed_at is None:
            return []
        there = [worker for worker in running.generation.members if worker in self._fleet.members]
        gone = cut_off({worker: running.reached.get(worker, []) for worker in there})
        if not gone:
            # Nothing is wrong with the network: what the ranks do takes that long.
            self._stalled_s *= 2
        return [Loss(self._fleet.members[worker], "its peers do not reach it", silent=True) for worker in gone]

    def _suspect(self, member: Member, silent_s: float) -> None:
        if member.state is not WorkerState.SUSPECT:
            held_s = self._fleet.suspect(member)
            self._record.event("worker silent", worker=member.id, silent_s=silent_s, held_s=held_s)

    def _heard_again(self, member: Member, running: Running | None) -> None:
        awaited = running is not None and member.id in running.waiting_for
        member.state = WorkerState.JOINED if awaited else WorkerState.READY
        member.seen = time.monotonic()
        self._record.event("worker heard again", worker=member.id)


def _overstays(member: Member, running: Running | None) -> bool:
    """Whether a worker that is heard is still in a generation that it should have left."""
    if not member.busy:
        return False
    now = time.monotonic()
    if running is None or running.generation.number != member.generation:
        return now - member.seen > _LEAVE_S
    return running.aborted_at is not None and now - max(running.aborted_at, member.seen) > _LEAVE_S
