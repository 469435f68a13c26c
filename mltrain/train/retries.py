"""When what goes wrong again and again is bad luck no more, and the run fails instead of trying once more."""

from mltrain.errors import TrainingError
from mltrain.train.streak import Streak

# Workers that died one after another, not at once, before they were ready, when none has ever been: starting more does
# not mend what is wrong. Later it is their nodes, which are held back, or else the run waits for as long as it may.
_FAILED_STARTS = 5
# Generations that ended one after another before a step was done: something is wrong that forming more does not mend.
_FRUITLESS = 10
# Workers that were lost one after another, not at once, while the training got no further: something in it ends them.
_BARREN = 10


class Retries:
    """Counts what failed, in a row. Every method answers the error that the run ends with, once it is too much."""

    def __init__(self) -> None:
        self._starts = Streak()
        self._proven = False
        self._fruitless = 0
        self._furthest = 0
        self._barren = Streak()

    def ready(self) -> None:
        """A worker is."""
        self._proven = True

    def stepped(self) -> None:
        """A generation has done a step."""
        self._fruitless = 0

    def not_started(self, began: float, now: float, why: str, output: str | None) -> TrainingError | None:
        """A worker died before it was ready.

        Args:
            began: when it was started.
            now: on the same clock.
            why: it died.
            output: where it printed to.
        """
        if self._proven or self._starts.failed(began, now) < _FAILED_STARTS:
            return None
        return TrainingError(
            f"{_FAILED_STARTS} workers died one after another before they were ready; the last one: {why} "
            f"(what it printed: {output})"
        )

    def lost(self, generation: int, reached: int, why: str, output: str | None) -> TrainingError | None:
        """A worker was lost that took part. What strikes at one step again and again is in that step.

        Args:
            generation: that it took part in.
            reached: the latest step that any worker is known to have done.
            why: it was lost.
            output: where it printed to.
        """
        if reached > self._furthest:
            self._barren.ended()
        self._furthest = max(self._furthest, reached)
        if self._barren.failed(generation, generation) < _BARREN:
            return None
        return TrainingError(
            f"{_BARREN} workers were lost one after another and the training did not get beyond step {self._furthest}: "
            "something in it ends them, or holds them up for longer than train.heartbeat allows; the last one: "
            f"{why} (what it printed: {output})"
        )

    def ended(self, reason: str) -> TrainingError | None:
        """A generation that nobody was lost from ended, and has not done a step, for that reason."""
        self._fruitless += 1
        if self._fruitless < _FRUITLESS:
            return None
        return TrainingError(f"{_FRUITLESS} generations in a row ended before a step was done; the last: {reason}")
