"""SIGTERM as a notice: runs a command, and holds back its SIGTERM until the time that was granted is nearly over.

Kubernetes, Docker, Slurm and others say SIGTERM to a container's or job's first process and kill it after a grace
period. A Ray node that gets it ends at once, with all that runs on it. In front of it, this process turns SIGTERM into
the file that `mltrain.spot.hooks.File` reads; once everybody has left, Ray ends the node by itself.

    python -m mltrain.spot.guard --grace-s 60 -- ray start --block --address=HEAD:6379
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mltrain.spot.hooks import KUBERNETES

# What a Ray node needs to end in order.
_LAST_S = 5.0


def guard(command: Sequence[str], notice: Path, grace_s: float) -> int:
    """Runs ``command`` to its end. Needs the main thread.

    The first SIGTERM writes ``notice``, and is passed on 5 s before ``grace_s`` is over; a second one at once.

    Returns:
        What the command ended with, as a shell says it.
    """
    # What an earlier start left says nothing about this one.
    notice.unlink(missing_ok=True)
    child = subprocess.Popen(list(command))

    def announce(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGALRM, pass_on)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, grace_s - _LAST_S))
        written = notice.with_name(f"{notice.name}.{os.getpid()}")
        written.write_text(json.dumps({"text": "SIGTERM", "deadline_s": grace_s}))
        written.replace(notice)

    def pass_on(number: int, frame: Any) -> None:
        child.send_signal(signal.SIGTERM if number == signal.SIGALRM else number)

    signal.signal(signal.SIGTERM, announce)
    signal.signal(signal.SIGINT, pass_on)
    code = child.wait()
    return 128 - code if code < 0 else code


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mltrain.spot.guard", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--notice", type=Path, default=Path(KUBERNETES), help="the file to write (default: %(default)s)"
    )
    parser.add_argument("--grace-s", type=float, default=30.0, help="from SIGTERM to SIGKILL (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("which command? python -m mltrain.spot.guard --grace-s 60 -- ray start --block …")
    try:
        return guard(command, options.notice, options.grace_s)
    except FileNotFoundError as error:
        parser.error(f"{command[0]} cannot be started: {error}")


if __name__ == "__main__":
    sys.exit(main())
