"""A replica of torchft, as its example for DDP has it: ``torchft_worker STEPS ADDRESS TIMEOUT_S`` under torchrun."""

import os
import sys
from datetime import timedelta

from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

from benchmarks.recovery_peers.stamps import Stamps
from benchmarks.recovery_peers.workload import Model, loss, optimizer


def main(steps: str, address: str, timeout_s: str) -> None:
    """Trains until it is killed."""
    stamps = Stamps(steps, address)
    module = Model()
    inner = optimizer(module)

    def state() -> dict[str, object]:
        return {"model": module.state_dict(), "optimizer": inner.state_dict()}

    def load(found: dict[str, dict[str, object]]) -> None:
        module.load_state_dict(found["model"])
        inner.load_state_dict(found["optimizer"])

    timeout = timedelta(seconds=float(timeout_s))
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        timeout=timeout,
        replica_id=f"replica_{os.environ['REPLICA_GROUP_ID']}",
    )
    model = DistributedDataParallel(manager, module)
    wrapped = Optimizer(manager, inner)
    while True:
        before = manager.current_step()
        wrapped.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        wrapped.step()
        if manager.current_step() > before:
            stamps.done(manager.current_step())


if __name__ == "__main__":
    main(*sys.argv[1:])
