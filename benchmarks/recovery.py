"""Claim: a killed worker costs half a second, a vanished host its deadline and half a second, a drained one no step.

Three hosts (network namespaces with a Ray node each) train, a worker each, a model with 4 MB of gradients. Again and
again something happens to one of them, and the run grows back:

- process: a worker gets SIGKILL; until the next step is done
- cut: a host's link is cut; until the next step is done
- drain: Ray is told that a host goes away; the longest time between two steps, less the usual
- growth: a worker joins; the same

Needs Linux and root.

    python -m benchmarks.recovery [--times 20] [--kinds process,cut,drain] [--collectives horovod]
"""

import argparse
import logging
import signal
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.support.datasets import make_dataset
from tests.support.drill import Drill, drill, paced
from tests.support.hosts import Host, Hosts, hosts, unavailable

_GROW_S = 120.0
# Two of each host: a run holds a node that it has lost again and again back, for minutes in the end.
_LOSSES_A_RUN = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", default="process,cut,drain")
    parser.add_argument("--collectives", default="horovod", choices=["horovod", "torch"])
    given = parser.parse_args()
    if (why := unavailable()) is not None:
        raise SystemExit(why)
    logging.getLogger("mltrain").setLevel(logging.ERROR)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_dataset(root, rows=20_000, shards=8)
        with hosts(3, root / "logs", cpus=1) as made:
            for kind in given.kinds.split(","):
                for start in range(0, given.times, _LOSSES_A_RUN):
                    name = f"{kind}-{start}"
                    steps = root / name
                    steps.mkdir()
                    mapping = paced(root, made.address, steps, {"min": 1, "max": 3}, collectives=given.collectives)
                    with drill(mapping, name) as run:
                        _Losses(run, made, steps, found).take(kind, range(start, given.times)[:_LOSSES_A_RUN])
                        run.stop()
                    made.mend()
                    print(f"{name}: {found[kind][start:]}", file=sys.stderr, flush=True)
    print(f"ray {version('ray')}, torch {version('torch')}, {given.collectives}; heartbeat deadline 2.0 s; seconds")
    print(f"{'':<8} {'times':>6} {'median':>8} {'worst':>8}")
    for kind, seconds in found.items():
        print(f"{kind:<8} {len(seconds):>6} {statistics.median(seconds):8.3f} {max(seconds):8.3f}")


class _Losses:
    def __init__(self, run: Drill, hosts: Hosts, steps: Path, found: dict[str, list[float]]) -> None:
        self._run = run
        self._hosts = hosts
        self._steps = steps
        self._found = found

    def take(self, kind: str, numbers: range) -> None:
        run = self._run
        run.until("training", generation=1)
        for number in numbers:
            # Some steps later, not at a moment that suits the collectives.
            time.sleep(1.0 + 0.13 * (number % 7))
            host = self._hosts[f"h{number % 3 + 1}"]
            seconds, repeated = getattr(self, f"_{kind}")(host)
            self._found.setdefault(kind, []).append(seconds)
            if kind == "drain" and repeated:
                raise SystemExit(f"an announced loss repeated {repeated} steps")
            before = len(self._begun())
            while len(run.until("generation formed", _GROW_S)["members"]) < 3:
                pass
            run.until("training")
            self._found.setdefault("growth", []).append(self._pause(before))

    def _process(self, host: Host) -> tuple[float, int]:
        victim = next(p for p in host.processes() if str(p.name()).startswith("ray::Worker"))
        began = time.monotonic()
        victim.send_signal(signal.SIGKILL)
        again = self._run.until("training again")
        return again["at"] - began, again["steps_repeated"]

    def _cut(self, host: Host) -> tuple[float, int]:
        began = time.monotonic()
        host.cut()
        again = self._run.until("training again")
        host.heal()
        return again["at"] - began, again["steps_repeated"]

    def _drain(self, host: Host) -> tuple[float, int]:
        before = len(self._begun())
        host.drain(60)
        formed = self._run.until("generation formed")
        self._run.until("training", generation=formed["generation"])
        pause = self._pause(before)
        host.power_off()
        host.start()
        return pause, len(self._run.events("worker lost"))

    def _pause(self, before: int) -> float:
        """The longest time between the begins of two steps since there were so many, less the usual."""
        time.sleep(0.5)
        begun = self._begun()
        gaps = [later - earlier for earlier, later in zip(begun[before - 1 :], begun[before:], strict=False)]
        return max(gaps) - statistics.median(gaps)

    def _begun(self) -> list[float]:
        """When each step was begun, by its last rank."""
        return sorted(path.stat().st_mtime for path in self._steps.iterdir())


if __name__ == "__main__":
    main()
