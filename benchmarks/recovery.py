"""Claim: a killed worker costs half a second, a vanished host its deadline and half a second, a drained one no step.

Three hosts (network namespaces with a Ray node each) train, a worker each, a model with 4 MB of gradients and steps of
30 ms. Again and again something happens to one of them, and the run grows back:

- process: a worker gets SIGKILL; until the next step is done
- cut: a host's link is cut; until the next step is done
- drain: the tool is told that a host goes away; the longest time between two steps, less the usual
- growth: a worker joins after each of them; the same

The same happens, on the same hosts and by turns, to what people use today: see ``benchmarks/recovery_peers``. One
stopwatch for all: every worker leaves a stamp for each step that its optimizer has made. A step that had been done
before, and is done again from a checkpoint, does not count; how many there were is in the table.

Needs Linux and root.

    python -m benchmarks.recovery [--times 20] [--kinds process,cut,drain] [--tools ours,torchft] [--stock DIR]

About two hours with all tools: Ray Train takes more than a minute for each host that is cut.
"""

import argparse
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.recovery_peers.horovod_side import HorovodSide
from benchmarks.recovery_peers.ours_side import OursSide
from benchmarks.recovery_peers.side import NOTICE_S, Side
from benchmarks.recovery_peers.stamps import Reader
from benchmarks.recovery_peers.tools import TOOLS
from cluster.setup import cache
from tests.support.hosts import Host, Hosts, hosts, unavailable

T = TypeVar("T")

_KINDS = ("process", "cut", "drain")
# Two of each host: a run of ours holds a node that it has lost again and again back, for minutes in the end.
_LOSSES_A_RUN = 6
# So many steps after a loss show that it is over.
_STEPS = 10
_WAIT_S = 300.0


