"""Spot fleets as traces have them: nodes that come and go. `benchmarks/traces/README.md` describes the files."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "traces"
FILES = {
    "p3": "p3-trace.csv",
    "g4dn": "g4dn-trace.csv",
    "a100": "a100x1-east1b.txt",
    "v100": "v100x1-east1c.txt",
}


@dataclass(frozen=True)
class Life:
    """One node's time in the fleet, in seconds of the trace.

    Attributes:
        taken: it was taken away at its end; otherwise the trace ends then.
    """

    node: str
    begin_s: float
    end_s: float
    taken: bool


@dataclass(frozen=True)
class Trace:
    """A fleet over time: ``lives`` in the order of their begins, within ``0 … duration_s``."""

    name: str
    lives: tuple[Life, ...]
    duration_s: float

    @property
    def node_s(self) -> float:
        """Seconds that nodes were there, all together."""
        return sum(life.end_s - life.begin_s for life in self.lives)

    @property
    def removals(self) -> int:
        """Nodes that were taken away."""
        return sum(life.taken for life in self.lives)

    @property
    def most(self) -> int:
        """The most nodes at a time."""
        return max((count for _, count in self.counts()), default=0)

    def counts(self) -> list[tuple[float, int]]:
        """How many nodes there were from each moment on that changed it."""
        changes: dict[float, int] = {}
        for life in self.lives:
            changes[life.begin_s] = changes.get(life.begin_s, 0) + 1
            changes[life.end_s] = changes.get(life.end_s, 0) - 1
        found, count = [], 0
        for time in sorted(changes):
            count += changes[time]
            found.append((time, count))
        return found

    def window(self, begin_s: float, length_s: float) -> "Trace":
        """A part of it. Nodes that were there at its begin are there from second 0 on."""
        end_s = begin_s + length_s
        lives = []
        for life in self.lives:
            begin, end = max(life.begin_s, begin_s), min(life.end_s, end_s)
            if begin < end:
                lives.append(Life(life.node, begin - begin_s, end - begin_s, life.taken and end == life.end_s))
        return Trace(f"{self.name} {begin_s / 3600:.2f}-{end_s / 3600:.2f} h", _ordered(lives), length_s)

    def thinned(self, nodes: int) -> "Trace":
        """Of its nodes an even share, so that at most ``nodes`` are there at a time."""
        share, kept, ends, owed = nodes / self.most, [], list[float](), 0.0
        for life in self.lives:
            owed += share
            there = sum(end > life.begin_s for end in ends)
            if owed >= 1.0 and there < nodes:
                owed -= 1.0
                kept.append(life)
                ends.append(life.end_s)
        return replace(self, name=f"{self.name}, {nodes} nodes", lives=tuple(kept))

    def compressed(self, factor: float) -> "Trace":
        """The same in less time."""
        lives = tuple(replace(life, begin_s=life.begin_s / factor, end_s=life.end_s / factor) for life in self.lives)
        return Trace(f"{self.name}, {factor:g} times as fast", lives, self.duration_s / factor)


def load(name: str, seed: int = 0) -> Trace:
    """One of `FILES`.

    Args:
        name: its key.
        seed: says which nodes go, where a trace has only counts.
    """
    path = FOLDER / FILES[name]
    read = read_changes(path.read_text()) if path.suffix == ".csv" else lives_of(read_counts(path.read_text()), seed)
    return Trace(name, read[0], read[1])


def read_changes(text: str) -> tuple[tuple[Life, ...], float]:
    """Lives and duration from lines of ``milliseconds,add|remove,node``.

    Raises:
        ValueError: a line is neither, or a node comes twice or goes without having come.
    """
    begun: dict[str, float] = {}
    lives, time = [], 0.0
    for number, line in enumerate(text.splitlines(), 1):
        milliseconds, change, *nodes = line.split(",")
        time = float(milliseconds) / 1000
        for node in nodes:
            if change == "add" and node not in begun:
                begun[node] = time
            elif change == "remove" and begun.get(node, math.inf) <= time:
                lives.append(Life(node, begun[node], time, taken=True))
                begun[node] = math.inf
            else:
                raise ValueError(f"line {number}: {line!r}: cannot {change} {node}")
    lives += [Life(node, since, time, taken=False) for node, since in begun.items() if since < math.inf]
    return _ordered(lives), time


def read_counts(text: str) -> list[tuple[float, int]]:
    """How many nodes there were from when on, from lines of ``date, time, nodes``.

    Raises:
        ValueError: a line is something else.
    """
    found: list[tuple[datetime, int]] = []
    for line in filter(str.strip, text.splitlines()):
        day, clock, nodes = (word.strip() for word in line.split(","))
        time = datetime.fromisoformat(f"{day} {clock}")
        while found and found[-1][0] >= time:
            found.pop()
        found.append((time, int(nodes)))
    return [((time - found[0][0]).total_seconds(), nodes) for time, nodes in found]


def lives_of(counts: list[tuple[float, int]], seed: int) -> tuple[tuple[Life, ...], float]:
    """Lives that give these counts; which nodes go is drawn."""
    drawn, end_s = random.Random(seed), counts[-1][0]
    there: dict[str, float] = {}
    lives, named = [], 0
    for time, nodes in counts:
        while len(there) < nodes:
            named += 1
            there[f"node{named}"] = time
        for node in drawn.sample(list(there), len(there) - nodes):
            lives.append(Life(node, there.pop(node), time, taken=True))
    lives += [Life(node, since, end_s, taken=False) for node, since in there.items()]
    return _ordered(lives), end_s


def _ordered(lives: Iterable[Life]) -> tuple[Life, ...]:
    return tuple(
        sorted((life for life in lives if life.end_s > life.begin_s), key=lambda life: (life.begin_s, life.node))
    )
