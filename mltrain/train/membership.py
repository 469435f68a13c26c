"""Who takes part in the next generation: a pure function of facts about workers."""

import enum
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace


class WorkerState(enum.Enum):
    """What the controller knows of a worker."""

    PLACING = "placing"  # waits for resources
    WARMING = "warming"  # its process starts, imports, builds the model, opens the data
    READY = "ready"  # warm, in no generation
    JOINED = "joined"  # in the current generation
    SUSPECT = "suspect"  # its heartbeats are overdue: in no generation until they come again


@dataclass(frozen=True)
class WorkerStatus:
    """Facts about one worker.

    Attributes:
        id: unique in the run.
        node: name of the node it runs on; None while it is being placed.
        state: see `WorkerState`.
        rank: its rank in the latest generation that it was in, if it still holds that generation's state.
        draining: it was announced that its node goes away.
        held: its node is held back for what happened on it: it joins only where there are too few without it.
        slow: it holds up the others: it leaves once there is another in its place.
        stand_in: it is on a node of second choice: it leaves once there is one on a node of first choice in its place.
    """

    id: str
    node: str | None
    state: WorkerState
    rank: int | None = None
    draining: bool = False
    held: bool = False
    slow: bool = False
    stand_in: bool = False


@dataclass(frozen=True)
class Generation:
    """One fixed membership. ``members`` are worker ids in rank order."""

    number: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """How many workers a run wants (``max``), can do with (``min``), and waits for below that (``wait_s``)."""

    min: int
    max: int
    wait_s: float


class Action(enum.Enum):
    """What the controller does next."""

    CONTINUE = "continue"  # the generation goes on
    SHRINK = "shrink"  # a member is lost: abort the generation on every survivor
    REGROUP = "regroup"  # members come or go as announced: stop all ranks after the same step
    FORM = "form"  # no generation is running: form one of ``members``
    WAIT = "wait"  # no generation is running, and too few workers are ready
    STOP = "stop"  # waited long enough: stop, resumable


@dataclass(frozen=True)
class Plan:
    """A decision.

    Attributes:
        action: what to do with the generation.
        members: worker ids in rank order, for `Action.FORM`.
        start: how many workers there should be more, in the background.
        release: workers that are not needed any more: their nodes go away, or there are enough without them.
        reason: why, for the run's log.
    """

    action: Action
    members: tuple[str, ...] = ()
    start: int = 0
    release: tuple[str, ...] = ()
    reason: str = ""


_AVAILABLE = (WorkerState.READY, WorkerState.JOINED)
_COMING = (WorkerState.PLACING, WorkerState.WARMING)


def plan(
    generation: Generation | None, workers: Sequence[WorkerStatus], limits: Limits, waited_s: float, *, fresh: bool
) -> Plan:
    """Next membership, given who is there. Pure: same facts, same plan.

    Args:
        generation: the generation that is running, if any.
        workers: every worker that is not known to be dead.
        limits: how many workers are wanted.
        waited_s: for how long fewer than ``limits.min`` have been available.
        fresh: no worker holds state yet, so that waiting for those that are warming up costs nothing.

    Raises:
        ValueError: two workers claim one id.
    """
    known = {worker.id: worker for worker in workers}
    if len(known) != len(workers):
        raise ValueError(f"worker ids repeat: {sorted(worker.id for worker in workers)}")
    there = [worker for worker in workers if worker.state in _AVAILABLE and not worker.draining]
    taking_part = frozenset(() if generation is None else generation.members)
    usable = [worker for worker in there if not worker.held or worker.id in taking_part]
    coming = [worker for worker in workers if worker.state in _COMING and not worker.draining]
    fast = [worker for worker in usable if not worker.slow]
    start = max(0, limits.max - len(fast) - len(coming))
    if generation is not None:
        return _while_running(generation, known, usable, limits, start, _surplus(taking_part, workers, usable, limits))
    if len(usable) < limits.min:
        usable = there
    members = rank_order(_best(usable, limits))
    release = tuple(sorted(worker.id for worker in workers if worker.draining))
    if len(members) < limits.min:
        action = Action.STOP if waited_s >= limits.wait_s else Action.WAIT
        return Plan(action, start=start, release=release, reason=_too_few(members, limits))
    warming = any(worker.state is WorkerState.WARMING for worker in coming)
    if fresh and warming and len(members) < limits.max:
        return Plan(Action.WAIT, start=start, release=release, reason="workers are warming up")
    return Plan(Action.FORM, members, start=start, release=release, reason=f"{len(members)} workers are ready")


def _while_running(
    generation: Generation,
    known: dict[str, WorkerStatus],
    usable: list[WorkerStatus],
    limits: Limits,
    start: int,
    release: tuple[str, ...],
) -> Plan:
    lost = [m for m in generation.members if m not in known or known[m].state is not WorkerState.JOINED]
    if lost:
        return Plan(Action.SHRINK, start=start, release=release, reason=f"lost {', '.join(lost)}")
    leaving = [member for member in generation.members if known[member].draining]
    if leaving:
        return Plan(Action.REGROUP, start=start, release=release, reason=f"draining {', '.join(leaving)}")
    newcomers = sorted({worker.id for worker in _best(usable, limits)}.difference(generation.members))
    if newcomers:
        joining = f"ready to join: {', '.join(newcomers)}"
        return Plan(Action.REGROUP, start=start, release=release, reason=joining)
    return Plan(Action.CONTINUE, start=start, release=release)


