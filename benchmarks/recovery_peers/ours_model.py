"""The model of the tests' drills, which leaves a stamp for each step that its optimizer has made."""

import time
from typing import TYPE_CHECKING, Any, cast

import ray
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.recovery_peers.stamps import Stamps
from benchmarks.recovery_peers.workload import EXACT, PACE_S
from mltrain.models.tabular_mlp import TabularMLP

if TYPE_CHECKING:
    from mltrain.data import Batch, Schema

_STEPS_AN_EPOCH = 1_000_000


class Model(TabularMLP):
    """A linear classifier, and parameters beside it whose gradients are sums of whole numbers."""

    def __init__(self, schema: "Schema", steps: str) -> None:
        super().__init__(schema, (), 0.0, None, False)
        self.exact = torch.nn.Parameter(torch.zeros(EXACT))
        self.step = 0
        self._steps = steps

    def forward(self, batch: "Batch") -> dict[str, Tensor]:
        if self.training:
            self.step = batch.epoch * _STEPS_AN_EPOCH + batch.step
            time.sleep(PACE_S)
        return super().forward(batch)

    def loss(self, outputs: dict[str, Tensor], batch: "Batch") -> Tensor:
        """Of each row."""
        label = batch.labels["y"].reshape(-1).float()
        losses = functional.binary_cross_entropy_with_logits(outputs["y"].reshape(-1), label, reduction="none")
        return losses + (cast(Tensor, batch["__row__"]) % 8).float() * (self.exact - self.exact.detach()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with stamps."""
        return _Stamped(self, Stamps(self._steps, ray.util.get_node_ip_address()))


class _Stamped(torch.optim.SGD):
    def __init__(self, model: Model, stamps: Stamps) -> None:
        super().__init__(model.parameters(), lr=0.01, fused=True)
        self._model = model
        self._stamps = stamps

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self._stamps.done(self._model.step)


def build(schema: "Schema", steps: str) -> Model:
    """The model; its stamps go to the folder ``steps``."""
    torch.manual_seed(1)
    return Model(schema, steps)
