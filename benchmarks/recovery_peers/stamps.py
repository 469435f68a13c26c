"""One stopwatch for all: each worker leaves a line for every step it has done, and the benchmark reads the lines.

A line is ``<step> <time>``, in a file named ``<host's address>-<process id>``. The time is the machine's monotonic
clock, which all namespaces share. Needs the standard library only: workers run in the environments of their tools.
"""

import itertools
import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple, TextIO


class Stamps:
    """What a worker has done."""

    def __init__(self, folder: str, address: str) -> None:
        self._file = Path(folder, f"{address}-{os.getpid()}").open("a", buffering=1)  # noqa: SIM115 (until the process ends)

    def done(self, step: int) -> None:
        """The optimizer has made a step that counts."""
        self._file.write(f"{step} {time.monotonic()}\n")


class Stamp(NamedTuple):
    """One step of one worker, and when it was done."""

    host: str
    pid: int
    step: int
    at: float


class Reader:
    """What all workers have done so far.

    Attributes:
        seen: in no order.
    """

    def __init__(self, folder: Path) -> None:
        self.seen: list[Stamp] = []
        self._folder = folder
        self._files: dict[Path, TextIO] = {}
        self._rests: dict[Path, str] = {}

    def refresh(self) -> None:
        """Reads what has been written since."""
        for path in self._folder.iterdir():
            if path not in self._files:
                self._files[path] = path.open()
            text = self._rests.get(path, "") + self._files[path].read()
            *lines, self._rests[path] = text.split("\n")
            host, _, pid = path.name.rpartition("-")
            for line in lines:
                step, at = line.split()
                self.seen.append(Stamp(host, int(pid), int(step), float(at)))

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def firsts(self, since: float, without: str | None = None) -> list[float]:
        """When each step was done for the first time by anyone, for steps that nobody had done before ``since``.

        Args:
            since: the moment.
            without: address of a host whose stamps after ``since`` do not count: it is cut from the others.
        """
        first: dict[int, float] = {}
        for stamp in self.seen:
            if stamp.at < since or stamp.host != without:
                first[stamp.step] = min(stamp.at, first.get(stamp.step, stamp.at))
        return sorted(at for at in first.values() if at >= since)

    def last_before(self, moment: float) -> float:
        """When the last step before a moment was done."""
        return max(stamp.at for stamp in self.seen if stamp.at < moment)

    def of(self, host: str, since: float) -> list[Stamp]:
        """A host's stamps since a moment, oldest first."""
        return sorted((stamp for stamp in self.seen if stamp.host == host and stamp.at >= since), key=lambda s: s.at)

    def usual_s(self, before: float) -> float:
        """Median time between two steps, of the fifty before a moment."""
        first: dict[int, float] = {}
        for stamp in self.seen:
            first[stamp.step] = min(stamp.at, first.get(stamp.step, stamp.at))
        times = sorted(at for at in first.values() if at < before)[-50:]
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(times))

    def repeated(self, since: float, until: float) -> int:
        """How many steps a host did in a time although the same host had done them before."""
        done: set[tuple[str, int]] = set()
        again: set[int] = set()
        for stamp in sorted(self.seen, key=lambda s: s.at):
            if stamp.at > until:
                break
            if (stamp.host, stamp.step) in done and stamp.at >= since:
                again.add(stamp.step)
            done.add((stamp.host, stamp.step))
        return len(again)