def _best(usable: Sequence[WorkerStatus], limits: Limits) -> list[WorkerStatus]:
    """Who should take part: slow ones only where there are too few others, and first those that did before."""
    return sorted(usable, key=lambda worker: (worker.slow, *_by_rank(worker)))[: limits.max]


def _surplus(
    taking_part: frozenset[str], workers: Sequence[WorkerStatus], usable: list[WorkerStatus], limits: Limits
) -> tuple[str, ...]:
    """Workers outside the generation whose nodes go away, or, once it is as good as it can be, all of them."""
    staying = [worker for worker in usable if worker.id in taking_part and not worker.slow and not worker.stand_in]
    full = len(staying) >= limits.max
    outside = [worker for worker in workers if worker.id not in taking_part]
    return tuple(sorted(worker.id for worker in outside if full or worker.draining))


def _too_few(members: Sequence[str], limits: Limits) -> str:
    return f"{len(members)} of at least {limits.min} workers are ready"


def relieved(workers: Sequence[WorkerStatus], most: int) -> list[WorkerStatus]:
    """``workers``, but stand-ins in whose place others are ready, of ``most`` in all, are about to go away."""
    able = [w for w in workers if w.state in _AVAILABLE and not (w.draining or w.held or w.slow)]
    standing = [worker.id for worker in sorted(able, key=_by_rank) if worker.stand_in]
    needed = max(0, most - (len(able) - len(standing)))
    spare = frozenset(standing[needed:])
    return [replace(worker, draining=True) if worker.id in spare else worker for worker in workers]


def replaceable(workers: Sequence[WorkerStatus], most: int) -> int:
    """How many stand-ins nobody is on the way for, of ``most`` workers in all."""
    counted = [w for w in workers if w.state in (*_AVAILABLE, *_COMING) and not (w.draining or w.slow)]
    standing = sum(worker.stand_in for worker in counted)
    return min(standing, max(0, most - (len(counted) - standing)))


@dataclass(frozen=True)
class Holding:
    """What a worker holds of the run's state.

    Attributes:
        id: of the worker.
        generation: the latest that it was told to join.
        step: updates applied when it left it; -1: it holds nothing.
        there: it has left it, and is heard; of others nobody knows yet what they hold.
    """

    id: str
    generation: int
    step: int
    there: bool


def holders(held: Sequence[Holding], saved: int) -> tuple[tuple[str, ...], bool]:
    """Who holds the run's latest state: those left of the latest generation that any are left of.

    Its members differ by a step at most, and what older generations did was the same as far as it went.

    Args:
        held: by every worker that is not known to be dead.
        saved: step of the newest checkpoint, -1 without one: what is older is of no use.

    Returns:
        Ids of workers, and whether a later state may yet turn up: that of workers that are not there now.
    """
    whole = [one for one in held if one.there and one.step >= max(0, saved)]
    latest = max((one.generation for one in whole), default=0)
    later = any(not one.there and one.generation > latest for one in held)
    return tuple(one.id for one in whole if one.generation == latest), later


def needed(workers: Sequence[WorkerStatus], holders: Collection[str]) -> list[WorkerStatus]:
    """``workers``, but if something is held against all of the ``holders`` of the run's state it counts for nothing."""
    holding = [worker for worker in workers if worker.id in holders]
    if any(not worker.held and not worker.slow for worker in holding):
        return list(workers)
    return [replace(worker, held=False, slow=False) if worker.id in holders else worker for worker in workers]


def rank_order(workers: Sequence[WorkerStatus]) -> tuple[str, ...]:
    """Worker ids in rank order: node by node, those that hold state first, as they were ranked before."""
    nodes: dict[str | None, list[WorkerStatus]] = {}
    for worker in sorted(workers, key=_by_rank):
        nodes.setdefault(worker.node, []).append(worker)
    return tuple(worker.id for node in nodes.values() for worker in node)


def _by_rank(worker: WorkerStatus) -> tuple[float, str]:
    return (float("inf") if worker.rank is None else worker.rank, worker.id)


@dataclass(frozen=True)
class Seat:
    """Where a rank sits: its index among the ranks of its node, and its node's index among nodes with such a rank."""

    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int


def seats(nodes: Sequence[str]) -> tuple[Seat, ...]:
    """Seats of all ranks, from the node of every rank."""
    sizes = Counter(nodes)
    seen: Counter[str] = Counter()
    locals_ = []
    for node in nodes:
        locals_.append(seen[node])
        seen[node] += 1
    crosses = Counter(locals_)
    across: Counter[int] = Counter()
    found = []
    for node, local in zip(nodes, locals_, strict=True):
        found.append(Seat(local, sizes[node], across[local], crosses[local]))
        across[local] += 1
    return tuple(found)
