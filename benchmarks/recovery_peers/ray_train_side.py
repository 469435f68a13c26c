"""Ray Train V2 with torch: a driver beside the head; Ray restarts the workers from a checkpoint."""

from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from benchmarks.recovery_peers.side import NOTICE_S, launch, ours, tail
from tests.support.hosts import Host, Hosts
from tests.support.processes import Process

CHECKPOINT_STEPS = 25
GLOO_TIMEOUT_S = 10
RESIZE_S = 5.0
# How often the controller looks after its workers and for drains (2 and 5 s by default), how long a worker may be
# silent (10 min by default), how long a group may take to start (60 s by default).
CONTROLLER = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


class RayTrainSide:
    """TorchTrainer with 1 to 3 workers, a checkpoint every 25 steps."""

    announced = True

    def __init__(self, hosts: Hosts, folder: Path, steps: Path, environments: Path) -> None:
        job = [ours(), "-m", "benchmarks.recovery_peers.ray_train_job", hosts.address, steps, folder / "storage"]
        self._command = [str(word) for word in job]
        self._logs = folder / "driver"
        self._driver: Process | None = None
        self.says = (
            f"ray {version('ray')}, torch {version('torch')}; elastic (1, 3), looks every {RESIZE_S} s for more, "
            f"max_failures=-1, a checkpoint every {CHECKPOINT_STEPS} steps, Gloo's timeout {GLOO_TIMEOUT_S} s; "
            + ", ".join(f"{name}={value}" for name, value in CONTROLLER.items())
        )

    def __enter__(self) -> "RayTrainSide":
        self._driver = launch(None, self._command, self._logs)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._driver is not None:
            self._driver.end()

    def announce(self, host: Host) -> None:
        host.drain(NOTICE_S)

    def returned(self, host: Host) -> None:
        """Ray says that it is there."""

    def story(self) -> str:
        return tail(self._driver)
