"""``python -m tests.chaos [KIND] [--seed N] [--count N]``: all kinds with full counts, or one."""

import argparse
import importlib
import logging
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.result import Result

COUNTS = {
    "damage": 2000,
    "protocol": 800,
    "spark": 250,
    "readers": 1000,
    "cache": 40,
    "outage": 2,
    "garbage": 200,
    "elastic": 200,
    "checkpoints": 1800,
}
"""Kinds, each a module, and how many cases of each, or how many faults: what its ``run`` counts."""


def run(kind: str, count: int, seed: int) -> Result:
    """Runs the cases of a kind in a directory of their own."""
    with tempfile.TemporaryDirectory(prefix=f"mltrain-chaos-{kind}-") as folder:
        result: Result = importlib.import_module(f"tests.chaos.{kind}").run(count, seed, Path(folder))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*COUNTS, []], metavar="KIND", help=", ".join(COUNTS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the first case")
    parser.add_argument("--count", type=int, help="cases of each kind")
    given = parser.parse_args()
    # Retries of storage are what is expected here.
    logging.getLogger("mltrain").setLevel(logging.ERROR)
    failures = 0
    for kind in given.kinds or COUNTS:
        started = time.monotonic()
        sys.stdout.write(f"{kind}: {given.count or COUNTS[kind]} cases from seed {given.seed}\n")
        sys.stdout.flush()
        try:
            result = run(kind, given.count or COUNTS[kind], given.seed)
        except Exception:  # of the kind as a whole: the others still run
            result = Result(kind, given.seed, failures=[traceback.format_exc()])
        result.figures["seconds"] = f"{time.monotonic() - started:.0f}"
        failures += len(result.failures)
        sys.stdout.write(result.text())
        sys.stdout.flush()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
