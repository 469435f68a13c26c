"""Optimizers from the config, or the model's own."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from mltrain.errors import TrainingError

if TYPE_CHECKING:
    from mltrain.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: "OptimizerConfig") -> torch.optim.Optimizer:
    """The model's ``configure_optimizers()``, or the config's choice; ``initial_lr`` of a group is its base rate.

    Raises:
        TrainingError: ``configure_optimizers`` did not return an optimizer.
    """
    own = getattr(model, "configure_optimizers", None)
    optimizer = own() if callable(own) else _from_config(model, config)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TrainingError(
            f"configure_optimizers() of {type(model).__name__} returned {type(optimizer).__name__}; wanted one "
            "torch.optim.Optimizer (the learning-rate schedule is train.lr_schedule's)"
        )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    return optimizer


def _from_config(model: nn.Module, config: "OptimizerConfig") -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TrainingError(
            f"{type(model).__name__} has no parameters that require gradients: there is nothing to train"
        )
    decay = config.weight_decay or 0.0
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum or 0.0, weight_decay=decay, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.lr, betas=config.betas or (0.9, 0.999), weight_decay=decay, fused=True)
