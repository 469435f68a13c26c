"""Evaluation over several ranks, each a thread with a gather of its own: one rank's numbers, whoever has the rows."""

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor

from mltrain.collectives import LocalCollectives
from mltrain.data import Loader
from mltrain.evaluate import Evaluation, evaluate, tasks
from mltrain.models import TabularMLP
from tests.support.datasets import Features, make_dataset


class Threads:
    """What ranks in one process share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size


class Rank:
    """One rank's gather. As with Horovod, all ranks must give the same type and width."""

    def __init__(self, threads: Threads, rank: int) -> None:
        self._threads, self._rank = threads, rank
        self.size = threads.size

    def gather(self, tensor: Tensor) -> list[Tensor]:
        self._threads.given[self._rank] = tensor
        self._threads.barrier.wait()
        parts = list(self._threads.given)
        self._threads.barrier.wait()
        assert len({(part.dtype, part.shape[1:]) for part in parts}) == 1
        return parts


class Measured(TabularMLP):
    def get_metrics(self) -> dict[str, torchmetrics.Metric]:
        return {"own_auc": torchmetrics.AUROC(task="binary"), "own_mean": torchmetrics.MeanMetric()}

    def update_metric(self, batch: Any, outputs: Any, metric: torchmetrics.Metric) -> None:
        scores = outputs["y"].reshape(-1).sigmoid()
        if isinstance(metric, torchmetrics.MeanMetric):
            metric.update(scores, batch.weight)
        else:
            metric.update(scores, batch.labels["y"].long())


@pytest.mark.parametrize("owners", [[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [2, 0, 0, 2, 2]])
def test_metrics_do_not_depend_on_which_rank_has_which_rows(tmp_path: Path, owners: Sequence[int]) -> None:
    dataset = make_dataset(tmp_path, rows=900, features=Features(weight=True, ragged=1))
    # Metrics keep state, and ranks share no model.
    torch.manual_seed(3)
    state = Measured(dataset.schema, (8,), 0.0, None, True).state_dict()

    def evaluated(owner: int | None, collectives: Any) -> Evaluation:
        model = Measured(dataset.schema, (8,), 0.0, None, True)
        model.load_state_dict(state)
        loader = Loader(dataset, "test", global_batch_size=20, shuffle=False)
        mine = (batch for batch in loader if owner is None or owners[batch.step % len(owners)] == owner)
        found = evaluate(model, tasks(dataset.schema), mine, collectives, autocast=contextlib.nullcontext)
        loader.close()
        return found

    alone = evaluated(None, LocalCollectives())
    threads = Threads(3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda rank: evaluated(rank, Rank(threads, rank)), range(3)))
    assert {"own_auc", "own_mean", "auc", "loss"} <= alone.metrics.keys()
    for each in found:
        assert each.rows == alone.rows
        assert each.metrics == pytest.approx(alone.metrics, rel=1e-5)
