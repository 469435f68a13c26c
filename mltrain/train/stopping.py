"""Early stopping, decided by every rank alike from metrics that are the same on every rank."""

import math
from dataclasses import dataclass
from typing import Literal

Mode = Literal["min", "max"]


def better(value: float, than: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether ``value`` improves on ``than`` by more than ``min_delta``. NaN never does; anything improves on None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value > than + min_delta if mode == "max" else value < than - min_delta


@dataclass(frozen=True)
class Patience:
    """How long the metric has not improved."""

    best: float | None = None
    evaluations: int = 0

    def after(self, value: float, mode: Mode, min_delta: float) -> "Patience":
        """The state after one more evaluation."""
        if better(value, self.best, mode, min_delta):
            return Patience(value, 0)
        return Patience(self.best, self.evaluations + 1)
