"""Compute Engine's metadata: preemption and host maintenance, each waited for.

From the Compute Engine documentation ("Create and use Spot VMs", "View and query VM metadata", "Query the metadata
server for maintenance event notices"): every question needs ``Metadata-Flavor: Google``; with ``wait_for_change`` and
the ETag of the last answer the server answers when the value has changed since, or after ``timeout_sec``. ``preempted``
turns TRUE some 30 s before the machine stops. ``maintenance-event`` says 60 s ahead what happens (an hour for machines
with GPUs), and only to who has asked before.
"""

import time
from collections.abc import Callable

from mltrain.spot.endpoint import Endpoint
from mltrain.spot.notice import Kind, Notice, SourceError

# Also known as metadata.google.internal; nothing has to be looked up so.
ADDRESS = "http://169.254.169.254"
_INSTANCE = "/computeMetadata/v1/instance/"
_PREEMPTION_S = 30.0
_WAIT_S = 60
# An answer that is due may be late.
_LATE_S = 10.0


class _Value:
    """One value of the metadata server, and how to wait for the next."""

    def __init__(self, address: str, name: str, wait_s: int) -> None:
        self._endpoint = Endpoint(address)
        self._path = f"{_INSTANCE}{name}"
        self._wait_s = wait_s
        self._etag = ""

    def next(self) -> str:
        """The value; at once for the first time and after an error, then when it changes, or after a while."""
        path, timeout_s = self._path, _LATE_S
        if self._etag:
            path += f"?wait_for_change=true&timeout_sec={self._wait_s}&last_etag={self._etag}"
            timeout_s += self._wait_s
        self._etag = ""
        answer = self._endpoint.ask(path, {"Metadata-Flavor": "Google"}, timeout_s=timeout_s)
        if answer.status != 200:
            raise self._endpoint.refused(path, answer)
        self._etag = answer.headers.get("etag", "")
        return answer.text


class Preemption:
    """A Spot VM is taken away. It is never taken back."""

    name = "gcp"
    every_s = 1.0

    def __init__(self, address: str = ADDRESS, wait_s: int = _WAIT_S, now: Callable[[], float] = time.time) -> None:
        self._value = _Value(address, "preempted", wait_s)
        self._now = now
        self._seen: float | None = None

    def standing(self) -> tuple[Notice, ...]:
        value = self._value.next()
        if value not in ("TRUE", "FALSE"):
            raise SourceError(f"instance/preempted is {value[:200]!r}; want TRUE or FALSE")
        if value == "FALSE":
            self._seen = None
            return ()
        self._seen = self._now() if self._seen is None else self._seen
        return (Notice(self.name, "preempted", Kind.LEAVING, "preempted", self._seen + _PREEMPTION_S),)


class Maintenance:
    """The host is maintained: the machine is stopped, or moved while it runs. It is not said when."""

    name = "gcp"
    every_s = 1.0

    def __init__(self, address: str = ADDRESS, wait_s: int = _WAIT_S) -> None:
        self._value = _Value(address, "maintenance-event", wait_s)

    def standing(self) -> tuple[Notice, ...]:
        value = self._value.next()
        if value == "NONE":
            return ()
        if value not in ("MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"):
            raise SourceError(f"instance/maintenance-event is {value[:200]!r}; want NONE, MIGRATE_… or TERMINATE_…")
        kind = Kind.PAUSE if value.startswith("MIGRATE") else Kind.LEAVING
        return (Notice(self.name, "maintenance-event", kind, value),)
