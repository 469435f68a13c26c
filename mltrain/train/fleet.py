"""The workers of a run: their processes, their slots, their connections, and which nodes they are started on."""

import queue
import secrets
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mltrain.train import membership, placement
from mltrain.train.link import Hub
from mltrain.train.membership import Holding, WorkerState, WorkerStatus
from mltrain.train.nodes import Ledger
from mltrain.train.placement import Slot, WorkerSource, resources
from mltrain.train.pulses import Pulse
from mltrain.train.spec import Spec
from mltrain.train.worker import Contact, Worker

if TYPE_CHECKING:
    from mltrain.train.lease import Lease

# A worker that was started less than this ago is waited for when the first generation forms.
_SETTLE_S = 15.0
# A process that has not said hello by then, on a node that has lost workers, is taken for lost with its node.
_HELLO_S = 20.0
# A worker exits when it has not heard of its controller for so many heartbeat deadlines.
_SILENCE = 10


@dataclass
class Member:
    """What the controller holds of a worker.

    Attributes:
        place: where it runs, once it is warm.
        rank: its rank in the latest generation that it was in.
        step: updates applied, as it said last; -1 as long as it holds none of the run's state.
        generation: the latest that it was told to join.
        busy: its part in that generation has not ended.
        seen: when it was last found alive after a silence.
        slow: it holds up the others, and has for long.
        port: where it accepts connections, to find out who reaches it.
        output: where it prints to.
    """

    id: str
    slot: Slot
    actor: Any
    started: float
    state: WorkerState = WorkerState.PLACING
    place: dict[str, Any] | None = None
    rank: int | None = None
    step: int = -1
    generation: int = 0
    busy: bool = False
    seen: float = 0.0
    slow: bool = False
    port: int = 0
    output: str = "Ray's logs"

    @property
    def warm(self) -> bool:
        return self.state not in (WorkerState.PLACING, WorkerState.WARMING)


@dataclass(frozen=True)
class Returned:
    """An actor's call ended."""

    worker: str
    call: str
    generation: int
    result: Any
    error: BaseException | None


