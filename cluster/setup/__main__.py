"""``python3 -m cluster.setup [--tests] [--nccl]``: everything that ``make setup`` promises, in order.

With ``--lock`` the lock files are resolved anew instead.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from cluster.setup import cache, environments, prerequisites, s3_server
from cluster.setup.checkout import ROOT, run
from cluster.setup.horovod import Wheel

if TYPE_CHECKING:
    from cluster.setup.prerequisites import Python


def _require(tests: bool) -> Python:
    missing = prerequisites.check(tests)
    python = prerequisites.choose_python()
    if missing or python is None:
        lines = "".join(f"  {each.what}\n      Debian: apt-get install {each.package}\n" for each in missing)
        raise SystemExit(f"setup: missing on this machine (nothing was built):\n{lines}")
    return python


def _make_second_environment(python: Python) -> None:
    """The unit tests run on every supported Python that the machine has."""
    for version in prerequisites.PYTHONS:
        others = [found for found in prerequisites.pythons(version) if version != python.version]
        if others:
            environments.make(ROOT / ".venv{}{}".format(*version), others[0], None)


def main(arguments: list[str]) -> None:
    """Makes the checkout ready; quick when it is."""
    tests = "--tests" in arguments
    python = _require(tests)
    if "--lock" in arguments:
        environments.lock(python)
        return
    new = not (ROOT / ".venv").exists()
    with cache.locked(ROOT):
        environments.make(ROOT / ".venv", python, Wheel(python, nccl="--nccl" in arguments))
        run(ROOT / ".venv" / "bin" / "python", "-m", "cluster.setup.jars")
        if tests:
            s3_server.install()
            _make_second_environment(python)
    for each in prerequisites.check_hosts() if tests else []:
        install = f"; Debian: apt-get install {each.package}" if each.package else ""
        print(f"setup: some tests will be skipped without {each.what}{install}", file=sys.stderr)
    if new:
        print("setup: done; `source .venv/bin/activate` puts mltrain on the PATH", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"setup: exit code {failed.returncode} of: {' '.join(failed.cmd)}") from None
