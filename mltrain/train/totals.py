"""What happened in a run as numbers: folded from its events, those of earlier attempts first."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# How an attempt ends that was not killed; before the first step there is nothing to lose.
_ORDERLY = ("run stopped", "run finished", "run failed", "run refused", "log opened", "run started")


@dataclass
class Totals:
    """Sums over all attempts of a run or a sweep.

    Attributes:
        losses: workers lost while they took part in a generation.
        generations: memberships formed.
        downtime_s: seconds from a loss to the end of the next step, or to the end of the attempt.
        steps_repeated: steps that a loss voided.
        rollbacks: times that nobody held the run's state any more: all workers were lost, or the controller.
        workers: the most in one generation.
        first: Unix time of the first event.
    """

    losses: int = 0
    generations: int = 0
    downtime_s: float = 0.0
    steps_repeated: int = 0
    rollbacks: int = 0
    workers: int = 0
    first: float | None = None
    _orderly: bool = True
    _down_since: float | None = None
    _held: dict[str, float] = field(default_factory=dict)
    _began: float | None = None
    _last: float = 0.0
    _wall_s: float = 0.0
    _worker_s: float = 0.0

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "Totals":
        """Of stored events, oldest attempt first; a new attempt begins after them."""
        totals = cls()
        for _, attempt in itertools.groupby(events, key=lambda event: event["attempt"]):
            for event in attempt:
                totals.add(event)
            totals.end_attempt()
        return totals

    @property
    def wall_s(self) -> float:
        """Seconds from the first to the last event of each attempt."""
        return self._wall_s + (0.0 if self._began is None else self._last - self._began)

    @property
    def worker_seconds(self) -> float:
        """Seconds times workers, from a worker's start to its end or the last event of its attempt."""
        return self._worker_s + sum(self._last - since for since in self._held.values())

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes the next event of the attempt under way."""
        time = float(event["time"])
        self.first = time if self.first is None else min(self.first, time)
        self._began = time if self._began is None else min(self._began, time)
        self._last = max(self._last, time)
        kind = event["event"]
        self._orderly = kind in _ORDERLY
        if kind == "generation formed":
            self.generations += 1
            self.workers = max(self.workers, len(event["members"]))
        elif kind == "training again":
            self._down_since = None
            self.downtime_s += event["downtime_s"]
            self.steps_repeated += event["steps_repeated"]
        elif kind in ("run stopped", "run failed"):
            self._end_downtime()
        elif kind == "state lost":
            self.rollbacks += 1
        elif kind == "worker placed":
            self._held[event["worker"]] = time
        elif kind in ("worker lost", "worker released"):
            self._worker_s += time - self._held.pop(event["worker"], time)
            if event.get("generation") is not None:
                self.losses += 1
                self._down_since = time if self._down_since is None else self._down_since

    def end_attempt(self) -> None:
        """What an attempt still held went with it."""
        self._end_downtime()
        self.rollbacks += not self._orderly
        self._wall_s, self._worker_s = self.wall_s, self.worker_seconds
        self._held, self._began, self._last = {}, None, 0.0

    def _end_downtime(self) -> None:
        if self._down_since is not None:
            self.downtime_s += self._last - self._down_since
            self._down_since = None
