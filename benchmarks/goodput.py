"""Claim: spot nodes train for 97 % of the time that they could; `auto` checkpoints are within 2 % of the best.

Traces of spot fleets (`benchmarks/traces`) are run through a simulator that the library's own policies decide in, and
an hour of one of them, thinned to 6 nodes, through the real controller on this machine, beside the simulator's word
for the same events. Goodput is the share of the physical bound: the nodes' time, less what they need to start.

- fleets: the whole traces, beside a restart from the last checkpoint for every loss that costs 72 s (Ray Train V2 after
  a lost node) and 13 s (after a lost process); generously: new nodes join those for nothing, unless said
- intervals: checkpoints at fixed intervals and at `auto`'s
- replay: needs Linux and root. Waiting times are compressed, the run's own times are real: its costs are measured on
  the same hosts in a run before. Nodes begin when Ray has them

    python -m benchmarks.goodput [--parts fleets,intervals,replay] [--faster 12] [--seed 0]

Without the replay a minute of processor time; the replay takes an hour divided by ``--faster``, and some 4 minutes.
"""

import argparse
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.spot.simulator import Costs, Goodput, Notices, restarting, simulate
from benchmarks.spot.traces import FILES, Trace, load
from benchmarks.versions import surroundings
from mltrain.spot import LEAD_S