class Fleet:
    """Starts and ends workers, and knows what became of them. What a loss means is the controller's business.

    Args:
        spec: of the run.
        source: of slots.
        inbox: where `Received` and `Returned` go.
    """

    def __init__(
        self, spec: Spec, source: WorkerSource, run_id: str, lease: "Lease", inbox: "queue.SimpleQueue[Any]"
    ) -> None:
        import ray

        self._ray = ray
        self._source = source
        self._inbox = inbox
        self._config = spec.config.train.workers
        self._epoch = lease.driver_epoch
        self.host = ray.util.get_node_ip_address()
        secret = secrets.token_hex(16)
        self._hub = Hub(self.host, secret, inbox)
        beat = spec.config.train.heartbeat
        self.deadline_s = beat.interval_s * beat.misses
        self._contact = Contact(
            self._hub.address, secret, run_id, self._epoch, beat.interval_s, self.deadline_s * _SILENCE
        )
        self._remote = ray.remote(Worker)
        self._spec_ref = ray.put(spec)
        self.members: dict[str, Member] = {}
        self._ledger = Ledger()
        self._draining: frozenset[str] = frozenset()
        self._withdrawn: frozenset[str] = frozenset()
        self._numbers = 0

    # Facts

    def look(self) -> None:
        """Asks Ray and the source what goes away."""
        self._draining = placement.draining()
        self._withdrawn = self._source.withdrawn()

    def statuses(self) -> list[WorkerStatus]:
        """Facts for a plan."""
        held, now = self._ledger.held(time.monotonic()), time.monotonic()
        statuses = [self._status(member, held, now) for member in self.members.values()]
        return membership.relieved(statuses, self._config.max)

    def _status(self, member: Member, held: frozenset[str], now: float) -> WorkerStatus:
        state, node = member.state, member.slot.node
        if state is WorkerState.PLACING and now - member.started < _SETTLE_S:
            state = WorkerState.WARMING
        if state is WorkerState.READY and member.busy:
            # Heard again after a silence, and still in a generation that is over.
            state = WorkerState.SUSPECT
        leaving = node in self._draining or member.slot.id in self._withdrawn
        stand_in = member.slot.stand_in
        return WorkerStatus(member.id, node, state, member.rank, leaving, node in held, member.slow, stand_in)

    def holdings(self) -> list[Holding]:
        """What workers hold of the run's state."""
        return [
            Holding(m.id, m.generation, m.step, m.state is WorkerState.READY and not m.busy)
            for m in self.members.values()
            if m.generation > 0
        ]

    def silent_s(self, member: Member) -> float | None:
        """For how long nothing was heard of a worker; None as long as it has not said hello."""
        heard = self._hub.heard(member.id)
        return None if heard is None else time.monotonic() - heard

    def pulse(self, member: Member, generation: int) -> Pulse | None:
        """A worker's latest sign of life, if it is of this generation."""
        beat = self._hub.beat(member.id)
        if beat is None or beat[1]["generation"] != generation:
            return None
        return Pulse(beat[0], float(beat[1]["waited_s"]), float(beat[1]["waiting_s"]))

    def late(self) -> list[Member]:
        """Workers that do not say hello, on nodes that there is something against."""
        avoid, now = self._avoid(), time.monotonic()
        return [
            member
            for member in self.members.values()
            if member.state is WorkerState.PLACING
            and (
                member.slot.node in avoid or (self._ledger.struck(member.slot.node) and now - member.started > _HELLO_S)
            )
        ]

    # Actions

    def want(self, count: int) -> list[Member]:
        """Sees to it that ``count`` workers more are on their way; returns those that were started just now.

        Others besides are, in the place of stand-ins.
        """
        self._source.want(count, self._avoid(), membership.replaceable(self.statuses(), self._config.max))
        return [self._start(slot) for slot in self._source.granted()]

    def suspect(self, member: Member) -> float:
        """A worker is silent. Returns for how many seconds its node is held back: it is if all of its workers are."""
        member.state = WorkerState.SUSPECT
        neighbours = [m for m in self.members.values() if m.slot.node == member.slot.node]
        if any(m.warm and m.state is not WorkerState.SUSPECT for m in neighbours):
            return 0.0
        return self._ledger.silent(member.slot.node, time.monotonic())

    def call(self, member: Member, name: str, generation: int, *arguments: Any) -> None:
        """Calls the worker; what it returns comes as `Returned`."""

        def done(future: "Future[Any]") -> None:
            error = future.exception()
            self._inbox.put(Returned(member.id, name, generation, None if error else future.result(), error))

        getattr(member.actor, name).remote(*arguments).future().add_done_callback(done)

    def command(self, worker: str, kind: str, generation: int, **more: Any) -> None:
        """Sends a command of a generation."""
        self._hub.send(worker, {"type": kind, "driver_epoch": self._epoch, "generation": generation, **more})

    def lost(self, member: Member, *, silent: bool) -> float:
        """A worker is lost. Returns for how many seconds its node is held back from now on.

        Args:
            member: the worker.
            silent: it has not ended, or nobody knows: the node may have gone.
        """
        held_s, now = 0.0, time.monotonic()
        if silent and member.state is not WorkerState.SUSPECT:
            held_s = self._ledger.silent(member.slot.node, now)
        elif not silent and member.warm:
            held_s = self._ledger.process_lost(member.slot.node, now)
        self.retire(member)
        return held_s

    def retire(self, member: Member) -> None:
        """Ends a worker, which is never heard again, and gives its slot back."""
        del self.members[member.id]
        self._hub.forget(member.id)
        self._ray.kill(member.actor, no_restart=True)
        self._source.release(member.slot)

    def close(self) -> None:
        """Ends all of them."""
        for member in list(self.members.values()):
            self.retire(member)
        self._source.close()
        self._hub.close()

    def _avoid(self) -> frozenset[str]:
        bad = {m.slot.node for m in self.members.values() if m.slow or m.state is WorkerState.SUSPECT}
        return self._ledger.held(time.monotonic()) | self._draining | bad

    def _start(self, slot: Slot) -> Member:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._numbers += 1
        worker = f"worker-{self._epoch}-{self._numbers}"
        needed = resources(self._config)
        actor: Any = self._remote.options(
            num_cpus=needed["CPU"],
            num_gpus=needed.get("GPU", 0),
            max_concurrency=4,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(slot.group, placement_group_bundle_index=0),
        ).remote(worker, self._contact)
        member = self.members[worker] = Member(worker, slot, actor, time.monotonic())
        self.call(member, "warm", 0, self._spec_ref, self._config.cpus)
        return member
