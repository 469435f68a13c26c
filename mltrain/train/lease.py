"""One controller a run: a lease in the run's storage, with a driver epoch that fences off earlier holders."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mltrain.errors import RequestError, TrainingError
from mltrain.storage import lease as leases
from mltrain.storage.lease import EXPIRES_S

if TYPE_CHECKING:
    from mltrain.storage import Store

LEASE = "lease.json"


class LeaseHeldError(RequestError):
    """Another process holds the run."""


class LeaseLostError(TrainingError):
    """Another process has taken the run."""


class Lease:
    """Held from `acquire` to `release`; renewed in the background.

    Attributes:
        driver_epoch: this holder's.
    """

    def __init__(self, run: "Store", lease: leases.Lease) -> None:
        self._run = run
        self._lease = lease

    @property
    def driver_epoch(self) -> int:
        return self._lease.term

    @classmethod
    def acquire(cls, run: "Store", run_id: str) -> "Lease":
        """Takes the run.

        Raises:
            LeaseHeldError: another process holds it; the message says which.
        """
        try:
            return cls(run, leases.Lease.acquire(run, LEASE))
        except leases.HeldError as error:
            raise LeaseHeldError(
                f"Run {run_id} is held by {error.holder.described}. Stop that one, wait up to {EXPIRES_S:.0f} s if its "
                "host is gone, or use another --run-id."
            ) from error

    def check(self) -> None:
        """Before anything is written that only the holder may write.

        Raises:
            LeaseLostError: another controller has taken the run.
        """
        with self._lost():
            self._lease.check()

    def watch(self) -> None:
        """As `check`, and cheap enough for every turn of a loop.

        Raises:
            LeaseLostError: another controller has taken the run.
        """
        with self._lost():
            self._lease.watch()

    def renew(self) -> None:
        """Renews now, and so learns whether the run is still held.

        Raises:
            LeaseLostError: another controller has taken the run.
        """
        with self._lost():
            self._lease.renew()

    def release(self) -> None:
        """Ends the lease, so that the next controller need not wait. Idempotent."""
        self._lease.release()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except leases.LostError as error:
            raise LeaseLostError(
                f"Another controller has taken this run ({self._run.join(LEASE)}); this one writes nothing more."
            ) from error
