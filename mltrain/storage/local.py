"""A directory as a store. What is visible is whole: files are written aside, then renamed or linked into place."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mltrain.errors import ConflictError, NotFoundError, StorageAccessError, StorageError
from mltrain.storage.store import ObjectMeta, Store, checked

# Files of our own beside the objects; no object may be named so.
_HIDDEN = ".mltrain-"
_ASIDE = re.compile(r"\.mltrain-[0-9a-f]{32}")


class LocalStore(Store):
    """Objects are files below a directory, which is made on the first write."""

    def __init__(self, root: str) -> None:
        self.uri = root
        self._root = Path(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self.uri,)

    def sub(self, prefix: str) -> "LocalStore":
        return LocalStore(str(self._file(prefix)))

    def get(self, path: str) -> bytes:
        with self._explained(path):
            return self._file(path).read_bytes()

    def get_with_tag(self, path: str) -> tuple[bytes, str]:
        data = self.get(path)
        return data, _tag(data)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        with self._explained(path), self._file(path).open("rb") as file:
            return os.pread(file.fileno(), length, start)

    def download(self, path: str, local: Path) -> ObjectMeta:
        with self._explained(path):
            shutil.copyfile(self._file(path), local)
            return self._meta(path)

    def head(self, path: str) -> ObjectMeta | None:
        file = self._file(path)
        with self._explained(path):
            return self._meta(path) if file.is_file() else None

    def put(self, path: str, data: bytes | memoryview) -> ObjectMeta:
        with self._explained_write(path), self._aside(path) as aside:
            _write(aside, data)
            self._show(aside, path)
            return self._meta(path)

    def upload(self, path: str, local: Path) -> ObjectMeta:
        with self._explained_write(path), self._aside(path) as aside:
            shutil.copyfile(local, aside)
            _sync(aside)
            self._show(aside, path)
            return self._meta(path)

    def put_if_absent(self, path: str, data: bytes | memoryview) -> bool:
        with self._explained_write(path), self._aside(path) as aside:
            _write(aside, data)
            try:
                os.link(aside, self._file(path))
            except FileExistsError:
                return False
            _sync(aside.parent)
            return True

    def put_if_match(self, path: str, data: bytes | memoryview, e_tag: str | None) -> str:
        if e_tag is None:
            if not self.put_if_absent(path, data):
                raise ConflictError(f"{self.join(path)} exists already")
            return _tag(data)
        with self._explained_write(path), self._aside(path) as aside:
            _write(aside, data)
            with self._locked(path):
                file = self._file(path)
                found = _tag(file.read_bytes()) if file.is_file() else None
                if found != e_tag:
                    raise ConflictError(f"{self.join(path)} is {found or 'absent'}, not the expected {e_tag}")
                self._show(aside, path)
        return _tag(data)

    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        top = self._file(prefix) if prefix else self._root
        found: list[str] = []
        with self._explained(prefix):
            for folder, _, files in os.walk(top, onerror=_raise_unless_absent):
                inside = os.path.relpath(folder, self._root)
                found += [
                    name if inside == "." else f"{inside}/{name}" for name in files if not name.startswith(_HIDDEN)
                ]
        for path in sorted(found):
            try:
                yield self._meta(path)
            except FileNotFoundError:
                continue  # deleted since we looked
            except OSError as error:
                raise _failed(self.join(path), error) from error

    def delete(self, path: str) -> None:
        with self._explained_write(path):
            self._file(path).unlink(missing_ok=True)

    def remove_leftovers(self, older_than_s: float) -> int:
        removed, before = 0, time.time() - older_than_s
        for folder, _, files in os.walk(self._root):
            for file in (Path(folder, name) for name in files if _ASIDE.fullmatch(name)):
                with suppress(FileNotFoundError):  # its writer lived after all
                    if file.stat().st_mtime < before:
                        file.unlink()
                        removed += 1
        return removed

    def _file(self, path: str) -> Path:
        if any(segment.startswith(_HIDDEN) for segment in checked(path).split("/")):
            raise ValueError(f"object path {path!r}: names that begin with {_HIDDEN!r} are taken")
        return self._root / path

    def _meta(self, path: str) -> ObjectMeta:
        stat = self._file(path).stat()
        return ObjectMeta(path, stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC))

    @contextmanager
    def _aside(self, path: str) -> Iterator[Path]:
        """A name for a file that becomes ``path``; it is gone when the block ends. A crash leaves it, hidden."""
        folder = self._file(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f"{_HIDDEN}{uuid.uuid4().hex}"
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def _show(self, aside: Path, path: str) -> None:
        os.replace(aside, self._file(path))
        _sync(aside.parent)

    @contextmanager
    def _locked(self, path: str) -> Iterator[None]:
        # A file, as NFS cannot lock a directory. It stays: who removed it would part those who wait from newcomers.
        lock = self._file(path).parent / f"{_HIDDEN}lock"
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        where = self.join(path) if path else self.uri
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise NotFoundError(f"{where} does not exist") from error
        except OSError as error:
            raise _failed(where, error) from error

    @contextmanager
    def _explained_write(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _failed(self.join(path), error) from error


# The place is wrong, whoever repairs what.
_NOT_A_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
)


def _failed(where: str, error: OSError) -> StorageError:
    seen = f"{error.strerror or error} ({error.filename})" if error.filename else error.strerror or str(error)
    if error.errno in _NOT_A_PLACE:
        return StorageAccessError(f"{where}: {seen}; choose another root, or change its permissions")
    return StorageError(f"{where}: {seen}; make room or repair the disk, then try again")


def _write(file: Path, data: bytes | memoryview) -> None:
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tag(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
