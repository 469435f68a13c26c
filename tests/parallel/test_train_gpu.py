"""Trainings on GPUs, in bf16 and through a loss, by both collectives. Skipped, with the reason, where none can be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mltrain import train
from mltrain.results import read_metrics
from mltrain.storage import open_store
from tests.support.datasets import make_dataset
from tests.support.training import ROWS, experiment, faulty, start, weights

# A model that refuses to be anywhere but on its GPU, or to compute in anything but bf16, and says which GPU it has; one
# process of it ends at a step.
GPU_MODEL = """
import os, signal
from pathlib import Path

import torch
from mltrain.models import TabularMLP


class Model(TabularMLP):
    def __init__(self, schema, seen, flag):
        super().__init__(schema, (16,), 0.0, None, True)
        self.seen, self.flag = seen, flag

    def forward(self, batch):
        outputs = super().forward(batch)
        if self.training:
            if (batch.epoch, batch.step) == (1, 7) and self._first():
                os.kill(os.getpid(), signal.SIGKILL)
            assert {p.device.type for p in self.parameters()} == {"cuda"}
            assert {p.grad.dtype for p in self.parameters() if p.grad is not None} <= {torch.float32}
            assert {value.dtype for value in outputs.values()} == {torch.bfloat16}
            Path(self.seen, str(os.getpid())).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        return outputs

    def _first(self):
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def build(schema, seen, flag):
    torch.manual_seed(1)
    return Model(schema, seen, flag)
"""


def lacking(collectives: str, workers: int) -> str | None:
    """Why there can be no such training here; None if there can."""
    import horovod.torch as hvd

    found = torch.cuda.device_count()
    if found < workers:
        return f"wanted: a GPU for each of {workers} workers; here: {found}"
    if collectives == "horovod" and not hvd.nccl_built():
        return "Horovod is built without NCCL here: `make test HOROVOD=nccl` builds it with"
    return None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("collectives", ["horovod", "torch"])
def test_a_killed_process_is_replaced_on_a_gpu_in_bf16(tmp_path: Path, collectives: str, workers: int) -> None:
    if (why := lacking(collectives, workers)) is not None:
        pytest.skip(why)
    make_dataset(tmp_path, rows=ROWS, shards=6)
    wanted = {"min": workers, "max": workers, "gpus": 1}
    mapping = experiment(tmp_path, workers=wanted, precision="bf16", collectives=collectives)
    (tmp_path / "done").touch()
    for name, flag in (("quiet", "done"), ("killed", "flag")):
        (seen := tmp_path / f"{name}-seen").mkdir()
        model = faulty(mapping, seen, GPU_MODEL, seen=str(seen), flag=str(tmp_path / flag))
        with start(model, name, tmp_path / f"{name}-logs") as process:
            ended = process.wait(600)
        assert ended.exit_code == 0, ended.stderr
        devices = [path.read_text() for path in seen.iterdir() if path.name.isdecimal()]
        assert len(set(devices)) == workers
    quiet, killed = (train.load(str(tmp_path), name) for name in ("quiet", "killed"))
    assert (quiet.losses_survived, killed.losses_survived, killed.step) == (0, 1, quiet.step)
    one, other = (read_metrics(open_store(tmp_path), name) for name in ("quiet", "killed"))
    assert one["train/samples"].to_pylist() == other["train/samples"].to_pylist()
    # Kernels of GPUs need not add in one order.
    np.testing.assert_allclose(one["train/loss"].to_numpy(), other["train/loss"].to_numpy(), rtol=1e-2)
    stored = weights(tmp_path, "killed", killed.step)
    assert all(value.dtype == np.float32 for name, value in stored.items() if name.startswith("model."))
