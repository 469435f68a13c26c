"""Where shards are read from: files of a local root in place, those of a remote one through the node's cache."""

import collections
import itertools
import os
import queue
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

from mltrain.data.cache import NodeCache
from mltrain.data.index import ShardIndex
from mltrain.data.schema import Schema
from mltrain.data.shard import Shard, blob_path, open_shard
from mltrain.errors import DamagedError, StorageError
from mltrain.storage import Store

REPAIR = "Build the dataset again to repair it"
_OPEN_SHARDS = 2048
_FETCHERS = 8
_EVICTED_ATTEMPTS = 10
_CHECKED_SHARDS = 16

# Files that this process has hashed: (path, device, inode, size, time of change) of each.
_verified: set[tuple[str, int, int, int, int]] = set()


class ShardSource:
    """Opens the shards of a dataset, each verified once per process.

    Args:
        store: the dataset's root.
        schema: its schema.
        index: its shards.
        cache: for a remote root.

    """

    def __init__(self, store: Store, schema: Schema, index: ShardIndex, cache: NodeCache | None) -> None:
        self._store = store
        self._schema = schema
        self._index = index
        self._cache = None if is_local(store) else cache or NodeCache()
        self._open: collections.OrderedDict[int, tuple[Shard, Path]] = collections.OrderedDict()
        self._fetching: dict[int, Future[Path]] = {}
        self._fetchers: _Fetchers | None = None
        self._lock = threading.Lock()

    @property
    def remote(self) -> bool:
        """Whether shards have to be fetched."""
        return self._cache is not None

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
        try:
            shard, file = self._map(number)
            # Rows are gathered without a look at where a shard ends.
            if shard.rows != self._index.rows[number]:
                raise DamagedError(f"shard {file} has {shard.rows} rows; the manifest says {self._index.rows[number]}")
        except DamagedError as error:
            raise DamagedError(f"{error}. {REPAIR}") from error
        with self._lock:
            self._open[number] = (shard, file)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
            if self._cache is not None:
                self._drop_evicted()
        return shard

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Starts to download shards that will be needed, in this order, and returns at once. Local roots need none."""
        if self._cache is None:
            return
        with self._lock:
            for number in numbers:
                if number not in self._open and number not in self._fetching:
                    if self._fetchers is None:
                        self._fetchers = _Fetchers(self._store, self._cache)
                        weakref.finalize(self, self._fetchers.close)
                    self._fetching[number] = self._fetchers.submit(*self._blob(number))

    def _blob(self, number: int) -> tuple[str, int]:
        return self._index.blob_name(number), int(self._index.size_bytes[number])

    def _drop_evicted(self) -> None:
        """Unmaps shards that the cache has dropped and nobody used lately: until then they take disk space unseen."""
        for number, (_, file) in list(itertools.islice(self._open.items(), _CHECKED_SHARDS)):
            if not file.exists():
                del self._open[number]

    def _map(self, number: int) -> tuple[Shard, Path]:
        name, size_bytes = self._blob(number)
        if self._cache is None:
            file = Path(self._store.join(blob_path(name)))
            return self._open_in_place(file, name, size_bytes), file
        file = self._local_copy(number)
        for _ in range(_EVICTED_ATTEMPTS):
            try:
                return _open_verified(file, self._schema, name, size_bytes), file
            except DamagedError:
                # The disk of this node damaged it: once more from storage.
                self._cache.discard(name)
                file = self._fetch(number)
                return _open_verified(file, self._schema, name, size_bytes), file
            except FileNotFoundError:
                file = self._fetch(number)
        raise StorageError(
            f"the cache {self._cache.path} drops shards before they can be opened: its budget of "
            f"{self._cache.budget_bytes} bytes is too small for this node's readers; set cache.budget_bytes"
        )

    def _open_in_place(self, file: Path, name: str, size_bytes: int) -> Shard:
        try:
            return _open_verified(file, self._schema, name, size_bytes)
        except FileNotFoundError as error:
            raise DamagedError(f"shard {file} is missing although the manifest names it") from error

    def _local_copy(self, number: int) -> Path:
        with self._lock:
            pending = self._fetching.get(number)
        if pending is None:
            return self._fetch(number)
        try:
            return pending.result()
        finally:
            with self._lock:
                self._fetching.pop(number, None)

    def _fetch(self, number: int) -> Path:
        if self._cache is None:
            raise ValueError("a local shard needs no fetching")
        name, size_bytes = self._blob(number)
        return self._cache.fetch(self._store, blob_path(name), blob=name, size_bytes=size_bytes)


class _Fetchers:
    """Threads that download ahead. Daemons, unlike those of ThreadPoolExecutor: a process may end in mid-download."""

    def __init__(self, store: Store, cache: NodeCache) -> None:
        self._store = store
        self._cache = cache
        self._queue: queue.SimpleQueue[tuple[str, int, Future[Path]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        for number in range(_FETCHERS):
            threading.Thread(target=self._run, name=f"mltrain-fetch-{number}", daemon=True).start()

    def submit(self, blob: str, size_bytes: int) -> "Future[Path]":
        """Queues a download."""
        future: Future[Path] = Future()
        self._queue.put((blob, size_bytes, future))
        return future

    def close(self) -> None:
        """Ends the threads after the downloads that have begun."""
        self._closed.set()
        for _ in range(_FETCHERS):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._closed.is_set():
            blob, size_bytes, future = item
            try:
                future.set_result(
                    self._cache.fetch(
                        self._store, blob_path(blob), blob=blob, size_bytes=size_bytes, cancelled=self._closed.is_set
                    )
                )
            # It is raised where the shard is needed.
            except BaseException as error:
                future.set_exception(error)


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
