"""What a trainer and its controller say to each other, whether they share a process or not."""

import enum
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mltrain.errors import MltrainError, TrainingError

Message = dict[str, Any]


class Verdict(enum.Enum):
    """The answer to a report."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class Report:
    """An evaluation whose checkpoint is durable.

    Attributes:
        step: updates applied.
        epoch: epochs begun, as a fraction of the data seen.
        metrics: by name, ``<split>/<name>``.
        checkpoint: its URI.
    """

    step: int
    epoch: float
    metrics: dict[str, float]
    checkpoint: str


ReportFunction = Callable[[Report], Verdict]


@dataclass(frozen=True)
class Wishes:
    """What this rank asks of all ranks after a step, and whether a checkpoint of it is still on its way to storage."""

    stop: bool = False
    checkpoint: bool = False
    saving: bool = False


@dataclass(frozen=True)
class Row:
    """Metrics of one step."""

    step: int
    epoch: int
    generation: int
    values: dict[str, float]


class Control(Protocol):
    """The controller, as a trainer sees it."""

    def metrics(self, row: Row) -> None:
        """Records a step. Called by rank 0."""

    def send(self, message: Message) -> None:
        """Sends a message, after every row recorded before it. May be called from any thread."""

    def wishes(self) -> Wishes:
        """What the controller wants of the ranks after the next step. Cheap: called once a step."""

    def check(self) -> None:
        """Called in long work between collectives.

        Raises:
            CollectiveAborted: the generation was aborted.
        """

    def broken(self) -> None:
        """The device of this process failed, and with it everything that the process holds there.

        Called where that error is handled. A worker's process ends here: the others go on, another one takes its place.
        """

    def wait_decided(self, step: int) -> None:
        """Waits until the evaluation after ``step`` was reported and answered.

        Raises:
            CollectiveAborted: the generation was aborted.
        """


class Ending(enum.Enum):
    """How a worker's part in a generation ended."""

    FINISHED = "finished"  # the training is complete
    STOPPED = "stopped"  # all ranks stopped after the same step, as asked
    ABORTED = "aborted"  # aborted, or a peer was lost
    DAMAGED = "damaged"  # the checkpoint that this rank was to restore is damaged; it has not joined
    FAILED = "failed"  # user code, data or storage failed on this rank


@dataclass(frozen=True)
class Outcome:
    """What a worker returns from a generation.

    Attributes:
        step: updates that its replica has applied.
        error: for `Ending.FAILED`, what was raised, if it is one of mltrain's own.
        traceback: for `Ending.FAILED`, as text.
        timings: seconds spent, by name.
    """

    ending: Ending
    step: int
    error: Exception | None = None
    traceback: str = ""
    reason: str = ""
    timings: dict[str, float] = field(default_factory=dict)


def failure(error: BaseException, step: int) -> Outcome:
    """What a worker returns when ``error`` was raised in it. Called where the error is handled.

    Args:
        error: what user code, data, storage or the allocator raised.
        step: updates that its replica has applied; -1 if it holds none of the run's state.
    """
    said = str(error).strip() or "out of memory" if isinstance(error, MemoryError) else str(error)
    raised = error if isinstance(error, MltrainError) else TrainingError(f"{type(error).__name__}: {said}")
    return Outcome(Ending.FAILED, step, raised, traceback.format_exc())
