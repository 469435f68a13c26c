"""The live view of a training: where it is, how fast, on how many workers, what it has survived."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mltrain.progress import Passing, Progress, clock

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Two looks a second; speed is that of the last ten seconds, the time left that of the last five minutes.
_LOOKS_S, _SPEED_S, _PACE_S = 0.5, 10.0, 300.0
_BAR = 24


class _Look(NamedTuple):
    """How far a training was."""

    time: float
    steps: int
    rows: float


class TrainingView:
    """A `Watcher` that keeps what a view shows. Told in the training's thread, looked at in another.

    Args:
        say: where lines go.
        metric: the objective.
        mode: ``min`` or ``max``.
    """

    def __init__(self, say: Progress, metric: str, mode: str) -> None:
        self._say = say
        self._metric = metric
        self._mode = mode
        self._begin: dict[str, Any] = {}
        self._doing = "starting"
        self._generation = 0
        self._members: frozenset[str] = frozenset()
        self._known: frozenset[str] = frozenset()
        self._losses = 0
        self._step = 0
        self._steps, self._rows = 0, 0.0
        self._value: float | None = None
        self._best: tuple[float, int] | None = None
        self._checkpoint: tuple[int, float | None] | None = None
        self._looks: deque[_Look] = deque()

    def __call__(self, line: str) -> None:
        # The view has the latest evaluation already.
        if not (isinstance(line, Passing) and self._begin):
            self._say(line)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A step is done."""
        self._step = step
        self._steps += 1
        self._rows += values["train/rows"]

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Something happened."""
        if kind == "run started":
            self._begin = dict(fields)
            self._step, self._losses, self._doing = fields["step"], fields["losses"], "starting"
            # Of an earlier attempt: when it was made is not known here.
            self._checkpoint = (self._step, None) if self._step else None
        elif kind == "generation formed":
            self._generation, self._doing = fields["generation"], "forming"
            self._members = frozenset(fields["members"])
            if self._begin["workers"] == 0:
                self._doing = "training"
        elif kind in ("training", "training again"):
            self._doing = "training"
        elif kind == "evaluation":
            self._evaluated(fields)
        elif kind == "checkpoint":
            self._checkpoint = (fields["step"], time.monotonic())
        elif kind == "generation stalled":
            self._doing = "stalled"
        elif kind == "too few workers":
            self._doing = f"waiting for workers ({fields['ready']} of {fields['least']} ready)"
        elif kind.startswith("worker "):
            self._worker(kind, fields)

    def _worker(self, kind: str, fields: Mapping[str, Any]) -> None:
        worker = fields["worker"]
        if kind in ("worker started", "worker heard again"):
            self._known |= {worker}
        elif kind in ("worker silent", "worker lost", "worker released"):
            self._known -= {worker}
            self._losses += kind == "worker lost" and fields["generation"] is not None
            self._without(worker)

    def _without(self, worker: str) -> None:
        if worker in self._members:
            self._members -= {worker}
            self._doing = "going on without it" if self._members else "waiting for workers"

    def _evaluated(self, fields: Mapping[str, Any]) -> None:
        value = fields["metrics"].get(self._metric)
        if value is None:
            return
        self._value = value
        if self._best is None or (value < self._best[0] if self._mode == "min" else value > self._best[0]):
            self._best = (value, fields["step"])

    def begun(self) -> bool:
        """Whether there is something to show."""
        return bool(self._begin)

    def lines(self, now: float) -> list[str]:
        """What to show, less the bar. Called now and then: the speed is taken between calls.

        Args:
            now: seconds of the monotonic clock.
        """
        self._looks.append(_Look(now, self._steps, self._rows))
        while self._looks[0].time < now - _PACE_S:
            self._looks.popleft()
        parts = (self._who(), self._far(), [*self._speeds(), self._saved(now)], self._found())
        return [" · ".join(part for part in line if part) for line in parts if line]

    def share(self) -> float:
        """How much is done."""
        return min(1.0, self._step / max(1, int(self._begin["steps"])))

    def _who(self) -> list[str]:
        most = self._begin["workers"]
        if not most:
            return [self._doing, "in this process"]
        coming = len(self._known - self._members)
        workers = f"{len(self._members)} of {most} workers" + (f" ({coming} on the way)" if coming else "")
        survived = f"{self._losses} loss{'' if self._losses == 1 else 'es'} survived"
        return [self._doing, workers, f"generation {self._generation}", survived]

    def _far(self) -> list[str]:
        total, an_epoch = self._begin["steps"], max(1, self._begin["steps_per_epoch"])
        epochs = f"epoch {self._step / an_epoch:.1f} of {total / an_epoch:.1f}"
        pace, _ = self._speed(_PACE_S)
        left = f"ETA {clock((total - self._step) / pace)}" if pace and not self._waiting() else ""
        return [f"step {self._step:,} of {total:,}", epochs, left]

    def _speeds(self) -> list[str]:
        steps, rows = (0.0, 0.0) if self._waiting() else self._speed(_SPEED_S)
        return [f"{_number(steps)} steps/s", f"{_number(rows)} samples/s"] if steps else []

    def _waiting(self) -> bool:
        return self._doing.startswith("waiting")

    def _saved(self, now: float) -> str:
        if self._checkpoint is None:
            return "no checkpoint yet"
        step, at = self._checkpoint
        return f"checkpoint after step {step:,}" + ("" if at is None else f", {clock(now - at)} ago")

    def _found(self) -> list[str]:
        if self._value is None or self._best is None:
            return []
        return [f"{self._metric} {self._value:.4f}, best {self._best[0]:.4f} after step {self._best[1]:,}"]

    def _speed(self, window_s: float) -> tuple[float, float]:
        """Steps and rows a second, over the last so many seconds that the training was at work."""
        last = self._looks[-1]
        # Not from before the first step: until then nothing was to be measured.
        first = next((look for look in self._looks if look.steps and look.time >= last.time - window_s), last)
        passed = last.time - first.time
        return ((last.steps - first.steps) / passed, (last.rows - first.rows) / passed) if passed > 0 else (0.0, 0.0)


class Screen:
    """Shows a view at the bottom of a terminal, two times a second; lines, warnings and what is printed go above.

    The cursor stays visible and the terminal in its usual mode: whatever ends the process, there is nothing to restore.

    Args:
        console: of the terminal.
        view: what is shown.
        stdout: whether stdout is this terminal, too.
    """

    def __init__(self, console: "Console", view: TrainingView, *, stdout: bool) -> None:
        from rich.live import Live

        self._console = console
        self._view = view
        self._looking = threading.Lock()
        self._live = Live(
            console=console,
            get_renderable=self._drawn,
            refresh_per_second=1 / _LOOKS_S,
            redirect_stdout=stdout,
            transient=True,
        )

    def start(self) -> None:
        """Shows it from now on."""
        self._live.start()
        self._console.show_cursor(True)

    def stop(self) -> None:
        """Takes it away."""
        self._live.stop()

    def _drawn(self) -> "Text":
        from rich.text import Text

        # A line that is printed above makes the view be drawn again, in the thread that prints it.
        with self._looking:
            lines, share = self._view.lines(time.monotonic()), self._view.share()
        bar = max(0, min(_BAR, self._console.width - len(lines[1]) - len(" 100% · ")))
        full = round(share * bar)
        lines[1] = f"{'━' * full}{'╌' * (bar - full)} {share:4.0%} · {lines[1]}"
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        text.stylize("bold", 0, len(lines[0]))
        return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
