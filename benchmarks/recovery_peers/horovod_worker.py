"""A worker of Horovod's elastic mode: ``horovod_worker STEPS`` under horovodrun."""

import os
import sys

import horovod.torch as hvd
import torch

from benchmarks.recovery_peers.stamps import Stamps
from benchmarks.recovery_peers.workload import Model, loss, optimizer


def main(steps: str) -> None:
    """Trains until it is killed, or its host is no longer wanted."""
    hvd.init()
    torch.set_num_threads(1)
    stamps = Stamps(steps, os.environ["HOROVOD_HOSTNAME"])
    model = Model()
    wrapped = hvd.DistributedOptimizer(optimizer(model), named_parameters=model.named_parameters())

    def train(state: hvd.elastic.TorchState) -> None:
        while True:
            wrapped.zero_grad()
            loss(model).backward()  # type: ignore[no-untyped-call]
            wrapped.step()
            state.step += 1
            stamps.done(state.step)
            state.commit()

    hvd.elastic.run(train)(hvd.elastic.TorchState(model=model, optimizer=wrapped, step=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
