"""Failures one after another: how often in a row, whatever fails at the same time."""


class Streak:
    """Counts failures in a row.

    What fails together is one failure: a node that goes takes all workers on it, and a rack all of its nodes. So what
    began before the failure that was counted last is not counted again.

    Attributes:
        count: of failures since the last success.
    """

    def __init__(self) -> None:
        self.count = 0
        self._counted = float("-inf")

    def failed(self, began: float, now: float) -> int:
        """Something failed. Returns ``count``.

        Args:
            began: when that began.
            now: on the same clock, which may be anything that grows.
        """
        if began > self._counted:
            self.count += 1
            self._counted = now
        return self.count

    def ended(self) -> None:
        """Something of the kind succeeded."""
        self.count = 0
