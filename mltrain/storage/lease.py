"""A lease: one holder at a time of something in storage, with a term that fences off earlier holders.

The lease is an object that its holder replaces by put-if-match, every `RENEW_S` seconds. Whoever finds it expired, or
finds that its holder is a dead process of the same host, takes it by replacing it, and the earlier holder's next
renewal fails: that is how one that was paused and revived learns that it holds nothing any more.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from mltrain.errors import ConflictError, DamagedError, StorageError
from mltrain.storage.parsing import parse_object
from mltrain.storage.store import Store

EXPIRES_S = 60.0
RENEW_S = 15.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        term: grows by one with every holder.
        host: of the process; with ``boot`` (of the host), ``pid`` and ``started`` (clock ticks since boot) it names one
            process.
        renewed: Unix time of the last renewal.
        released: the holder has ended properly.
    """

    term: int
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

    @property
    def described(self) -> str:
        """For messages."""
        heard = max(0.0, time.time() - self.renewed)
        return f"process {self.pid} on {self.host} (term {self.term}, heard of {heard:.0f} s ago)"


_KINDS: dict[str, tuple[type, ...]] = {
    "term": (int,),
    "host": (str,),
    "boot": (str,),
    "pid": (int,),
    "started": (int,),
    "renewed": (float, int),
    "released": (bool,),
}


class HeldError(StorageError):
    """Somebody else holds the lease.

    Attributes:
        holder: who.
    """

    def __init__(self, message: str, holder: Holder) -> None:
        super().__init__(message)
        self.holder = holder


class LostError(StorageError):
    """The lease was ours, and somebody else has taken it."""


class Lease:
    """Held from `acquire` to `release`; renewed in the background.

    Attributes:
        term: this holder's.
    """

    def __init__(self, store: Store, path: str, holder: Holder, e_tag: str) -> None:
        self._store = store
        self._path = path
        self._holder = holder
        self._e_tag = e_tag
        self._content: dict[str, Any] = {}
        self._confirmed = self._watched = _now()
        self._lost: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def term(self) -> int:
        return self._holder.term

    @classmethod
    def acquire(cls, store: Store, path: str) -> Self:
        """Takes the lease.

        Raises:
            HeldError: another process holds it.
            DamagedError: as :func:`read_holder`.
        """
        found, e_tag = read_holder(store, path)
        if found is not None and not found.gone(time.time()):
            raise HeldError(f"{store.join(path)} is held by {found.described}", found)
        pid = os.getpid()
        mine = Holder(
            1 + (found.term if found else 0), socket.gethostname(), _boot(), pid, _started(pid) or 0, time.time()
        )
        try:
            return cls(store, path, mine, store.put_if_match(path, _encode({"lease": asdict(mine)}), e_tag))
        except ConflictError as error:
            winner = read_holder(store, path)[0]
            if winner is None:
                raise
            raise HeldError(f"{store.join(path)} is held by {winner.described}", winner) from error

    def check(self) -> None:
        """Before anything is written that only the holder may write.

        Raises:
            LostError: somebody else has taken the lease.
        """
        if _now() - self._confirmed > EXPIRES_S:
            # Paused, or storage was away: others may have taken it meanwhile.
            self._put(released=False)
        if self._lost is not None:
            raise LostError(self._lost)

    def watch(self) -> None:
        """Called often, by whoever acts as the holder: asks storage only where this process was paused meanwhile.

        Raises:
            LostError: somebody else has taken the lease.
        """
        before, self._watched = self._watched, _now()
        if self._lost is not None or self._watched - before > EXPIRES_S - RENEW_S:
            self.check()

    def renew(self) -> None:
        """Renews now, and so learns whether the lease is still held.

        Raises:
            LostError: it is not.
        """
        self._put(released=False)
        self.check()

    def record(self, content: Mapping[str, Any]) -> None:
        """Writes ``content`` beside the lease; it is what stays when the lease is released.

        Raises:
            LostError: somebody else has taken the lease.
        """
        self._content = dict(content)
        self.renew()

    def release(self) -> None:
        """Ends the lease, so that the next holder need not wait. Idempotent."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            try:
                self._put(released=True)
            except StorageError as error:
                # What went wrong before is what people want to hear of; the lease expires by itself.
                _LOG.warning("%s could not be released, it expires in %.0f s: %s", self._path, EXPIRES_S, error)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._put(released=False)
            except StorageError:
                # Storage that is away for longer than the lease lives is found out by the conflict afterwards.
                continue

    def _put(self, *, released: bool) -> None:
        with self._lock:
            if self._lost is not None:
                return
            renewed = replace(self._holder, renewed=time.time(), released=released)
            content = self._content if released and self._content else {"lease": asdict(renewed), **self._content}
            began = _now()
            try:
                self._e_tag = self._store.put_if_match(self._path, _encode(content), self._e_tag)
                self._confirmed = began
            except ConflictError:
                self._lost = (
                    f"{self._store.join(self._path)} was taken by another process; this one writes nothing more"
                )


def read_holder(store: Store, path: str) -> tuple[Holder | None, str | None]:
    """Who holds the lease at ``path``, and the object's tag; no holder where there is no lease there.

    Raises:
        DamagedError: what is there is no lease, so that nobody knows who holds it.
    """
    if not store.exists(path):
        return None, None
    data, e_tag = store.get_with_tag(path)
    return _read(store, path, data)[0], e_tag


def _read(store: Store, path: str, data: bytes) -> tuple[Holder | None, dict[str, Any]]:
    """The holder that an object names, and all of its content; no holder where only what was recorded is left."""
    try:
        content = parse_object(data)
        if not content:
            raise ValueError("it is empty")
        return (_holder(content["lease"]) if "lease" in content else None), content
    except ValueError as error:
        raise DamagedError(
            f"lease {store.join(path)} is damaged: {error}. So nobody knows who holds it: remove it when whatever it "
            "was taken for has ended"
        ) from error


def _holder(lease: object) -> Holder:
    if not isinstance(lease, dict) or lease.keys() != _KINDS.keys():
        raise ValueError(f"it does not say {', '.join(_KINDS)} of its holder, and these only")
    # A bool is an int in Python, not here.
    if wrong := [name for name, kinds in _KINDS.items() if type(lease[name]) not in kinds]:
        raise ValueError(f"its holder has {wrong[0]} {lease[wrong[0]]!r}")
    return Holder(**lease)


def fence(store: Store, path: str) -> None:
    """Takes a lease whose holder is gone from it, so that one that was only paused cannot renew it.

    Raises:
        ConflictError: it has just been renewed, or taken by another.
        DamagedError: as :func:`read_holder`.
    """
    data, e_tag = store.get_with_tag(path)
    holder, content = _read(store, path, data)
    if holder is not None and not holder.released:
        taken = {**content, "lease": asdict(replace(holder, term=holder.term + 1, released=True))}
        store.put_if_match(path, _encode(taken), e_tag)


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _now() -> float:
    """Seconds that go on while the process, or the machine, is paused."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


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
