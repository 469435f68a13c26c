"""How long a rank waits for its peers."""

import time
from types import TracebackType


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
