"""An object in storage as a file of which parts are read."""

import io

from mltrain.storage.store import Store

_TAIL_BYTES = 1 << 16


class ObjectFile(io.RawIOBase):
    """An object as a file: every read is a request, but its end, where formats have their index, is read at once.

    Args:
        store: where the object is.
        path: the object's.
        size_bytes: its length.
    """

    def __init__(self, store: Store, path: str, size_bytes: int) -> None:
        super().__init__()
        self._store, self._path, self._size, self._at = store, path, size_bytes, 0
        self._tail_start = max(0, size_bytes - _TAIL_BYTES)
        self._tail: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes from where the file stands; all that are left if it is negative."""
        end = self._size if size < 0 else min(self._size, self._at + size)
        data = self._range(self._at, end) if end > self._at else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's buffer has no length
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _range(self, start: int, end: int) -> bytes:
        if start < self._tail_start:
            return self._store.get_range(self._path, start, end - start)
        if self._tail is None:
            self._tail = self._store.get_range(self._path, self._tail_start, self._size - self._tail_start)
        return self._tail[start - self._tail_start : end - self._tail_start]
