"""SIGINT and SIGTERM: the first asks for a checkpoint and an orderly end, the second ends at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from mltrain.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
# One request may arrive twice: timeout(1) signals its child and then the child's group.
_SAME_S = 0.25


class Interrupted(BaseException):
    """A stop was requested within `StopRequest.interrupting`. No `Exception`, lest what is interrupted handle it."""


class StopRequest:
    """While it is entered, in the main thread, it holds both signals. Elsewhere it is only a flag.

    Attributes:
        requested: somebody wants to stop.
        reason: who.
        resume_command: what the second signal prints; None as long as there is nothing to go on with.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""
        self.resume_command: str | None = None
        self._interrupting = False
        self._received_at: float | None = None
        self._before: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Asks for an orderly end."""
        self.requested, self.reason = True, reason

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around what takes long and may be given up halfway: the first signal interrupts it.

        Raises:
            Interrupted: a stop is or was requested, if only by the end of the block.
        """
        self.check()
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False
        self.check()

    def check(self) -> None:
        """Between the parts of something that may be given up.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.requested:
            raise Interrupted(self.reason)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._received) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        first, self._received_at = self._received_at, time.monotonic()
        if first is not None and self._received_at - first < _SAME_S:
            return
        if self.requested:
            # At once, whatever is under way: the command goes on from the last checkpoint all the same.
            os.write(_STDERR, f"\nEnded at once ({signal.Signals(number).name}).\n{self._how_to_go_on()}".encode())
            os._exit(StoppedError.exit_code)
        self.request(signal.Signals(number).name)
        # Written here, not logged: whatever is under way may hold the locks of a log or of a view.
        os.write(_STDERR, f"{self.reason}: stopping in good order; a second signal ends at once.\n".encode())
        if self._interrupting:
            raise Interrupted(self.reason)

    def _how_to_go_on(self) -> str:
        return "" if self.resume_command is None else f"to go on: {self.resume_command}\n"
