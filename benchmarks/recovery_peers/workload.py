"""What the other tools train: a model with 4 MB of gradients that takes its time for a step, as ours does."""

import time

import torch
from torch import Tensor, nn

PACE_S = 0.03
EXACT = 1_000_000
_ROWS = 43
_FEATURES = 8


class Model(nn.Module):
    """A linear classifier, and parameters beside it whose gradients are sums of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(_FEATURES, 1)
        self.exact = nn.Parameter(torch.zeros(EXACT))

    def forward(self, rows: Tensor) -> Tensor:
        time.sleep(PACE_S)
        numbers = torch.arange(len(rows)) % 8
        outputs: Tensor = self.head(rows)
        return outputs.reshape(-1) + numbers * (self.exact - self.exact.detach()).sum()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The one that ours has."""
    return torch.optim.SGD(model.parameters(), lr=0.01, fused=True)


def loss(model: nn.Module) -> Tensor:
    """Of a worker's share of a step: rows of memory."""
    rows = torch.rand(_ROWS, _FEATURES)
    found: Tensor = nn.functional.binary_cross_entropy_with_logits(model(rows), (rows[:, 0] > 0.5).float())
    return found
