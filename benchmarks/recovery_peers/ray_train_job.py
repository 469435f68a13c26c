"""A run of Ray Train V2: ``python -m benchmarks.recovery_peers.ray_train_job CLUSTER STEPS STORAGE``."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.train.v2.api.config import ScalingConfig

from benchmarks.recovery_peers.ray_train_side import CHECKPOINT_STEPS, CONTROLLER, GLOO_TIMEOUT_S, RESIZE_S
from benchmarks.recovery_peers.stamps import Stamps
from benchmarks.recovery_peers.workload import Model, loss, optimizer
from cluster.setup.checkout import ROOT


def train(config: dict[str, Any]) -> None:
    """What each worker does, until it is killed."""
    torch.set_num_threads(1)
    stamps = Stamps(config["steps"], ray.util.get_node_ip_address())
    module = Model()
    inner = optimizer(module)
    step = 0
    if (found := ray.train.get_checkpoint()) is not None:
        with found.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"))
        module.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])
        step = state["step"]
    model = prepare_model(module)
    warned = False
    while True:
        inner.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        inner.step()
        step += 1
        stamps.done(step)
        if step % CHECKPOINT_STEPS == 0:
            _save(module, inner, step)
            if not warned and ray.train.get_preemption_info() is not None:
                _save(module, inner, step)
                warned = True


def _save(module: torch.nn.Module, inner: torch.optim.Optimizer, step: int) -> None:
    """Every rank reports, the first with a checkpoint."""
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report({"step": step})
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": module.state_dict(), "optimizer": inner.state_dict(), "step": step}
        torch.save(state, Path(folder, "state.pt"))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def main(address: str, steps: str, storage: str) -> None:
    """Trains until it is killed."""
    # Gloo would listen where the machine's name leads.
    surroundings = {"GLOO_SOCKET_IFNAME": "e0", "PYTHONPATH": str(ROOT), **CONTROLLER}
    os.environ.update(CONTROLLER)
    ray.init(address=address, runtime_env={"env_vars": surroundings}, log_to_driver=False)
    TorchTrainer(
        train,
        train_loop_config={"steps": steps},
        torch_config=TorchConfig(backend="gloo", timeout_s=GLOO_TIMEOUT_S),
        scaling_config=ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=RESIZE_S),
        run_config=ray.train.RunConfig(
            name="peer",
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=-1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
