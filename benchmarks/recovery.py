"""Claim: a killed worker process costs a run about half a second.

Two workers train; one is sent SIGKILL in the middle of an epoch; the time runs from the signal to the end of the next
step that the survivor completes. A replacement joins later, at an agreed step. Median and worst of several kills.

    python -m benchmarks.recovery [--kills 5]
"""

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    kills = parser.parse_args().kills
    from mltrain import config, train
    from mltrain.errors import StoppedError
    from tests.support.datasets import make_dataset

    with tempfile.TemporaryDirectory() as root:
        make_dataset(root, rows=20_000, shards=8)
        mapping = {
            "name": "recovery",
            "root": root,
            "dataset": "made",
            "train": {
                "epochs": 100_000,
                "global_batch_size": 256,
                "workers": {"min": 1, "max": 2},
                "evaluate": {"every": {"epochs": 100_000}},
            },
            "cluster": {"address": "local"},
            "callbacks": ["benchmarks.recovery:watcher"],
        }
        stop = train.StopRequest()
        watcher = Watcher.current = Watcher(kills, stop)
        try:
            train.run(config.parse(mapping), run_id="recovery", stop=stop)  # type: ignore[arg-type]
        except StoppedError:
            pass  # asked for, after the last kill
    times = watcher.times
    print("kill -> next step done, seconds")
    print(f"{'kills':>6} {'median':>8} {'worst':>8}")
    print(f"{len(times):>6} {statistics.median(times):8.3f} {max(times):8.3f}")


class Watcher:
    """Kills a worker whenever two of them train, until it has done so often enough."""

    current: "Watcher"

    def __init__(self, kills: int, stop: Any) -> None:
        self._kills = kills
        self._stop = stop
        self._pids: dict[str, int] = {}
        self._members: list[str] = []
        self._killed_at: float | None = None
        self.times: list[float] = []

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind == "worker ready":
            self._pids[fields["worker"]] = fields["pid"]
        elif kind == "generation formed":
            self._members = list(fields["members"])
        elif kind == "training again" and self._killed_at is not None:
            self.times.append(time.monotonic() - self._killed_at)
            self._killed_at = None
            if len(self.times) == self._kills:
                self._stop.request("enough")
        elif kind == "training" and len(self._members) == 2 and len(self.times) < self._kills:
            # Some steps later, not at a moment that suits the collectives.
            threading.Timer(1.0 + 0.13 * len(self.times), self._kill).start()

    def _kill(self) -> None:
        if len(self._members) == 2 and self._killed_at is None:
            victim = self._members[len(self.times) % 2]
            if Path(f"/proc/{self._pids[victim]}").exists():
                self._killed_at = time.monotonic()
                os.kill(self._pids[victim], signal.SIGKILL)


def watcher() -> Watcher:
    """The callback that the run is given."""
    return Watcher.current


if __name__ == "__main__":
    # The callback is found by its module's name, and so must be this one's main.
    from benchmarks.recovery import main as run

    run()
