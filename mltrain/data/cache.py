"""One cache of shards per node, shared by all its processes; nothing to clean after a crash.

A shard is downloaded beside its place, verified, synced, and renamed into place: what has its name is whole. Kernel
locks (``flock``), which die with their process, let one fetcher at a time work on a shard; the others wait for it.
The file that is locked reserves the shard's size, so that concurrent fetchers keep the byte budget together.
"""

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mltrain.config import CacheConfig
from mltrain.data.shard import file_checksum
from mltrain.errors import DamagedError, NotFoundError, RequestError, StorageError
from mltrain.storage import Store

_DEFAULT = CacheConfig()
_POLL_S = 0.01
_MANY = 64

logger = logging.getLogger(__name__)


class NodeCache:
    """Shards of remote datasets on local disk, least recently used first out.

    Args:
        path: the directory; made when needed. All processes of a node name the same one. By default what a config
            has by default, likewise the budget.
        budget_bytes: what the shards in it may take together.

    Raises:
        RequestError: the budget is not a positive number.
    """

    def __init__(self, path: Path | None = None, budget_bytes: int = _DEFAULT.budget_bytes) -> None:
        if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int) or budget_bytes < 1:
            raise RequestError(f"budget_bytes={budget_bytes!r}: wanted a number of bytes, at least a few shards")
        self.path = path or _DEFAULT.directory
        self.budget_bytes = budget_bytes
        # Whether this process has counted what is there: somebody may have put files there by hand.
        self._looked = False

    def fetch(
        self,
        store: Store,
        path: str,
        *,
        blob: str,
        size_bytes: int,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:
        """The local file of a shard, downloaded unless it is there. What it returns was verified when it was written.

        Args:
            store: where the shard is.
            path: its path below the store.
            blob: its xxh3-128: its name here.
            size_bytes: its length.
            cancelled: asked while another process fetches the shard.

        Raises:
            DamagedError: storage twice returned something else than ``blob``, or has no such object.
            RequestError: the shard alone is larger than the budget.
            StorageError: the disk is full, something else has the shard's place in the cache, or storage failed past
                its deadline.
            InterruptedError: cancelled.
        """
        if size_bytes > self.budget_bytes:
            raise RequestError(
                f"shard {blob} has {size_bytes} bytes and the cache {self.path} a budget of {self.budget_bytes}; "
                "set cache.budget_bytes to at least a few shards"
            )
        target = self._file(blob)
        while True:
            with self._explained(blob, size_bytes):
                if self._touch(target, size_bytes):
                    return target
            with self._explained(blob, size_bytes), self._claim(blob, cancelled) as claim:
                if claim is None or self._touch(target, size_bytes):
                    continue
                while not self._reserve(claim, size_bytes):
                    _wait(cancelled, f"waiting for room in the cache {self.path} for shard {blob}")
                try:
                    self._download(store, path, blob, size_bytes, claim)
                except (OSError, StorageError) as error:
                    # Downloads beside this one have taken what was free when it began.
                    if not (_is_full_disk(error) and self._evict(size_bytes)):
                        raise
                    continue
                return target

    def discard(self, blob: str) -> None:
        """Removes a shard that turned out to be damaged. Readers that have it mapped keep what they have."""
        self._file(blob).unlink(missing_ok=True)

    def used_bytes(self) -> int:
        """Bytes of the shards here and of the downloads under way."""
        return sum(size for _, size, _ in self._entries())

    def _file(self, blob: str) -> Path:
        return self.path / blob[:2] / f"{blob}.arrow"

    def _touch(self, target: Path, size_bytes: int) -> bool:
        """Whether the file is there, whole in length; marks it as just used."""
        try:
            stat = target.stat()
            if stat.st_size == size_bytes:
                # Not the time of change too: by that a process knows that it has hashed the file.
                os.utime(target, ns=(time.time_ns(), stat.st_mtime_ns))
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        target.unlink(missing_ok=True)
        return False

    @contextlib.contextmanager
    def _claim(self, blob: str, cancelled: Callable[[], bool]) -> Iterator[int | None]:
        """The right to fetch a blob, or None when another fetcher has ended in the meantime."""
        lock = self._file(blob).with_suffix(".lock")
        self._make_room_for_names(lock.parent)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _try_lock(descriptor):
                _wait(cancelled, f"waiting for another fetcher of shard {blob}")
            if not _same_file(descriptor, lock):
                yield None
                return
            try:
                # What a fetcher that died had reserved and written.
                os.ftruncate(descriptor, 0)
                lock.with_suffix(".part").unlink(missing_ok=True)
                yield descriptor
            finally:
                # Still locked: whoever waits sees that the name is gone, and starts again.
                lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _make_room_for_names(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f"cache directory {folder} cannot be made: {error}; set cache.path") from error

    def _reserve(self, claim: int, size_bytes: int) -> bool:
        """Counts a download against budget and disk, removing what was used longest ago.

        Returns:
            False when other downloads under way take the room; they will end.
        """
        with self._exclusive() as ledger:
            free = shutil.disk_usage(self.path).free
            most = _read_number(ledger) if self._looked else None
            if most is not None and most + size_bytes <= self.budget_bytes and size_bytes <= free:
                _write_number(ledger, most + size_bytes)
                os.ftruncate(claim, size_bytes)
                return True
            self._looked = True
            self._remove_stale(claim)
            entries = sorted(self._entries(), key=lambda entry: entry[2])
            used = sum(size for _, size, _ in entries)
            over = used + size_bytes - self.budget_bytes
            if over > 0 and len(entries) >= _MANY:
                over += self.budget_bytes // _MANY  # so that not every fetch has to look at all files
            excess = max(over, size_bytes - free)
            for file, size, _ in entries:
                if excess <= 0:
                    break
                if file.suffix == ".arrow":
                    file.unlink(missing_ok=True)
                    excess -= size
                    used -= size
            fits = used + size_bytes <= self.budget_bytes
            _write_number(ledger, used + size_bytes if fits else used)
            if fits:
                os.ftruncate(claim, size_bytes)
            return fits

    def _evict(self, size_bytes: int) -> bool:
        """Removes what was used longest ago, until so many bytes are free; False if there was nothing to remove."""
        freed = 0
        with self._exclusive():
            for file, size, _ in sorted(self._entries(), key=lambda entry: entry[2]):
                if file.suffix == ".arrow" and freed < size_bytes:
                    file.unlink(missing_ok=True)
                    freed += size
        return freed > 0

    def _remove_stale(self, mine: int) -> None:
        """Removes reservations and partial downloads of fetchers that died; there are as many as fetchers, at most."""
        for lock in self.path.glob("??/*.lock"):
            if not _same_file(mine, lock):
                _remove_if_stale(lock)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[int]:
        """One process at a time. The file says at most how many bytes are used, so that few look at all files."""
        descriptor = os.open(self.path / "eviction.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _entries(self) -> list[tuple[Path, int, float]]:
        """(file, bytes, last use) of shards and of reservations."""
        found = []
        for folder in self.path.glob("??"):
            with os.scandir(folder) as files:
                for file in files:
                    if file.name.endswith((".arrow", ".lock")):
                        with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                            stat = file.stat()
                            found.append((Path(file.path), stat.st_size, stat.st_atime))
        return found

    def _download(self, store: Store, path: str, blob: str, size_bytes: int, claim: int) -> None:
        part = self._file(blob).with_suffix(".part")
        try:
            for attempt in (1, 2):
                store.download(path, part)
                found = _checksum(part)
                if found == blob:
                    break
                logger.warning("shard %s hashes to %s: download %d of 2", store.join(path), found, attempt)
            else:
                raise DamagedError(
                    f"shard {store.join(path)} is damaged: it has {part.stat().st_size} bytes that hash to {found}; "
                    f"wanted {size_bytes} bytes that hash to {blob}"
                )
            _sync(part)
            with self._exclusive():  # who counts finds the shard or what was reserved for it
                part.rename(self._file(blob))
                os.ftruncate(claim, 0)
        except NotFoundError as error:
            raise DamagedError(f"shard {store.join(path)} is missing although the manifest names it") from error
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, blob: str, size_bytes: int) -> Iterator[None]:
        try:
            yield
        except (OSError, StorageError) as error:
            if not _is_full_disk(error):
                if isinstance(error, StorageError | InterruptedError):
                    raise
                raise StorageError(
                    f"the cache {self.path} cannot hold shard {blob}: {error}; remove what is there, or set cache.path"
                ) from error
            free = shutil.disk_usage(self.path).free
            raise StorageError(
                f"the disk of the cache {self.path} is full: {free} bytes free, {size_bytes} wanted for shard {blob}; "
                f"free some, or set cache.path, or cache.budget_bytes (now {self.budget_bytes}) to what the disk holds"
            ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an error; stores wrap what the system says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _wait(cancelled: Callable[[], bool], what: str) -> None:
    if cancelled():
        raise InterruptedError(what)
    time.sleep(_POLL_S)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_number(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else None


def _write_number(descriptor: int, number: int) -> None:
    # Of a fixed length: a process that dies leaves the old one or the new one.
    os.pwrite(descriptor, b"%032d" % number, 0)


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _remove_if_stale(lock: Path) -> None:
    """Removes the reservation and the partial download of a fetcher, unless it lives."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # Another one may have removed it, and a third made it anew, since it was opened.
        if _try_lock(descriptor) and _same_file(descriptor, lock):
            lock.with_suffix(".part").unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _checksum(file: Path) -> str:
    with open(file, "rb") as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            return "an empty file"
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return file_checksum(mapped)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
