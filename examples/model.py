"""A model of your own, with its own loss, optimizer and metric. Name it in a config as ``./model.py:build``."""

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional


def build(schema, hidden: int = 64, gamma: float = 1.0) -> nn.Module:
    """The factory: gets the dataset's schema, and ``model.args`` as keyword arguments."""
    return FocalNet(schema, hidden, gamma)


class FocalNet(nn.Module):
    """One hidden layer over numbers and embeddings, with the focal loss (Lin et al., 2017, arXiv:1708.02002)."""

    def __init__(self, schema, hidden: int, gamma: float) -> None:
        super().__init__()
        (self.label,) = schema.labels
        self.gamma = gamma
        self.embeddings = nn.ModuleList(nn.Embedding(column.cardinality, 8) for column in schema.categorical)
        width = sum(column.width for column in schema.numeric) + 8 * len(self.embeddings)
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, batch) -> Tensor:
        ids = batch.categorical
        embedded = [embedding(ids[:, index]) for index, embedding in enumerate(self.embeddings)]
        return self.body(torch.cat([batch.numeric, *embedded], dim=1)).squeeze(1)

    def loss(self, outputs: Tensor, batch) -> Tensor:
        """One value a row, not reduced: mltrain weights and reduces it, exactly for any number of workers."""
        label = batch.labels[self.label].float()
        cross_entropy = functional.binary_cross_entropy_with_logits(outputs, label, reduction="none")
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Takes the place of ``train.optimizer``; ``train.lr_schedule`` still holds."""
        return torch.optim.AdamW(
            [
                {"params": self.embeddings.parameters(), "lr": 5e-3, "weight_decay": 0.0},
                {"params": self.body.parameters(), "lr": 2e-3},
            ]
        )

    def get_metrics(self) -> dict[str, torchmetrics.Metric]:
        """By name; they are reported as ``validation/auc`` and ``validation/f1``."""
        return {"auc": torchmetrics.AUROC(task="binary"), "f1": torchmetrics.F1Score(task="binary")}

    def update_metric(self, batch, outputs: Tensor, metric: torchmetrics.Metric) -> None:
        metric.update(torch.sigmoid(outputs), batch.labels[self.label].int())
