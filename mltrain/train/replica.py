"""A full copy of what a training is: model, optimizer, position. Captured, restored and copied between ranks as one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mltrain.collectives import Collectives
from mltrain.errors import TrainingError
from mltrain.train.stopping import Patience

Json = dict[str, Any]


@dataclass
class Replica:
    """One worker's copy.

    Attributes:
        model: the module that is trained.
        optimizer: its optimizer; base learning rates are in ``initial_lr`` of its groups.
        step: updates applied; the next step's number.
        evaluated_step: the latest step after which there was an evaluation.
        metrics: of that evaluation.
        patience: of early stopping.
        seen: losses and weights (rows, without weights) summed since the last evaluation.
        populated: holds the run's state, by restoring, by receiving it, or by having trained.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    evaluated_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    patience: Patience = field(default_factory=Patience)
    seen: tuple[float, float] = (0.0, 0.0)
    populated: bool = False

    @property
    def progress(self) -> int:
        """Updates applied; -1 as long as it does not hold the run's state."""
        return self.step if self.populated else -1

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, not copied: ``model.<name>`` and ``optimizer.<index>.<key>``."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}
        for index, state in self.optimizer.state_dict()["state"].items():
            found.update(
                {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            )
        return found

    def state(self) -> Json:
        """Everything else, as JSON."""
        optimizer = self.optimizer.state_dict()
        scalars = {
            str(index): {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            for index, state in optimizer["state"].items()
        }
        groups = [
            {key: float(value) if isinstance(value, Tensor) else value for key, value in group.items()}
            for group in optimizer["param_groups"]
        ]
        return {
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "metrics": self.metrics,
            "seen": list(self.seen),
            "patience": {"best": self.patience.best, "evaluations": self.patience.evaluations},
            "optimizer": {"groups": groups, "scalars": scalars},
        }

    def load(self, tensors: Mapping[str, Tensor], state: Json) -> None:
        """Becomes what `tensors` and `state` were captured from.

        Raises:
            TrainingError: they are of another model or optimizer.
        """
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        try:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(self._optimizer_state(tensors, state["optimizer"]))
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"The checkpoint does not fit the model that its factory builds now: {error}"
            ) from error
        self.step = int(state["step"])
        self.evaluated_step = int(state["evaluated_step"])
        self.metrics = dict(state["metrics"])
        self.patience = Patience(state["patience"]["best"], int(state["patience"]["evaluations"]))
        self.seen = (float(state["seen"][0]), float(state["seen"][1]))
        self.populated = True

    def synchronise(self, collectives: Collectives) -> bool:
        """Makes all ranks equal to the most advanced one. Returns whether anything had to be sent."""
        mine = torch.tensor([[int(self.populated), self.step, self.evaluated_step]], dtype=torch.int64)
        everyone = torch.cat(collectives.gather(mine)).tolist()
        if all(other == everyone[0] for other in everyone) and self.populated:
            return False
        root = max(range(len(everyone)), key=lambda rank: (everyone[rank], -rank))
        if len(everyone) > 1:
            self._receive(collectives, root)
        self.populated = True
        return True

    def synchronise_buffers(self, collectives: Collectives) -> None:
        """Gives all ranks rank 0's buffers, which differ where they depend on local batches (BatchNorm)."""
        buffers = list(self.model.buffers())
        if buffers:
            collectives.broadcast(buffers, root=0)

    def _receive(self, collectives: Collectives, root: int) -> None:
        tensors = self.tensors()
        header = {"state": self.state(), "shapes": {n: [str(t.dtype), list(t.shape)] for n, t in tensors.items()}}
        encoded = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
        sender = collectives.rank == root
        message = json.loads(collectives.gather(encoded if sender else encoded[:0])[root].numpy().tobytes())
        if not sender:
            tensors = {n: _empty(kind, shape) for n, (kind, shape) in message["shapes"].items()}
        collectives.broadcast(list(tensors.values()), root)
        if not sender:
            self.load(tensors, message["state"])

    def _optimizer_state(self, tensors: Mapping[str, Tensor], saved: Json) -> Json:
        states: dict[int, Json] = {int(index): dict(scalars) for index, scalars in saved["scalars"].items()}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                states.setdefault(int(index), {})[key] = value
        groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in saved["groups"]]
        return {"state": states, "param_groups": groups}


def _empty(kind: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch.")))
