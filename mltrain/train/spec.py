"""What a worker is told: once about the run, and once for every generation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mltrain.train.checkpoints import Checkpoint
from mltrain.train.usercode import Shipped

if TYPE_CHECKING:
    from mltrain.config import Experiment
    from mltrain.storage import Store


@dataclass(frozen=True)
class Spec:
    """Everything that a worker needs to know of a run; it travels.

    Attributes:
        run: store of ``runs/<run-id>/``.
        dataset: URI that opens the dataset, by digest.
        device: ``cpu`` or ``cuda``.
    """

    config: "Experiment"
    run: "Store"
    root: str
    dataset: str
    factory: Shipped
    device: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a generation is asked to do.

    Attributes:
        recorded: rows of metrics up to this step have reached the controller.
        decided: evaluations up to this step were reported and answered.
        checkpoint: make a checkpoint before the first step.
        halt: stop after that instead of training.
        restore: the checkpoint that this worker restores first, if it is the one to do so.
    """

    recorded: int = 0
    decided: int = 0
    checkpoint: bool = False
    halt: bool = False
    restore: Checkpoint | None = None
