"""mltrain, as a user runs it on a Ray cluster, but for a thread in place of the command."""

import contextlib
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from benchmarks.recovery_peers.side import NOTICE_S
from tests.support.datasets import make_dataset
from tests.support.drill import Drill, drill
from tests.support.hosts import Host, Hosts
from tests.support.training import experiment

_MODEL = "benchmarks.recovery_peers.ours_model:build"


class OursSide:
    """A run of mltrain; its collectives are ``collectives``."""

    announced = True
    collectives = "horovod"

    def __init__(self, hosts: Hosts, folder: Path, steps: Path, environments: Path) -> None:
        self._name = folder.name
        versions = f"ray {version('ray')}, torch {version('torch')}, horovod {version('horovod')}"
        self.says = f"{versions}; collectives {self.collectives}; heartbeat deadline 2.0 s, as by default"
        root = folder / "root"
        make_dataset(root, rows=20_000, shards=8)
        made = experiment(
            root, workers={"min": 1, "max": 3}, address=hosts.address, epochs=10_000, collectives=self.collectives
        )
        made["train"] |= {"evaluate": {"every": {"epochs": 10_000}}, "checkpoint": {"every": {"steps": 1_000_000}}}
        del made["train"]["optimizer"]
        self._mapping = {**made, "model": {"factory": _MODEL, "args": {"steps": str(steps)}}}
        self._drained = False
        self._under_way = contextlib.ExitStack()

    def __enter__(self) -> "OursSide":
        self._run: Drill = self._under_way.enter_context(drill(self._mapping, self._name))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._under_way.close()
        self._run.join()
        if kind is None and self._drained and self._run.events("worker lost"):
            raise SystemExit(f"an announced loss was not left in time: {self._run.events('worker lost')}")

    def announce(self, host: Host) -> None:
        self._drained = True
        host.drain(NOTICE_S)

    def returned(self, host: Host) -> None:
        """Ray says that it is there."""

    def story(self) -> str:
        self._run.join()
        return "\n".join(str(said) for said in self._run.said[-50:])
