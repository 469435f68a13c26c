"""One controller a run: a lease in the run's storage, with a driver epoch that fences off earlier holders."""

import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mltrain.errors import ConflictError, RequestError, StorageError, TrainingError

if TYPE_CHECKING:
    from mltrain.storage import Store

LEASE = "lease.json"
EXPIRES_S = 60.0
_RENEW_S = 15.0


@dataclass(frozen=True)
class Holder:
    """Who holds a run.

    Attributes:
        driver_epoch: grows by one with every holder.
        host: of the process; with ``boot`` (of the host), ``pid`` and ``started`` (clock ticks since boot) it names one
            process.
        renewed: Unix time of the last renewal.
        released: the holder has ended properly.
    """

    driver_epoch: int
    host: str
    boot: str
    pid: int
    started: int
    renewed: float
    released: bool = False

    def gone(self, now: float) -> bool:
        """Whether the holder ended, was last heard of too long ago, or is a dead process of this host."""
        if self.released or now - self.renewed > EXPIRES_S:
            return True
        return self.boot == _boot() and self.host == socket.gethostname() and _started(self.pid) != self.started


class LeaseHeldError(RequestError):
    """Another process holds the run."""


class Lease:
    """Held from `acquire` to `release`; renewed in the background.

    Attributes:
        driver_epoch: this holder's.
    """

    def __init__(self, run: "Store", holder: Holder, e_tag: str) -> None:
        self._run = run
        self._holder = holder
        self._e_tag = e_tag
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def driver_epoch(self) -> int:
        return self._holder.driver_epoch

    @classmethod
    def acquire(cls, run: "Store", run_id: str) -> "Lease":
        """Takes the run.

        Raises:
            LeaseHeldError: another process holds it; the message says which.
        """
        e_tag: str | None = None
        epoch = 0
        if run.exists(LEASE):
            data, e_tag = run.get_with_tag(LEASE)
            holder = Holder(**json.loads(data))
            if not holder.gone(time.time()):
                raise LeaseHeldError(_held(run_id, holder))
            epoch = holder.driver_epoch
        mine = Holder(epoch + 1, socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or 0, time.time())
        try:
            return cls(run, mine, run.put_if_match(LEASE, _encode(mine), e_tag))
        except ConflictError as error:
            raise LeaseHeldError(_held(run_id, Holder(**json.loads(run.get(LEASE))))) from error

    def check(self) -> None:
        """Before anything is written that only the holder may write.

        Raises:
            TrainingError: another controller has taken the run.
        """
        if self._lost is not None:
            raise TrainingError(self._lost)

    def renew(self) -> None:
        """Renews now, and so learns whether the run is still held.

        Raises:
            TrainingError: it is not.
        """
        self._put(released=False)
        self.check()

    def release(self) -> None:
        """Ends the lease, so that the next controller need not wait. Idempotent."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._put(released=True)

    def _keep(self) -> None:
        while not self._ended.wait(_RENEW_S):
            try:
                self._put(released=False)
            except StorageError:
                # Storage that is away for longer than the lease lives is found out by the conflict afterwards.
                continue

    def _put(self, *, released: bool) -> None:
        with self._lock:
            if self._lost is not None:
                return
            renewed = Holder(**{**asdict(self._holder), "renewed": time.time(), "released": released})
            try:
                self._e_tag = self._run.put_if_match(LEASE, _encode(renewed), self._e_tag)
            except ConflictError:
                self._lost = (
                    f"Another controller has taken this run ({self._run.join(LEASE)}); this one writes nothing more."
                )


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _held(run_id: str, holder: Holder) -> str:
    return (
        f"Run {run_id} is held by process {holder.pid} on {holder.host} (driver epoch {holder.driver_epoch}, heard of "
        f"{time.time() - holder.renewed:.0f} s ago). Stop that one, wait up to {EXPIRES_S:.0f} s if its host is "
        "gone, or use another --run-id."
    )


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None if there is none."""
    try:
        # The command's name, in parentheses, may hold spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])
