"""What became of the seconds of a run's nodes, folded from its events.

A worker's seconds count from when it is started to its end; a node with several workers counts once for each.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Event = Mapping[str, Any]
# Where a node does not say which market it is of.
UNKNOWN = "unknown"
_ORDERLY = ("run stopped", "run finished", "run failed", "run refused")


@dataclass
class Spent:
    """Seconds times nodes.

    Attributes:
        training: in steps that count, evaluations included.
        start_up: from a worker's start until it could take part.
        pauses: in a generation that forms, breaks, ends or waits, and in what a checkpoint holds the training up.
        repeated: in steps that were void and done again.
        idle: able to take part, and not asked to.
    """

    training: float = 0.0
    start_up: float = 0.0
    pauses: float = 0.0
    repeated: float = 0.0
    idle: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.training + self.start_up + self.pauses + self.repeated + self.idle

    def add(self, other: "Spent") -> None:
        """Adds another's seconds."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def move(self, seconds: float, use: str, to: str, of: "Spent | None" = None) -> None:
        """Takes seconds, as many as there are, from one use to another, here or of another account."""
        into = self if of is None else of
        moved = max(0.0, min(seconds, getattr(self, use)))
        setattr(self, use, getattr(self, use) - moved)
        setattr(into, to, getattr(into, to) + moved)


@dataclass
class _Worker:
    market: str
    spent: Spent = field(default_factory=Spent)
    ready: bool = False
    # Since it was last heard, if it is silent: its node may be gone.
    unheard: Spent | None = None
    # Of its training, what the latest checkpoint holds.
    saved: float = 0.0


class _Account:
    """One run's: told its events in the order of their times, an attempt after the other."""

    def __init__(self) -> None:
        self.ended: list[_Worker] = []
        self._alive: dict[str, _Worker] = {}
        self._known: dict[str, _Worker] = {}
        # Ended since the latest checkpoint.
        self._left: list[_Worker] = []
        self._members: list[str] = []
        self._training = False
        self._first_step = 0
        self._trained_s = 0.0
        self._before: tuple[list[str], int, float] = ([], 0, 0.0)
        self._now: float | None = None
        self._orderly = True

    def tell(self, event: Event) -> None:
        """Takes the next event."""
        self._pass(float(event["time"]))
        kind, name = event["event"], event.get("worker", "")
        self._orderly = kind in _ORDERLY
        worker = self._alive.get(name)
        if kind == "worker started":
            self._begin(name, str(event.get("market") or UNKNOWN))
        elif kind == "worker ready" and worker is not None:
            worker.ready = True
        elif kind == "generation formed":
            self._formed(list(event["members"]))
        elif kind == "training":
            self._training, self._first_step = True, int(event["step"])
        elif kind == "generation ended":
            self._training = False
        elif kind == "generation stalled":
            self._held_up(float(event["waiting_s"]))
            self._training = False
        elif kind == "checkpoint":
            self._saved(event)
        elif kind == "worker silent" and worker is not None:
            self._fell_silent(name, worker, float(event["silent_s"]))
        elif kind == "worker heard again" and worker is not None and worker.unheard is not None:
            worker.spent.pauses += worker.unheard.total
            worker.unheard = None
        elif kind in ("worker lost", "worker released") and worker is not None:
            self._training = self._training and name not in self._members
            self.ended.append(self._alive.pop(name))
            self._left.append(worker)
        elif kind == "training again":
            self._repeated(int(event["steps_repeated"]))

    def close(self, *, resumed: bool) -> None:
        """An attempt is over, and its workers with it; ``resumed``: there is another."""
        if resumed and not self._orderly:
            # Its process ended without a word: what no checkpoint held is done again.
            for worker in self._known.values():
                worker.spent.move(worker.spent.training - worker.saved, "training", "repeated")
        self.ended += self._alive.values()
        self._alive, self._known, self._members, self._left = {}, {}, [], []
        self._training, self._now, self._before = False, None, ([], 0, 0.0)

    def _pass(self, now: float) -> None:
        passed = 0.0 if self._now is None else max(0.0, now - self._now)
        self._now = now if self._now is None else max(self._now, now)
        for name, worker in self._alive.items():
            into = worker.spent if worker.unheard is None else worker.unheard
            if not worker.ready:
                into.start_up += passed
            elif name not in self._members:
                into.idle += passed
            elif self._training:
                into.training += passed
            else:
                into.pauses += passed
        self._trained_s += passed if self._training else 0.0

    def _begin(self, name: str, market: str) -> _Worker:
        worker = self._alive[name] = self._known[name] = _Worker(market)
        return worker

    def _formed(self, members: list[str]) -> None:
        for name in members:
            # Training in one process has no worker that starts.
            worker = self._alive.get(name) or self._begin(name, UNKNOWN)
            worker.ready = True
        if self._trained_s:
            self._before = (self._members, self._first_step, self._trained_s)
        # A run in one process just trains.
        self._members, self._training, self._trained_s = members, members == ["local"], 0.0

    def _held_up(self, seconds: float) -> None:
        """The generation did not train in the seconds just past, although it seemed so."""
        if not self._training:
            return
        seconds = min(seconds, self._trained_s)
        self._trained_s -= seconds
        for name in self._members:
            if name in self._alive:
                self._alive[name].spent.move(seconds, "training", "pauses")

    def _saved(self, event: Event) -> None:
        self._held_up(float(event["stall_s"]) + float(event.get("waited_s", 0.0)))
        since = float(event.get("write_s", 0.0))
        for name, worker in self._alive.items():
            late = since if self._training and name in self._members else 0.0
            worker.saved = max(worker.saved, worker.spent.training - late)
        for worker in self._left:
            worker.saved = worker.spent.training
        self._left = []

    def _fell_silent(self, name: str, worker: _Worker, silent_s: float) -> None:
        """What a worker did since it was last heard is not known; that its generation did not go on is."""
        if name in self._members:
            self._held_up(silent_s)
            self._training = False
        use = "start_up" if not worker.ready else "pauses" if name in self._members else "idle"
        worker.unheard = Spent()
        worker.spent.move(silent_s, use, use, of=worker.unheard)

    def _repeated(self, steps: int) -> None:
        """The last generation's steps took equally long; the one that broke off was, on average, half done."""
        members, first, trained_s = self._before
        if not steps or not trained_s:
            return
        done = max(self._first_step + steps - 1 - first, 0) + 0.5
        for name in members:
            self._known[name].spent.move((steps - 0.5) * trained_s / done, "training", "repeated")


def spent(events: Iterable[Event]) -> dict[str, Spent]:
    """Seconds by market (`ray.io/market-type` of the nodes) and use.

    What a worker did between its last sign of life and its loss is nobody's: its node was gone.

    Args:
        events: as :func:`mltrain.results.read_events` answers.
    """
    ordered = sorted(events, key=lambda event: (event["attempt"], event["time"]))
    account = _Account()
    for number, attempt in itertools.groupby(ordered, key=lambda event: event["attempt"]):
        for event in attempt:
            account.tell(event)
        account.close(resumed=number != ordered[-1]["attempt"])
    found: dict[str, Spent] = {}
    for worker in account.ended:
        found.setdefault(worker.market, Spent()).add(worker.spent)
    return found
