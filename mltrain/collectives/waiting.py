"""How a rank waits for its peers: never without end, and never past an abort."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mltrain.errors import CollectiveAborted

# An operation whose peers say nothing for this long has failed, whatever the controller thinks.
OPERATION_DEADLINE_S = 300.0


class Waiting:
    """Adds up the seconds that one thread spends in ``with`` blocks; any thread may ask at any time."""

    def __init__(self) -> None:
        # Replaced as one, so that who asks never sees half of a change.
        self._state: tuple[float, float | None] = (0.0, None)

    def __enter__(self) -> None:
        self._state = (self._state[0], time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        total, since = self._state
        self._state = (total if since is None else total + time.monotonic() - since, None)

    def seconds(self) -> tuple[float, float]:
        """Seconds waited altogether, and seconds of the wait under way (0 if there is none)."""
        total, since = self._state
        current = 0.0 if since is None else time.monotonic() - since
        return total + current, current


class InThread:
    """A call that may block for long, in a thread that nobody has to wait for.

    Attributes:
        result: what it returned.
        error: what it raised.
    """

    def __init__(self, call: Callable[[], Any], name: str) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._call = call
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def ended(self, within_s: float = 0.0) -> bool:
        """Whether it has, or does within some seconds."""
        return self._ended.wait(within_s)

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:  # handed to the caller, in the calling thread
            self.error = error
        self._ended.set()


def wait_until(
    done: Callable[[], bool],
    aborted: threading.Event,
    waiting: Waiting,
    deadline_s: float = OPERATION_DEADLINE_S,
) -> None:
    """Polls until an operation is done.

    Raises:
        CollectiveAborted: ``aborted`` was set, or ``deadline_s`` have passed.
    """
    began = time.monotonic()
    pause_s = 0.00002
    with waiting:
        while not done():
            if aborted.is_set():
                raise CollectiveAborted("aborted while a collective was under way")
            if time.monotonic() - began > deadline_s:
                raise CollectiveAborted(f"the other ranks did not answer within {deadline_s:.0f} s")
            time.sleep(pause_s)
            pause_s = min(0.001, pause_s * 1.1)
