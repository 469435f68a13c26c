"""What a worker is told: once about the run, and once for every generation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mltrain.config.metrics import label_metrics
from mltrain.errors import RequestError
from mltrain.train.checkpoints import Checkpoint
from mltrain.train.usercode import Shipped

if TYPE_CHECKING:
    from mltrain.config import Experiment
    from mltrain.data import Dataset
    from mltrain.storage import Store


_BUILT_IN = "mltrain.models:"


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
        driver_epoch: of the controller.
        recorded: rows of metrics up to this step have reached the controller.
        decided: evaluations up to this step were reported and answered.
        halt: make a checkpoint and stop, instead of training.
        restore: the checkpoint that this worker restores first, if it is the one to do so.
        void: what this worker holds of the run is of a generation that others went on from without it.
    """

    driver_epoch: int = 0
    recorded: int = 0
    decided: int = 0
    halt: bool = False
    restore: Checkpoint | None = None
    void: bool = False


def total_steps(epochs: int | None, max_steps: int | None, steps_per_epoch: int) -> int:
    """Steps of a whole training: so many epochs, at most ``max_steps``; one epoch if neither is given."""
    if epochs is None:
        return steps_per_epoch if max_steps is None else max_steps
    return epochs * steps_per_epoch if max_steps is None else min(max_steps, epochs * steps_per_epoch)


def evaluation_split(metric: str, splits: Iterable[str]) -> str | None:
    """The split that is evaluated during training: the objective's, or validation when that is ``train/…``.

    Raises:
        RequestError: the dataset lacks the objective's split.
    """
    names, wanted = list(splits), metric.split("/", 1)[0]
    if wanted == "train":
        return "validation" if "validation" in names else None
    if wanted not in names:
        raise RequestError(
            f"objective.metric is {metric!r}, but the dataset has no split {wanted!r}; it has {', '.join(names)}. Set "
            "objective.metric to one of these (train/loss for none), or build the dataset with that split."
        )
    return wanted


def check_objective(metric: str, split: str | None, reported: Iterable[str], model: str) -> None:
    """Refuses an objective that no evaluation will report.

    Args:
        metric: the objective.
        split: that is evaluated.
        reported: names of what an evaluation reports.
        model: for the message.

    Raises:
        RequestError: the objective is not among them; the message lists them.
    """
    names = ["train/loss", *(f"{split}/{name}" for name in reported if split is not None)]
    if metric not in names:
        raise RequestError(
            f"objective.metric is {metric!r}, but {model} on this dataset has {', '.join(sorted(names))}. Set "
            "objective.metric to one of these, or add it in the model's get_metrics()."
        )


def check_before_start(metric: str, factory: str, dataset: "Dataset") -> None:
    """What can be known of the objective before there is a model: its split, and what a built-in model reports.

    Raises:
        RequestError: the run could not report its objective.
    """
    split = evaluation_split(metric, dataset.splits)
    if factory.startswith(_BUILT_IN):
        types = {column.name: str(column.type) for column in dataset.schema.select("label")}
        check_objective(metric, split, ["loss", *label_metrics(types)], factory)
