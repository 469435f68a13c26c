"""What the ranks' signs of life say: that a generation stands still, that a rank is slow, who reaches whom."""

import bisect
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# A rank is compared with the others over so many seconds. Slow is who computes for more than so many times as long as
# the others do, and for more than this share of the time.
_WINDOW_S, _FACTOR, _SHARE = 6.0, 2.0, 0.25
# Slow for so long, it is replaced.
_PERSISTS_S = 30.0


@dataclass(frozen=True)
class Pulse:
    """A rank's sign of life.

    Attributes:
        time: when it came, in seconds.
        waited_s: seconds that the rank has waited for its peers, since it started.
        waiting_s: seconds of the wait under way; 0 if it computes.
    """

    time: float
    waited_s: float
    waiting_s: float


@dataclass(frozen=True)
class Slow:
    """A slow rank.

    Attributes:
        busy: share of the time that it computes.
        others: the median of the others' shares.
        since: when it was found.
    """

    busy: float
    others: float
    since: float

    def persists(self, now: float) -> bool:
        """Whether it has been slow for so long that another worker should take its place."""
        return now - self.since > _PERSISTS_S


class Pulses:
    """The latest pulses of one generation's ranks. All ranks do the same steps, so who computes longer is slower.

    Args:
        members: worker ids.
    """

    def __init__(self, members: Collection[str]) -> None:
        self._heard: dict[str, deque[Pulse]] = {member: deque() for member in members}
        self._slow: dict[str, Slow] = {}

    def hear(self, member: str, pulse: Pulse) -> None:
        """Takes a pulse; the one before again changes nothing."""
        heard = self._heard[member]
        if heard and pulse.time <= heard[-1].time:
            return
        heard.append(pulse)
        while len(heard) > 2 and heard[-1].time - heard[1].time >= _WINDOW_S:
            heard.popleft()

    def waiting_s(self) -> float:
        """For how long all ranks have been waiting for each other; 0 if one computes, or was not heard yet."""
        return min((heard[-1].waiting_s if heard else 0.0 for heard in self._heard.values()), default=0.0)

    def slow(self, now: float) -> dict[str, Slow]:
        """Ranks that are much slower than the others, found anew with the latest pulses."""
        shares = {member: share for member, heard in self._heard.items() if (share := _busy(heard)) is not None}
        found = {}
        if len(shares) == len(self._heard) > 1:
            ordered = sorted(shares.values())
            for member, share in shares.items():
                others = _median_without(ordered, share)
                if share > _SHARE and share > _FACTOR * others:
                    known = self._slow.get(member)
                    found[member] = Slow(share, others, known.since if known else now)
        self._slow = found
        return found


def _median_without(ordered: Sequence[float], value: float) -> float:
    """Median of sorted values, one of which is left out."""
    out, left = bisect.bisect_left(ordered, value), len(ordered) - 1
    middle = [ordered[index + (index >= out)] for index in ((left - 1) // 2, left // 2)]
    return sum(middle) / 2


def _busy(heard: Sequence[Pulse]) -> float | None:
    """Share of the window that a rank computed; None before it has been heard for a whole window."""
    if len(heard) < 2 or (passed := heard[-1].time - heard[0].time) < _WINDOW_S:
        return None
    return max(0.0, 1.0 - (heard[-1].waited_s - heard[0].waited_s) / passed)


def cut_off(reached: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Workers without whom all others reach each other: always next the one that most cannot reach, the last of equals.

    Args:
        reached: by worker, in rank order, the workers that it reaches; those that did not answer reach nobody.
    """
    left = list(reached)
    removed: list[str] = []
    while True:
        missing = {a: sum(b not in reached[a] or a not in reached[b] for b in left if b != a) for a in left}
        worst = max(reversed(left), key=lambda worker: missing[worker], default=None)
        if worst is None or missing[worst] == 0:
            return tuple(removed)
        left.remove(worst)
        removed.append(worst)