# AWS announces two minutes before, Google Cloud half a minute.
_LEADS = {"p3": 120.0, "g4dn": 120.0, "a100": 30.0, "v100": 30.0}
# Nodes that go could be left so long before.
_LEAVES = (120.0, 60.0, 30.0, 15.0)
_RESTARTS = (72.0, 13.0)
_INTERVALS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0)
_DRIVER_LOST_S = 4 * 3600.0
_STALLS = (0.05, 0.5, 2.0)
_COLUMNS = ("training", "start_up", "pauses", "repeated", "idle")
# The hour of p3 in which, thinned, the most nodes go.
_HOUR_S, _NODES = 0.8 * 3600, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="fleets,intervals,replay")
    parser.add_argument("--faster", type=float, default=12.0, help="how many times as fast the hour is replayed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"costs, in seconds: {Costs()}")
    for part in given.parts.split(","):
        print()
        if part == "fleets":
            fleets(given.seed)
        elif part == "intervals":
            intervals(given.seed)
        elif part == "replay":
            replayed(given.faster, given.seed)
        else:
            parser.error(f"no part is named {part}")


def fleets(seed: int) -> None:
    """Prints the goodput of whole traces."""
    costs = Costs()
    print("whole traces, simulated; shares of the bound")
    _print_header("ours over it")
    for name in FILES:
        trace, lead_s = load(name, seed), _LEADS[name]
        print(f"{name}: {trace.duration_s / 3600:.1f} h, up to {trace.most} nodes, {trace.removals} taken away")
        ours = simulate(trace, costs, Notices(lead_s), seed=seed)
        _print_row(f"notice {lead_s:g} s before, left as decided", ours)
        for leave_s in _LEAVES:
            if leave_s <= lead_s:
                at = "at the notice" if leave_s == lead_s else f"{leave_s:g} s before they go"
                _print_row(f"... left {at}", simulate(trace, costs, Notices(lead_s, leave_s=leave_s), seed=seed))
        rough = Notices(lead_s, missing=0.5, false_s=12 * 3600)
        _print_row("half of the notices missing, some false", simulate(trace, costs, rough, seed=seed))
        _print_row("no notices", simulate(trace, costs, Notices(missing=1.0), seed=seed))
        for restart_s in _RESTARTS:
            for growth in (False, True):
                beside = restarting(trace, costs, restart_s, growth=growth)
                also = ", also for new nodes" if growth else ""
                _print_row(f"restart of {restart_s:g} s{also}", beside, ours.share / beside.share)


def intervals(seed: int) -> None:
    """Prints goodput by checkpoint interval."""
    print(f"checkpoints; goodput at fixed intervals, seconds; the driver is lost every {_DRIVER_LOST_S / 3600:g} h")
    print(f"{'':<34}" + "".join(f"{every_s:>8g}" for every_s in _INTERVALS) + f"{'auto':>8}{'auto/best':>10}")
    for name in FILES:
        for stall_s in _STALLS if name == "p3" else (0.5,):
            costs = replace(Costs(), stall_s=stall_s)
            _print_sweep(f"{name}, stall {stall_s:g} s", partial(_elastic, load(name, seed), costs, seed))
            for restart_s in _RESTARTS:
                said = f"{name}, stall {stall_s:g} s, restarts of {restart_s:g} s"
                _print_sweep(said, partial(_restarted, load(name, seed), costs, restart_s))


def _elastic(trace: Trace, costs: Costs, seed: int, every_s: float | None) -> float:
    notices = Notices(_LEADS[trace.name], missing=0.5)
    found = [
        simulate(trace, costs, notices, every_s=every_s, driver_lost_s=_DRIVER_LOST_S, seed=each).share
        for each in (seed, seed + 1)
    ]
    return statistics.mean(found)


def _restarted(trace: Trace, costs: Costs, restart_s: float, every_s: float | None) -> float:
    return restarting(trace, costs, restart_s, every_s=every_s).share


def _print_sweep(name: str, share: Callable[[float | None], float]) -> None:
    fixed, auto = [share(every_s) for every_s in _INTERVALS], share(None)
    print(
        f"{name:<34}" + "".join(f"{each:8.4f}" for each in fixed) + f"{auto:8.4f}{auto / max(fixed):10.4f}", flush=True
    )


def replayed(faster: float, seed: int) -> None:
    """Prints what a real run made of an hour, and the simulator of the same."""
    from benchmarks.spot.replay import replay
    from tests.support.hosts import unavailable

    if (why := unavailable()) is not None:
        raise SystemExit(why)
    logging.getLogger("mltrain").setLevel(logging.ERROR)
    trace = load("p3").window(_HOUR_S, 3600.0).thinned(_NODES).compressed(faster)
    notices = Notices(_LEADS["p3"] / faster, missing=0.3, leave_s=LEAD_S / faster)
    with tempfile.TemporaryDirectory() as folder:
        found = replay(trace, notices, Path(folder), lambda said: print(said, file=sys.stderr, flush=True), seed)
    print(f"{surroundings('ray', 'torch')}; {trace.name}")
    print(f"{len(trace.lives)} nodes, {trace.removals} of which are taken away")
    print(f"measured before: {found.costs}")
    print(f"a host's start takes {statistics.median(found.node_start_s):.1f} s")
    _print_header("simulated")
    _print_row("real", found.real, found.simulated.share / found.real.share)
    _print_row("simulated", found.simulated)
    ratio = found.afterwards.share / found.real.share
    _print_row("... with the costs of the replay itself", found.afterwards, ratio)
    stepped = found.stepped_s / found.real.bound_s
    print(f"  the real run's steps took {stepped:.4f} of the bound by their own clocks")


def _print_header(ratio: str) -> None:
    print(
        f"{'':<40}{'goodput':>9}"
        + "".join(f"{name:>10}" for name in _COLUMNS)
        + f"{'formed':>8}{'rolled back':>13}{ratio:>14}"
    )


def _print_row(name: str, found: Goodput, ratio: float = math.nan) -> None:
    # Sums of many numbers may end a hair below zero.
    shares = "".join(f"{abs(getattr(found.spent, column)) / found.bound_s:10.4f}" for column in _COLUMNS)
    shown = "" if math.isnan(ratio) else f"{ratio:14.3f}"
    print(f"  {name:<38}{found.share:9.4f}{shares}{found.generations:8}{found.rollbacks:13}{shown}", flush=True)


if __name__ == "__main__":
    main()
