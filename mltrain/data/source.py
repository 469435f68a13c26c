"""Where shards are read from: files of a local root in place, those of a remote one through the node's cache."""

import collections
import functools
import itertools
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeAlias

from mltrain.data.cache import NodeCache
from mltrain.data.index import ShardIndex
from mltrain.data.readahead import ReadAhead
from mltrain.data.schema import Schema
from mltrain.data.shard import Shard, blob_path, open_shard
from mltrain.errors import DamagedError, StorageError
from mltrain.storage import Store

REPAIR = "Build the dataset again to repair it"
_OPEN_SHARDS = 2048
_FETCHERS = 8
# Of files that are here already.
_CHECKERS = 1
# A log line says that a shard is waited for, so often.
_PATIENCE_S = 10.0
_EVICTED_ATTEMPTS = 10
_CHECKED_SHARDS = 16

logger = logging.getLogger(__name__)

# Files that this process has hashed: (path, device, inode, size, time of change) of each.
_verified: set[tuple[str, int, int, int, int]] = set()


class ShardSource:
    """Opens the shards of a dataset, each verified once per process, and those that come next ahead of need.

    Args:
        store: the dataset's root.
        schema: its schema.
        index: its shards.
        cache: for a remote root.

    """

    def __init__(self, store: Store, schema: Schema, index: ShardIndex, cache: NodeCache | None) -> None:
        self._opener = _Opener(store, schema, index, None if is_local(store) else cache or NodeCache())
        self._open: collections.OrderedDict[int, tuple[Shard, Path]] = collections.OrderedDict()
        self._pending: dict[int, Future[None]] = {}
        self._checked: set[int] = set()
        self._fetchers: _Fetchers | None = None
        self._read_ahead = ReadAhead()
        self._lock = threading.Lock()

    @property
    def remote(self) -> bool:
        """Whether shards have to be fetched."""
        return self._opener.cache is not None

    @property
    def prefetches(self) -> bool:
        """Whether :meth:`prefetch` has anything to do."""
        return self.remote or len(self._checked) < self._opener.shards or self._read_ahead.needed()

    def shard(self, number: int) -> Shard:
        """The shard at a position of the index.

        Raises:
            DamagedError: it is missing or its bytes are wrong, in storage too.
            StorageError: storage failed past its deadline, or the cache's disk is full.
        """
        with self._lock:
            held = self._open.get(number)
            if held is not None:
                self._open.move_to_end(number)
                return held[0]
        opened = self._opened(number)
        with self._lock:
            self._open[number] = opened
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            if self.remote:
                self._drop_evicted()
        return opened[0]

    def at_hand(self, number: int) -> bool:
        """Whether opening the shard takes next to no time."""
        pending = self._pending.get(number)
        return number in self._open or number in self._checked or (pending is not None and pending.done())

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Starts to fetch and check shards that will be needed, in this order, and returns at once."""
        wanted = list(numbers)
        with self._lock:
            self._forget_after_fork()
            # What else is there was wanted by somebody who went elsewhere.
            stale = {number for number, pending in self._pending.items() if pending.done()}.difference(wanted)
            for number in stale:
                del self._pending[number]
            for number in wanted:
                if not (number in self._open or number in self._checked or number in self._pending):
                    self._pending[number] = self._threads().submit(functools.partial(self._opener.fetch, number))
            if self._read_ahead.needed():
                fresh, gone = self._read_ahead.turn(wanted)
                left = [self._open.pop(number)[1] for number in gone if number in self._open]
                if fresh or left:
                    self._threads().submit(functools.partial(_turn, self._opener, self._read_ahead, fresh, left))

    def _opened(self, number: int) -> tuple[Shard, Path]:
        """Opens a shard, once it has been fetched where that has begun."""
        with self._lock:
            self._forget_after_fork()
            pending = self._pending.pop(number, None)
        # One that failed before anybody needed it says nothing about storage now.
        if pending is not None and not pending.done():
            waited_s = 0.0
            while not wait([pending], _PATIENCE_S).done:
                waited_s += _PATIENCE_S
                logger.warning("waiting for %s since %.0f s", self._opener.describe(number), waited_s)
            pending.result()
        opened = self._opener.open(number)
        if not self.remote:
            self._checked.add(number)
        return opened

    def _threads(self) -> "_Fetchers":
        if self._fetchers is None:
            self._fetchers = _Fetchers(_CHECKERS if not self.remote else _FETCHERS)
            weakref.finalize(self, self._fetchers.close)
        return self._fetchers

    def _forget_after_fork(self) -> None:
        """A child process has none of its parent's threads."""
        if self._fetchers is not None and self._fetchers.process != os.getpid():
            self._fetchers = None
            self._pending.clear()

    def _drop_evicted(self) -> None:
        """Unmaps shards that the cache has dropped and nobody used lately: until then they take disk space unseen."""
        for number, (_, file) in list(itertools.islice(self._open.items(), _CHECKED_SHARDS)):
            if not file.exists():
                del self._open[number]


