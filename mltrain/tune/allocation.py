"""How many workers each trial of a sweep may hold: a pure function of what there is and who asks."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a trial asks for.

    Attributes:
        trial: its id.
        min: with fewer it cannot train.
        max: more it does not use.
        held: what it has been granted and has not given back.
    """

    trial: str
    min: int
    max: int
    held: int = 0


def share(capacity: int, demands: Sequence[Demand]) -> dict[str, int]:
    """The number of workers that each trial should have: 0, or at least its ``min``.

    Trials that hold workers stay; then others are let in by arrival as long as everyone's ``min`` fits, a small one
    past a large one that does not. What remains is shared max-min: always to the trial that has least (progressive
    filling; Bertsekas and Gallager, Data Networks, 6.5.2). If nobody fits, the first trial is let in all the same: its
    request is what makes a cluster grow.

    Args:
        capacity: workers that the cluster has room for.
        demands: in order of arrival.
    """
    shares = dict.fromkeys((demand.trial for demand in demands), 0)
    left = capacity
    for demand in sorted(demands, key=lambda demand: demand.held == 0):
        if demand.held > 0 or demand.min <= left:
            shares[demand.trial] = demand.min
            left -= demand.min
    if demands and not any(shares.values()):
        shares[demands[0].trial] = demands[0].min
    growing = [(demand.min, index) for index, demand in enumerate(demands) if 0 < shares[demand.trial] < demand.max]
    heapq.heapify(growing)
    while left > 0 and growing:
        size, index = heapq.heappop(growing)
        demand = demands[index]
        shares[demand.trial] = size + 1
        left -= 1
        if size + 1 < demand.max:
            heapq.heappush(growing, (size + 1, index))
    return shares


def grant(capacity: int, demands: Sequence[Demand]) -> dict[str, int]:
    """How many workers each trial may hold now, on the way to its :func:`share`.

    A share below what a trial holds is in force at once: the trial gives the rest back when it can. A larger one is
    granted only from what is free, and a trial that holds nothing gets its ``min`` in one go or waits. So two trials
    never sit on halves of what each needs.
    """
    shares = share(capacity, demands)
    granted = {demand.trial: min(demand.held, shares[demand.trial]) for demand in demands}
    free = capacity - sum(demand.held for demand in demands)
    idle = not any(demand.held for demand in demands)
    for demand in demands:
        more = min(shares[demand.trial] - demand.held, free)
        if demand.held == 0 and more < demand.min:
            if not (idle and shares[demand.trial] > 0):
                continue
            # Nobody holds anything and even so this does not fit: the cluster has to grow.
            more = demand.min
        if more > 0:
            granted[demand.trial] = demand.held + more
            free -= more
            idle = False
    return granted


def slots(nodes: Sequence[Mapping[str, float]], bundle: Mapping[str, float]) -> int:
    """How many bundles fit on these nodes, each node on its own.

    Args:
        nodes: total resources by name, as Ray counts them.
        bundle: what one worker needs.
    """
    needed = {name: amount for name, amount in bundle.items() if amount > 0}
    if not needed:
        return 1_000_000
    # Ray counts in steps of 1e-4; 3 x 0.1 must fit into 0.3.
    return sum(
        min(int((node.get(name, 0.0) + 1e-9) / amount + 1e-9) for name, amount in needed.items()) for node in nodes
    )
