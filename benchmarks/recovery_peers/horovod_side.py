"""Horovod's own elastic mode: horovodrun beside the head, with a script that lists the hosts.

It reaches hosts by ssh. Here a script of that name enters the host's namespace; unlike ssh it ends at once with the
worker that it started, also on a host that is cut.
"""

import os
import shlex
import subprocess
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.recovery_peers.side import launch, on, ours, tail
from cluster.setup.checkout import ROOT
from tests.support.hosts import Host, Hosts
from tests.support.processes import Process

_GLOO_TIMEOUT_S = 10
_COOLDOWN_S = (1, 2)


class HorovodSide:
    """``horovod.torch.elastic``, committing after every step. ``stock`` is where a Horovod is installed."""

    announced = True
    stock: Path | None = None

    def __init__(self, hosts: Hosts, folder: Path, steps: Path, environments: Path) -> None:
        self._hosts = hosts
        self._folder = folder
        self._steps = steps
        self._listed = folder / "hosts"
        self._driver: Process | None = None
        self._surroundings = {"PYTHONPATH": os.pathsep.join([*([str(self.stock)] if self.stock else []), str(ROOT)])}
        asked = "import horovod, torch; print('horovod', horovod.__version__ + ', torch', torch.__version__)"
        self.says = subprocess.run(
            [ours(), "-c", asked], env=os.environ | self._surroundings, capture_output=True, text=True, check=True
        ).stdout.strip()
        self.says += (
            f"; horovodrun, 1 to 3 processes, Gloo's timeout {_GLOO_TIMEOUT_S} s, hosts of failed workers are left out "
            f"for {_COOLDOWN_S} s, a commit after every step"
        )

    def __enter__(self) -> "HorovodSide":
        self._list(*self._hosts)
        discovery = self._script("discover", f"cat {self._listed}")
        cases = "\n".join(f'{host.address}) exec {shlex.join(on(host))} sh -c "$*" ;;' for host in self._hosts)
        self._script("ssh", f'while [ "$1" = -o ]; do shift 2; done\nhost=$1\nshift\ncase $host in\n{cases}\nesac')
        run: list[str | Path] = [
            ours(),
            "-m",
            "horovod.runner.launch",
            "--gloo",
            "-np",
            "3",
            "--min-np",
            "1",
            "--max-np",
            "3",
        ]
        run += ["--host-discovery-script", discovery, "--network-interfaces", _interface(self._hosts.head)]
        run += ["--gloo-timeout-seconds", str(_GLOO_TIMEOUT_S)]
        run += ["--blacklist-cooldown-range", *map(str, _COOLDOWN_S)]
        # The interface has another name on the hosts.
        worker: list[str | Path] = ["env", "HOROVOD_GLOO_IFACE=e0", "setpriv", "--pdeathsig", "KILL", ours()]
        worker += ["-m", "benchmarks.recovery_peers.horovod_worker", self._steps]
        surroundings = self._surroundings | {"PATH": f"{self._folder}{os.pathsep}{os.environ['PATH']}"}
        self._driver = launch(None, [*run, *worker], self._folder / "driver", surroundings)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._driver is not None:
            self._driver.end()

    def announce(self, host: Host) -> None:
        self._list(*(other for other in self._hosts if other is not host))

    def returned(self, host: Host) -> None:
        self._list(*self._hosts)

    def story(self) -> str:
        return tail(self._driver)

    def _list(self, *hosts: Host) -> None:
        fresh = self._listed.with_suffix(".new")
        fresh.write_text("".join(f"{host.address}:1\n" for host in hosts))
        fresh.rename(self._listed)

    def _script(self, name: str, content: str) -> Path:
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{content}\n")
        path.chmod(0o755)
        return path


def _interface(address: str) -> str:
    """The name of the interface that has an address."""
    names = (name for name, found in psutil.net_if_addrs().items() if any(entry.address == address for entry in found))
    return str(next(names))
