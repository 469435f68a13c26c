"""Claim: one controller serves 1,000 workers: a plan within 100 ms, their heartbeats within one core.

The workers are simulated: connections from other processes that speak as workers do, each every half second.

    python -m benchmarks.controller [--workers 1000] [--seconds 10]
"""

import argparse
import multiprocessing
import queue
import statistics
import threading
import time
from typing import Any

from benchmarks.versions import surroundings
from mltrain.train.link import Hub, Link
from mltrain.train.membership import Generation, Limits, WorkerState, WorkerStatus, plan, seats
from mltrain.train.pulses import Pulse, Pulses

_PROCESSES = 4
_INTERVAL_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    print(surroundings())
    cpu_share, worst_s = heartbeats(given.workers, given.seconds)
    print(f"{given.workers} simulated workers")
    print(f"{'heartbeats every 0.5 s: share of a core':<48} {cpu_share:8.1%}")
    print(f"{'... longest since a worker was heard':<48} {worst_s:8.3f} s")
    for name, seconds in plans(given.workers).items():
        print(f"{name:<48} {seconds * 1000:8.2f} ms")


def heartbeats(workers: int, seconds: float) -> tuple[float, float]:
    """Share of a core that the hub takes, and the longest silence that it saw."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    hub = Hub("127.0.0.1", "secret", inbox)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    shares = [range(number, workers, _PROCESSES) for number in range(_PROCESSES)]
    peers = [context.Process(target=_beat, args=(hub.address, share, stop)) for share in shares]
    try:
        for peer in peers:
            peer.start()
        for _ in range(workers):
            inbox.get(timeout=120)
        time.sleep(2 * _INTERVAL_S)
        began, used = time.monotonic(), time.process_time()
        worst = 0.0
        while time.monotonic() - began < seconds:
            time.sleep(0.1)
            now = time.monotonic()
            worst = max(worst, *(now - (hub.heard(f"w{number}") or 0.0) for number in range(workers)))
        return (time.process_time() - used) / (time.monotonic() - began), worst
    finally:
        stop.set()
        for peer in peers:
            peer.join()
        hub.close()


def _beat(address: tuple[str, int], numbers: range, stop: Any) -> None:
    facts = {"generation": 1, "waited_s": 1.0, "waiting_s": 0.0}
    threading.stack_size(1 << 18)
    links = [
        Link(
            address,
            {"worker": f"w{number}", "secret": "secret"},
            interval_s=_INTERVAL_S,
            silence_s=60.0,
            on_command=lambda message: None,
            on_beat=lambda: facts,
            on_lost=lambda why: None,
        )
        for number in numbers
    ]
    stop.wait()
    assert len(links) == len(numbers)


def plans(workers: int) -> dict[str, float]:
    """Median seconds of what the controller does with as many facts."""
    limits = Limits(1, workers, 60.0)
    nodes = [f"node-{number // 8}" for number in range(workers)]
    ready = [
        WorkerStatus(f"w{number}", node, WorkerState.READY, number if number % 7 else None)
        for number, node in enumerate(nodes)
    ]
    members = tuple(worker.id for worker in ready)
    joined = [WorkerStatus(w.id, w.node, WorkerState.JOINED, rank) for rank, w in enumerate(ready)]
    pulses = Pulses(members)
    for tick in range(20):
        for member in members:
            pulses.hear(member, Pulse(tick / 2, tick / 4, 0.0))
    tried = {
        "a plan while a generation runs": lambda: plan(Generation(1, members), joined, limits, 0.0, fresh=False),
        "a plan of a new generation": lambda: plan(None, ready, limits, 0.0, fresh=False),
        "seats of its ranks": lambda: seats(nodes),
        "who is slow": lambda: pulses.slow(10.0),
    }
    return {name: statistics.median(_timed(call) for _ in range(9)) for name, call in tried.items()}


def _timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