@dataclasses.dataclass
class Found:
    """What one kind of loss cost one tool: seconds each, and steps that were done again."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    repeated: list[int] = dataclasses.field(default_factory=list)

    def add(self, seconds: float, repeated: int) -> None:
        self.seconds.append(seconds)
        self.repeated.append(repeated)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(_KINDS))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--collectives", default="horovod", choices=["horovod", "torch"], help="of ours")
    parser.add_argument("--stock", type=Path, metavar="DIR", help="where Horovod as it is released is installed")
    parser.add_argument("--environments", type=Path, default=cache.directory() / "compare", help="%(default)s")
    given = parser.parse_args()
    tools = given.tools.split(",")
    if "horovod" in tools and given.stock is None:
        print("horovod: not measured, as --stock does not say where it is", file=sys.stderr)
        tools.remove("horovod")
    if (why := unavailable()) is not None:
        raise SystemExit(why)
    logging.getLogger("mltrain").setLevel(logging.ERROR)
    # As on the other hosts: Ray's controllers are beside the head.
    os.environ.setdefault("RAY_worker_niceness", "0")
    OursSide.collectives = given.collectives
    HorovodSide.stock = given.stock
    found: dict[tuple[str, str], Found] = {}
    says: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, hosts(3, Path(folder) / "hosts", cpus=1) as made:
        for kind in given.kinds.split(","):
            for start in range(0, given.times, _LOSSES_A_RUN):
                numbers = range(start, given.times)[:_LOSSES_A_RUN]
                for tool in tools:
                    steps = Path(folder, f"{tool}-{kind}-{start}", "steps")
                    steps.mkdir(parents=True)
                    side = TOOLS[tool](made, steps.parent, steps, given.environments)
                    if kind != "drain" or side.announced:
                        _measure(tool, side, kind, numbers, made, steps, found)
                    says[tool] = side.says
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds")
    for tool, text in says.items():
        print(f"{tool}: {text}")
    print(_table(found))


def _measure(
    tool: str, side: Side, kind: str, numbers: range, made: Hosts, steps: Path, found: dict[tuple[str, str], Found]
) -> None:
    """One run of a tool with some losses of a kind."""
    began = time.monotonic()
    with contextlib.closing(Reader(steps)) as reader:
        losses = _Losses(side, made, reader)
        try:
            with side:
                for number in numbers:
                    losses.settle(number)
                    for name, (seconds, repeated) in losses.take(kind, made[f"h{number % 3 + 1}"]).items():
                        found.setdefault((name, tool), Found()).add(seconds, repeated)
                        print(f"{tool} {name} {seconds:.3f} s, {repeated} steps again", file=sys.stderr, flush=True)
        except TimeoutError as error:
            if tool == "ours":
                raise TimeoutError(f"{kind}: {error}\n{side.story()}") from error
            print(f"{tool} {kind}: {error}, given up\n{side.story()}", file=sys.stderr, flush=True)
            if losses.awaited is None:
                side.says += f"; did not start to train on all hosts ({kind}): not measured"
            else:
                found.setdefault((losses.awaited, tool), Found()).add(math.inf, 0)
    made.mend()
    print(f"{tool} {kind}: {len(numbers)} losses in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


class _Losses:
    """Losses of one run.

    Attributes:
        awaited: what the run has yet to recover from; None before its first loss.
    """

    awaited: str | None = None

    def __init__(self, side: Side, hosts: Hosts, reader: Reader) -> None:
        self._side = side
        self._hosts = hosts
        self._reader = reader

    def settle(self, number: int) -> None:
        """Waits until all hosts train, and some steps more: not until a moment that suits the collectives."""
        for host in self._hosts:
            self._joined(host, time.monotonic())
        time.sleep(1.0 + 0.13 * (number % 7))

    def take(self, kind: str, host: Host) -> dict[str, tuple[float, int]]:
        """Loses a host, or what is on it, and gets it back: seconds and repeated steps of the loss and the growth."""
        reader = self._reader
        reader.refresh()
        began = time.monotonic()
        usual_s = reader.usual_s(began)
        self.awaited = kind
        if kind == "drain":
            self._side.announce(host)
            until = self._left(host, began)
            pause, over = _longest([reader.last_before(began), *(at for at in reader.firsts(began) if at <= until)])
            found = {kind: (pause - usual_s, reader.repeated(began, until))}
        else:
            cut = host.address if kind == "cut" else None
            if kind == "cut":
                host.cut()
            else:
                os.kill(reader.of(host.address, 0.0)[-1].pid, signal.SIGKILL)
            firsts = self._wait(lambda: _enough(reader.firsts(began, cut)), "step after the loss")
            _, over = _longest([reader.last_before(began), *firsts])
            found = {kind: (over - began, reader.repeated(began, firsts[-1]))}
        self.awaited = "growth"
        returned = time.monotonic()
        self._hosts.mend()
        self._side.returned(host)
        since = over if kind == "process" else returned
        joined, until = self._joined(host, since)
        alone = [at for at in reader.firsts(over) if at <= joined]
        if len(alone) >= _STEPS:  # or else it came back with all the others
            pause, _ = _longest([reader.last_before(since), *(at for at in reader.firsts(since) if at <= until)])
            found["growth"] = (pause - usual_s, reader.repeated(since, until))
        return found

    def _left(self, host: Host, since: float) -> float:
        """Waits until the others do steps without a host; answers when they had done some."""
        over = since + NOTICE_S

        def alone() -> float | None:
            nonlocal over
            if time.monotonic() > over:
                over = math.inf
                host.power_off()
            own = self._reader.of(host.address, since)
            after = [at for at in self._reader.firsts(since) if at > (own[-1].at if own else since)]
            return after[_STEPS] if len(after) > _STEPS else None

        return self._wait(alone, f"step without {host.name}")

    def _joined(self, host: Host, since: float) -> tuple[float, float]:
        """Waits until a host does steps; answers when it had done the first and some more."""

        def joined() -> tuple[float, float] | None:
            own = self._reader.of(host.address, since)
            return (own[0].at, own[_STEPS].at) if len(own) > _STEPS else None

        return self._wait(joined, f"step of {host.name}")

    def _wait(self, condition: Callable[[], T | None], what: str) -> T:
        deadline = time.monotonic() + _WAIT_S
        while True:
            self._reader.refresh()
            if (found := condition()) is not None:
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} in {_WAIT_S:g} s")
            time.sleep(0.05)


def _enough(times: list[float]) -> list[float] | None:
    return times[:_STEPS] if len(times) >= _STEPS else None


def _longest(times: list[float]) -> tuple[float, float]:
    """The longest time between two steps, and when it was over."""
    return max((later - earlier, later) for earlier, later in itertools.pairwise(times))


def _table(found: dict[tuple[str, str], Found]) -> str:
    lines = [f"{'':<8} {'':<10} {'times':>6} {'median':>8} {'worst':>8} {'by ours':>8} {'steps again':>12}"]
    for (kind, tool), costs in sorted(found.items(), key=lambda item: item[0][0]):
        median = statistics.median(costs.seconds)
        ours = found.get((kind, "ours"))
        ratio = "" if ours is None else f"{median / statistics.median(ours.seconds):.1f}"
        again = statistics.median(costs.repeated)
        worst = max(costs.seconds)
        lines.append(f"{kind:<8} {tool:<10} {len(costs.seconds):>6} {median:8.3f} {worst:8.3f} {ratio:>8} {again:>12g}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
