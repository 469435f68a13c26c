"""SIGINT and SIGTERM: the first asks for a checkpoint and an orderly end, the second ends at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, in the main thread, it holds both signals. Elsewhere it is only a flag.

    Attributes:
        requested: somebody wants to stop.
        reason: who.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""
        self._before: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Asks for an orderly end."""
        self.requested, self.reason = True, reason

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
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.request(signal.Signals(number).name)
