"""Where shards are read from: files of a local root in place, those of a remote one through the node's cache."""

import collections
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mltrain.data.cache import NodeCache
from mltrain.data.manifest import ShardIndex
from mltrain.data.schema import Schema
from mltrain.data.shard import Shard, blob_path, open_shard
from mltrain.errors import DamagedError, StorageError
from mltrain.storage import Store

_OPEN_SHARDS = 2048
_FETCHERS = 8
_EVICTED_ATTEMPTS = 10

# Files that this process has hashed: (path, device, inode, size, time of change) of each.
_verified: set[tuple[str, int, int, int, int]] = set()


class ShardSource:
    """Opens the shards of a dataset, each verified once per process.

    Args:
        store: the dataset's root.
        schema: its schema.
        index: its shards.
        cache: for a remote root.

    Attributes:
        fetched_bytes: what was read from remote storage through this source (shared downloads count for each waiter).
    """

    def __init__(self, store: Store, schema: Schema, index: ShardIndex, cache: NodeCache | None) -> None:
        self._store = store
        self._schema = schema
        self._index = index
        self._cache = None if is_local(store) else cache or NodeCache()
        self._open: collections.OrderedDict[int, Shard] = collections.OrderedDict()
        self._fetching: dict[int, Future[Path]] = {}
        self._fetchers: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

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
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        shard = self._map(number)
        with self._lock:
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Starts to download shards that will be needed, in this order, and returns at once. Local roots need none."""
        if self._cache is None:
            return
        with self._lock:
            for number in numbers:
                if number not in self._open and number not in self._fetching and not self._closed.is_set():
                    self._fetching[number] = self._pool().submit(self._fetch, number)

    def close(self) -> None:
        """Stops downloads that have not begun."""
        self._closed.set()
        with self._lock:
            if self._fetchers is not None:
                self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _map(self, number: int) -> Shard:
        name = self._index.blob_name(number)
        size_bytes = int(self._index.size_bytes[number])
        if self._cache is None:
            file = Path(self._store.join(blob_path(name)))
            return self._open_in_place(file, name, size_bytes)
        file = self._local_copy(number)
        for _ in range(_EVICTED_ATTEMPTS):
            try:
                return _open_verified(file, self._schema, name, size_bytes)
            except DamagedError:
                # The disk of this node damaged it: once more from storage.
                self._cache.discard(name)
                return _open_verified(self._fetch(number), self._schema, name, size_bytes)
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
            raise DamagedError(
                f"shard {file} is missing although the manifest names it; build the dataset again to repair it"
            ) from error

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
        name = self._index.blob_name(number)
        size_bytes = int(self._index.size_bytes[number])
        return self._cache.fetch(
            self._store, blob_path(name), blob=name, size_bytes=size_bytes, cancelled=self._closed.is_set
        )

    def _pool(self) -> ThreadPoolExecutor:
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="mltrain-fetch")
        return self._fetchers


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
