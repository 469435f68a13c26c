"""torchft: a lighthouse beside the head, and on each host a replica under torchrun, which starts it again."""

import subprocess
from pathlib import Path
from types import TracebackType

from benchmarks.compare.environments import interpreter
from benchmarks.recovery_peers.side import launch, tail
from tests.support.hosts import Host, Hosts
from tests.support.processes import Process

_PORT = 29510
_LIGHTHOUSE = {"min_replicas": 1, "quorum_tick_ms": 100, "join_timeout_ms": 1000, "heartbeat_timeout_ms": 2000}
_TIMEOUT_S = 2.0


class TorchftSide:
    """torchft's Manager, DistributedDataParallel and Optimizer over ProcessGroupGloo."""

    announced = False

    def __init__(self, hosts: Hosts, folder: Path, steps: Path, environments: Path) -> None:
        self._hosts = hosts
        self._folder = folder
        self._steps = steps
        self._python = interpreter("torchft", environments)
        self._processes: list[Process] = []
        asked = (
            "from importlib.metadata import version as v; print('torchft', v('torchft-nightly'), 'torch', v('torch'))"
        )
        self.says = subprocess.run(
            [self._python, "-c", asked], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.says += (
            f"; lighthouse {_LIGHTHOUSE}, timeout of collectives and RPCs {_TIMEOUT_S} s; has no announced loss"
        )

    def __enter__(self) -> "TorchftSide":
        commands = self._python.parent
        words = [word for name, value in _LIGHTHOUSE.items() for word in (f"--{name}", str(value))]
        lighthouse: list[str | Path] = [
            commands / "torchft_lighthouse",
            "--bind",
            f"{self._hosts.head}:{_PORT}",
            *words,
        ]
        self._processes.append(launch(None, lighthouse, self._folder / "lighthouse"))
        for number, host in enumerate(self._hosts):
            run: list[str | Path] = [
                commands / "torchrun",
                "--nnodes=1",
                "--nproc-per-node=1",
                "--max-restarts=1000",
                "--standalone",
            ]
            worker: list[str | Path] = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                self._python,
                "-m",
                "benchmarks.recovery_peers.torchft_worker",
            ]
            given = [self._steps, host.address, _TIMEOUT_S]
            environment = {
                "TORCHFT_LIGHTHOUSE": f"http://{self._hosts.head}:{_PORT}",
                "REPLICA_GROUP_ID": str(number),
                "NUM_REPLICA_GROUPS": str(len(self._hosts)),
            }
            command = [*run, f"--local-addr={host.address}", "--no-python", *worker, *map(str, given)]
            self._processes.append(launch(host, command, self._folder / host.name, environment))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        for process in self._processes:
            process.end()

    def announce(self, host: Host) -> None:
        raise NotImplementedError("torchft cannot be told of a loss beforehand: ``announced`` says so")

    def returned(self, host: Host) -> None:
        """Its torchrun has started it again."""

    def story(self) -> str:
        return tail(*self._processes)
