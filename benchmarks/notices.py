"""Claim: listening for a node's preemption notices takes at most 0.5 % of a core.

Each kind of source is listened to by an agent in a process that does nothing else, at the pace that it has on a node,
against a server in another process that speaks its protocol and says nothing new. What the process takes of a core
beyond the same process without an agent is counted by the kernel (user and system time). All processes run at the same
time. Beside them, with ``--ray``: an idle Ray actor, which is what an agent of its own on each node would be at least.

    python -m benchmarks.notices [--seconds 60] [--ray]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.versions import surroundings
from tests.support.metadata import serving

LIMIT = 0.005
_SOURCES = ("nobody", "aws", "gcp", "azure", "kubernetes", "http")
_CHILD = """
import sys, time
from mltrain.config import Notices
from mltrain.spot import Agent
from mltrain.spot.watch import sources
name, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
if name != "nobody":
    listened = sources(Notices(source=name, address=address), "127.0.0.1")
    agent = Agent(listened, lambda reason, deadline: None, lambda kind, fields: None, f"benchmark-{name}")
time.sleep(2)
began = time.process_time()
time.sleep(seconds)
print(time.process_time() - began)
"""


def shares(seconds: float) -> dict[str, float]:
    """Part of a core that each source takes."""
    with serving() as metadata, tempfile.TemporaryDirectory() as folder:
        places = {"kubernetes": str(Path(folder, "notice")), "http": f"{metadata.address}/hook"}
        children = {}
        for name in _SOURCES:
            words = [name, places.get(name, metadata.address), str(seconds)]
            command = [sys.executable, "-c", _CHILD, *words]
            children[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return {name: float(child.communicate()[0]) / seconds for name, child in children.items()}


def idle_actor(seconds: float) -> float:
    """Part of a core that a Ray actor takes that does nothing."""
    import ray

    class Idle:
        def pid(self) -> int:
            return os.getpid()

    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=1)
    made: Any = ray.remote(num_cpus=0)(Idle)
    actor = made.remote()
    process = psutil.Process(ray.get(actor.pid.remote()))
    time.sleep(2)
    began = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    taken = float(sum(process.cpu_times()[:2]) - began)
    ray.shutdown()
    return taken / seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    print(surroundings())
    found = shares(options.seconds)
    nobody = found.pop("nobody")
    print(f"{options.seconds:g} s")
    print(f"{'source':<12} {'% of a core':>12}   limit {LIMIT:.1%}")
    for name, share in found.items():
        print(f"{name:<12} {100 * (share - nobody):>12.3f}   {'kept' if share - nobody <= LIMIT else 'missed'}")
    if options.ray:
        print(f"{'idle actor':<12} {100 * idle_actor(options.seconds):>12.3f}")


if __name__ == "__main__":
    main()
