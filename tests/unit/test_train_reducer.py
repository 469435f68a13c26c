"""The reducer on its own: which models' gradients it sums, and which it refuses to."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mltrain.collectives import LocalCollectives
from mltrain.errors import TrainingError
from mltrain.train.reducer import Reducer, Tally


class Deep(nn.Module):
    """A layer that is used three times, with or without activation checkpointing; it can be frozen at first."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.reentrant = reentrant

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(rows))
        for _ in range(3):
            if self.reentrant is None:
                hidden = self._middle(hidden)
            else:
                hidden = checkpoint(self._middle, hidden, use_reentrant=self.reentrant)
        return torch.as_tensor(self.last(hidden).square().sum())

    def _middle(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.middle(hidden))


def summed(model: Deep) -> dict[str, Tensor]:
    with Reducer(model, LocalCollectives()) as reducer:
        reducer.begin()
        loss = model(torch.linspace(-1, 1, 64).reshape(16, 4))
        reducer.arm(Tally(rows=16), torch.zeros(2, dtype=torch.float64))
        torch.autograd.backward(loss)
        assert reducer.finish().rows == 16
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient() -> None:
    torch.testing.assert_close(summed(Deep(reentrant=False)), summed(Deep()))


def test_gradients_that_come_in_parts_are_refused_with_advice() -> None:
    with pytest.raises(TrainingError, match="use_reentrant=False"):
        summed(Deep(reentrant=True))


@pytest.mark.parametrize("at_first", [True, False])
def test_a_parameter_that_is_frozen_or_unfrozen_on_the_way_is_refused_by_name(at_first: bool) -> None:
    model = Deep()
    model.middle.weight.requires_grad_(at_first)
    with Reducer(model, LocalCollectives()) as reducer:
        for required in (at_first, not at_first):
            reducer.begin()
            model.middle.weight.requires_grad_(required)
            loss = model(torch.ones(2, 4))
            if required != at_first:
                break
            reducer.arm(Tally(), torch.zeros(2, dtype=torch.float64))
            torch.autograd.backward(loss)
            reducer.finish()
        with pytest.raises(TrainingError, match=re.escape("'middle.weight' was frozen or unfrozen")):
            reducer.arm(Tally(), torch.zeros(2, dtype=torch.float64))
