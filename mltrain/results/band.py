"""A run's memberships over its steps, for a picture: how many workers took part, and what changed it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LOSS, DRAIN, SLOW, STALL = "loss", "left as announced", "replaced, being slow", "stall"
WAIT, CHECKPOINT = "wait for workers", "checkpoint"


@dataclass(frozen=True)
class Span:
    """Steps that one number of workers did: those after ``first``, up to ``last``."""

    first: int
    last: int
    workers: int


@dataclass(frozen=True)
class Mark:
    """Something that happened when so many steps were done."""

    step: int
    kind: str


@dataclass
class Band:
    """The spans of a run in the order of steps, and its marks as they came."""

    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def band(events: Iterable[Mapping[str, Any]], last_step: int) -> Band:
    """Spans and marks of a run on workers; of one in a single process only checkpoints.

    Args:
        events: stored events in the order of their times, the oldest attempt's first.
        last_step: of the run so far.
    """
    made = Band()
    members: list[str] = []
    missed: set[str] = set()
    slow: set[str] = set()
    waiting: list[str] = []
    begun: list[tuple[int, int]] = []
    for event in events:
        kind = event["event"]
        if kind == "run started":
            members = []
        elif kind == "generation formed":
            left = set(members) - set(event["members"]) - missed
            waiting += [DRAIN] * len(left - slow) + [SLOW] * len(left & slow)
            members, missed = list(event["members"]), set()
        elif kind in ("worker silent", "worker lost"):
            worker = event["worker"]
            if worker in members and worker not in missed:
                missed.add(worker)
                waiting.append(LOSS)
        elif kind == "straggler":
            slow.add(event["worker"])
        elif kind == "generation stalled":
            waiting.append(STALL)
        elif kind == "too few workers":
            waiting.append(WAIT)
        elif kind == "training":
            begun = [(step, workers) for step, workers in begun if step < event["step"]]
            begun.append((event["step"], len(members)))
            made.marks += [Mark(event["step"], what) for what in waiting]
            waiting = []
        elif kind == "checkpoint":
            made.marks.append(Mark(event["step"], CHECKPOINT))
    made.marks += [Mark(last_step, what) for what in waiting]
    ends = [*(step for step, _ in begun[1:]), last_step]
    made.spans = [Span(first, last, w) for (first, w), last in zip(begun, ends, strict=True)] if begun else []
    return made
