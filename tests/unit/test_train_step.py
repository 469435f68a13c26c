"""The step on its own, with one rank."""

import contextlib
from pathlib import Path

import torch

from mltrain.collectives import LocalCollectives
from mltrain.data import Loader
from mltrain.evaluate.tasks import tasks
from mltrain.models import tabular_mlp
from mltrain.train.control import Wishes
from mltrain.train.reducer import Reducer
from mltrain.train.step import Recipe, train_step
from tests.support.datasets import make_dataset


def test_a_rank_without_rows_is_heard_and_changes_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, rows=100)
    model = tabular_mlp(dataset.schema, hidden=[4])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    recipe = Recipe(tasks(dataset.schema), 1024, None, contextlib.nullcontext, lambda step: 1.0, seed=0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loader = Loader(dataset, "train", global_batch_size=1, rank=0, world_size=2, row_numbers=True)
    with Reducer(model, LocalCollectives()) as reducer:
        batch = next(iter(loader))
        result = train_step(
            model, optimizer, batch, reducer, recipe, step=0, rank=0, wishes=Wishes(stop=True, checkpoint=True)
        )
    loader.close()
    assert batch.rows == 0
    assert (result.stop, result.checkpoint, result.rows) == (True, True, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
