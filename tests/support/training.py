"""Runs on small datasets, in this process or as a command that can be killed."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from mltrain import config as configs
from mltrain.config import Experiment
from mltrain.storage import open_store
from mltrain.train.checkpoints import read_tensors, stored
from tests.support.processes import Process, started

ROWS = 6000
BATCH = 128
_NOT_NEEDED = {"ray", "horovod", "pyspark", "torchmetrics"}

# A model that does something at one step of one process: the file named by `flag` makes it happen once.
FAULTY_MODEL = """
import ctypes, os, resource, signal, sys, time

import torch
from mltrain.models import TabularMLP


class Model(TabularMLP):
    def __init__(self, schema, at, what, flag, dropout, ballast, run):
        super().__init__(schema, (16,), dropout, None, True)
        self.at, self.what, self.flag, self.run = tuple(at), what, flag, run
        if ballast:
            # Makes checkpoints large, so that they take some time to write.
            self.ballast = torch.nn.Parameter(torch.zeros(ballast), requires_grad=False)

    def load_state_dict(self, *args, **kwargs):
        # Only who restores a checkpoint does so before it is told its rank.
        if self.what == "kill in restore" and "HOROVOD_RANK" not in os.environ and self._first():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_state_dict(*args, **kwargs)

    def forward(self, batch):
        outputs = super().forward(batch)
        if self.what == "slow alone" and os.environ.get("HOROVOD_SIZE") != "2":
            time.sleep(0.1)
        if self.training and (batch.epoch, batch.step) == self.at and self._first():
            if self.what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "broken device":
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            if self.what == "raise":
                print("the user's own output", flush=True)
                raise ValueError("the user's own mistake")
            if self.what == "hold":
                # Called so, it keeps Python's lock.
                ctypes.PyDLL(None).sleep(10)
            if self.what == "exit":
                sys.exit(0)
            if self.what == "nan":
                return {name: value * float("nan") for name, value in outputs.items()}
            if self.what == "signal":
                # As timeout(1) does: the process, then its group.
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
            if self.what == "signal twice":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.4)
                os.kill(os.getpid(), signal.SIGTERM)
            if self.what == "full disk":
                # Of this process's files: the run's record still fits, a part with ballast does not.
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
            if self.what == "lost disk":
                os.rename(self.run, self.run + "-lost")
                open(self.run, "x").close()
        return outputs

    def _first(self):
        if self.flag is None:
            return True
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def build(schema, at=(-1, -1), what="", flag=None, dropout=0.1, ballast=0, run=""):
    torch.manual_seed(1)
    return Model(schema, at, what, flag, dropout, ballast, run)
"""

# A model with metrics of its own. One rank is killed when the evaluation after step `at` has been computed, before the
# others can have told the controller.
MEASURED_MODEL = """
import os, signal

import torch, torchmetrics
from mltrain.models import TabularMLP


class Mean(torchmetrics.MeanMetric):
    def compute(self):
        result = super().compute()
        self.measured()
        return result


class Model(TabularMLP):
    def __init__(self, schema, rank, flag, at):
        super().__init__(schema, (16,), 0.0, None, True)
        self.rank, self.flag, self.at, self.evaluations = rank, flag, at, 0

    def get_metrics(self):
        mean = Mean()
        mean.measured = self.measured
        return {"own_auc": torchmetrics.AUROC(task="binary"), "own_mean": mean}

    def update_metric(self, batch, outputs, metric):
        scores = outputs["y"].reshape(-1).sigmoid()
        if isinstance(metric, Mean):
            metric.update(scores, batch.weight)
        else:
            metric.update(scores, batch.labels["y"].long())

    def measured(self):
        self.evaluations += 1
        if self.evaluations != self.at or os.environ.get("HOROVOD_RANK") != str(self.rank):
            return
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def build(schema, rank=-1, flag="", at=0):
    torch.manual_seed(1)
    return Model(schema, rank, flag, at)
"""


# A model whose loss is its own. Its outputs fit the label unless it is told to return more.
OWN_LOSS_MODEL = """
import torch
from torch.nn import functional
from mltrain.models import TabularMLP


class Model(TabularMLP):
    def __init__(self, schema, wide):
        super().__init__(schema, (16,), 0.0, None, True)
        self.wide = wide

    def forward(self, batch):
        logits = super().forward(batch)["y"].reshape(-1)
        return torch.stack([logits, logits], 1) if self.wide else logits

    def loss(self, outputs, batch):
        logits = outputs[:, 0] if self.wide else outputs
        label = batch.labels["y"].float()
        missed = torch.where(label > 0.5, 1 - logits.sigmoid(), logits.sigmoid())
        return missed**2 * functional.binary_cross_entropy_with_logits(logits, label, reduction="none")


def build(schema, wide=False):
    torch.manual_seed(1)
    return Model(schema, wide)
"""


def experiment(root: Path | str, *, workers: Any = 0, address: str = "local", **changes: Any) -> dict[str, Any]:
    """An experiment on the dataset ``made`` below ``root``; ``changes`` go into ``train``."""
    train: dict[str, Any] = {
        "epochs": 2,
        "global_batch_size": BATCH,
        "optimizer": {"lr": 0.01},
        "seed": 5,
        "workers": workers,
        "checkpoint": {"every": {"steps": 10}},
        **changes,
    }
    return {
        "name": "test",
        "root": str(root),
        "dataset": "made",
        "model": {"args": {"hidden": [16], "dropout": 0.1}},
        "objective": {"metric": "validation/loss"},
        "train": train,
        "cluster": {"address": address},
    }


def faulty(mapping: dict[str, Any], directory: Path, source: str = FAULTY_MODEL, **args: Any) -> dict[str, Any]:
    """The experiment with the model that can fail, or with that of another source."""
    path = directory / "model.py"
    path.write_text(source)
    return {**mapping, "model": {"factory": f"{path}:build", "args": args}}


def parse(mapping: Mapping[str, Any]) -> Experiment:
    """The experiment as a config."""
    parsed = configs.parse(mapping)
    assert isinstance(parsed, Experiment)
    return parsed


def start(mapping: Mapping[str, Any], run_id: str, logs: Path, **env: str) -> AbstractContextManager[Process]:
    """The run as a process of its own, which exits as the command line would."""
    command = [sys.executable, "-m", "tests.support.training", json.dumps(mapping), run_id]
    return started(command, logs, env={"PYTHONPATH": os.pathsep.join(sys.path), **env})


def weights(root: str | Path, run_id: str, step: int) -> dict[str, Any]:
    """The tensors of a checkpoint, as numpy arrays."""
    run = open_store(root).sub(f"runs/{run_id}")
    found = [checkpoint for checkpoint in stored(run) if checkpoint.step == step]
    assert found, f"no checkpoint of step {step}, only {[checkpoint.step for checkpoint in stored(run)]}"
    return {name: tensor.numpy() for name, tensor in read_tensors(run, found[0]).items()}


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two checkpoints are the same to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def main(mapping: str, run_id: str) -> int:
    """Runs, and answers the exit code."""
    from mltrain import train
    from mltrain.errors import MltrainError

    config = parse(json.loads(mapping))
    code = 0
    try:
        train.run(config, run_id=run_id)
    except MltrainError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    if config.train.workers.max == 0:
        assert not _NOT_NEEDED & set(sys.modules), "training in this process needs none of these"
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
