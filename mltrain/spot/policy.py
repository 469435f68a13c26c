"""What a notice means for a node: a pure function of what stands.

Ray has no way back from a drain, and a notice may be cancelled. Leaving takes the training a step and a second, so a
node is drained when little time is left, and not before: what is cancelled earlier has cost nothing, and until then the
node trains.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from mltrain.spot.notice import Kind, Notice

# Twice the half minute that clouds give at least: for slow steps, a last checkpoint, and clocks that differ.
LEAD_S = 60.0


class Action(enum.Enum):
    """What to do with the node."""

    STAY = "stay"  # nobody takes it away
    WAIT = "wait"  # it goes away, but not soon
    DRAIN = "drain"  # it goes away: nothing new may come, and what is there leaves


@dataclass(frozen=True)
class Decision:
    """What to do.

    Attributes:
        action: see `Action`.
        reason: the notice that decides.
        deadline: when the node goes away, in seconds since 1970; None: unknown.
        again_s: for `Action.WAIT`: after so many seconds the answer is another.
    """

    action: Action
    reason: Notice | None = None
    deadline: float | None = None
    again_s: float | None = None


def decide(standing: Iterable[Notice], now: float) -> Decision:
    """The most urgent of what stands decides; risks and pauses are reported, not acted on. Pure.

    A rebalance recommendation is not followed: the notice that may come later is long enough to lose nothing, and until
    it comes the node is worth what it costs.
    """
    leaving = [notice for notice in standing if notice.kind is Kind.LEAVING]
    if not leaving:
        return Decision(Action.STAY)
    first = min(leaving, key=lambda notice: now if notice.deadline is None else notice.deadline)
    if first.deadline is not None and first.deadline - now > LEAD_S:
        return Decision(Action.WAIT, first, first.deadline, first.deadline - LEAD_S - now)
    return Decision(Action.DRAIN, first, first.deadline)
