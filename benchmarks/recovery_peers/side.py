"""What the benchmark asks of a tool: to train on three hosts, and to be told of a loss that can be told of."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from cluster.setup.checkout import ROOT
from tests.support.hosts import Host, Hosts
from tests.support.processes import Process

# How long before it goes a host is announced to go: what the clouds give, at the least.
NOTICE_S = 30.0


class Side(Protocol):
    """One tool that trains, a worker a host, from entering the block until it ends; nothing of it is left then.

    Attributes:
        says: versions and settings.
        announced: whether it can be told of a loss beforehand.
    """

    says: str
    announced: bool

    def __init__(self, hosts: Hosts, folder: Path, steps: Path, environments: Path) -> None:
        """
        Args:
            hosts: where it trains.
            folder: for its own files and logs.
            steps: for stamps.
            environments: where the tools' environments are.
        """

    def __enter__(self) -> "Side": ...

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None: ...

    def announce(self, host: Host) -> None:
        """Tells it that a host goes away."""

    def returned(self, host: Host) -> None:
        """Tells it that a host that was lost is as before, if it needs to be told."""

    def story(self) -> str:
        """What it said last, for whoever wonders why it does not train."""


def launch(
    host: Host | None, command: Sequence[str | Path], logs: Path, env: Mapping[str, str] | None = None
) -> Process:
    """Starts a command on a host, or beside the head if there is none. It ends with the benchmark."""
    into = ["setpriv", "--pdeathsig", "KILL"]
    if host is not None:
        into += on(host)
    surroundings = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **(env or {})}
    return Process([*into, *command], logs, env=surroundings, cwd=ROOT)


def on(host: Host) -> list[str]:
    """The words before a command that make it run on a host, whose own name is then its address.

    Some tools tell that name their peers, some listen where it leads.
    """
    return [*host.prefix(), "unshare", "--uts", "sh", "-c", f'hostname {host.address} && exec "$@"', "sh"]


def ours() -> Path:
    """This project's own Python."""
    return Path(sys.executable)


def tail(*processes: Process | None) -> str:
    """The last of what processes wrote."""
    running = [process for process in processes if process is not None]
    return "\n".join(text[-3000:] for process in running for text in (process.stdout, process.stderr))
