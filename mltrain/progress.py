"""What is said of work while it goes on: lines for people, and every event and step to who asks for them."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

Progress = Callable[[str], None]
"""Told how work goes, a line at a time."""


class Passing(str):
    """A line that the next one makes obsolete, such as one of many evaluations. Who shows lines may leave it out."""

    __slots__ = ()


@runtime_checkable
class Watcher(Protocol):
    """A `Progress` that is told a training's events and steps, too, by the thread that trains: none may take long."""

    def __call__(self, line: str, /) -> None:
        """A line, as any `Progress` is told."""

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Something happened."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """A step is done."""


def clock(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