class _Opener:
    """Fetches, checks and maps shards.

    Args:
        store: the dataset's root.
        schema: its schema.
        index: its shards.
        cache: for a remote root.
    """

    def __init__(self, store: Store, schema: Schema, index: ShardIndex, cache: NodeCache | None) -> None:
        self.cache = cache
        self.shards = len(index)
        self._store = store
        self._schema = schema
        self._index = index

    def describe(self, number: int) -> str:
        """The shard, for messages."""
        return f"shard {self._store.join(blob_path(self._index.blob_name(number)))}"

    def fetch(self, number: int, cancelled: Callable[[], bool]) -> None:
        """Has a shard here, and checked; raises what :meth:`open` does."""
        self.open(number, cancelled)

    def open(self, number: int, cancelled: Callable[[], bool] = lambda: False) -> tuple[Shard, Path]:
        """A shard in a mapping of its own, and its file.

        Raises:
            DamagedError: it is missing or its bytes are wrong, in storage too.
            StorageError: storage failed past its deadline, the cache's disk is full, or its file is none or refuses us.
            InterruptedError: cancelled.
        """
        try:
            shard, file = self._map(number, cancelled)
            # Rows are gathered without a look at where a shard ends.
            if shard.rows != self._index.rows[number]:
                raise DamagedError(f"shard {file} has {shard.rows} rows; the manifest says {self._index.rows[number]}")
        except DamagedError as error:
            raise DamagedError(f"{error}. {REPAIR}") from error
        except InterruptedError:
            raise
        except OSError as error:
            raise StorageError(f"{self.describe(number)} cannot be read: {error}") from error
        return shard, file

    def _map(self, number: int, cancelled: Callable[[], bool]) -> tuple[Shard, Path]:
        name, size_bytes = self._index.blob_name(number), int(self._index.size_bytes[number])
        if self.cache is None:
            file = Path(self._store.join(blob_path(name)))
            return self._open_in_place(file, name, size_bytes), file
        for attempt in range(_EVICTED_ATTEMPTS):
            file = self.cache.fetch(self._store, blob_path(name), blob=name, size_bytes=size_bytes, cancelled=cancelled)
            try:
                return _open_verified(file, self._schema, name, size_bytes), file
            except FileNotFoundError:
                continue
            except DamagedError:
                # The disk of this node damaged it: once more from storage.
                if attempt:
                    raise
                self.cache.discard(name)
        raise StorageError(
            f"the cache {self.cache.path} drops shards before they can be opened: its budget of "
            f"{self.cache.budget_bytes} bytes is too small for this node's readers; set cache.budget_bytes"
        )

    def _open_in_place(self, file: Path, name: str, size_bytes: int) -> Shard:
        try:
            return _open_verified(file, self._schema, name, size_bytes)
        except FileNotFoundError as error:
            raise DamagedError(f"shard {file} is missing although the manifest names it") from error


class _Fetchers:
    """Threads that fetch and check ahead. Daemons, not a ThreadPoolExecutor: a process may end in mid-download.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self.process = os.getpid()
        self._queue: queue.SimpleQueue[tuple[_Work, Future[None]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._run, name=f"mltrain-fetch-{number}", daemon=True).start()

    def submit(self, work: "_Work") -> "Future[None]":
        """Queues what is called with what says whether it is cancelled."""
        future: Future[None] = Future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Ends the threads after what has begun."""
        self._closed.set()
        for _ in range(self._threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._closed.is_set():
            work, future = item
            try:
                work(self._closed.is_set)
                future.set_result(None)
            # It is raised where the shard is needed.
            except BaseException as error:
                future.set_exception(error)


_Work: TypeAlias = Callable[[Callable[[], bool]], None]


def _turn(
    opener: _Opener, kernel: ReadAhead, coming: list[int], left: list[Path], cancelled: Callable[[], bool]
) -> None:
    """Has files that are left dropped from memory, and those that come read."""
    kernel.drop(left)
    kernel.read([opener.open(number, cancelled)[1] for number in coming])


def is_local(store: Store) -> bool:
    """Whether the store is a directory of this machine."""
    return "://" not in store.uri


def _open_verified(file: Path, schema: Schema, blob: str, size_bytes: int) -> Shard:
    """Opens a shard and hashes its file unless this process has done so."""
    stat = os.stat(file)
    identity = (str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    shard = open_shard(file, schema, blob=blob, size_bytes=size_bytes, verify=identity not in _verified)
    _verified.add(identity)
    return shard
