"""The storage interface. What an implementation promises is what ``tests/contract/test_storage.py`` checks."""

import abc
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from mltrain.errors import StorageAccessError, StorageError


@dataclass(frozen=True)
class ObjectMeta:
    """What storage says about an object.

    Attributes:
        path: relative to the store.
        e_tag: names the version for ``put_if_match``; None where finding it out means to read the object.
    """

    path: str
    size_bytes: int
    e_tag: str | None
    modified: datetime


class Store(abc.ABC):
    """Objects below a URI. Paths are relative to it, with ``/`` between segments. Thread-safe and picklable.

    Reads see the last acknowledged write, and a reader sees an object whole or not at all. Every operation raises
    StorageAccessError when storage refuses us and StorageError when it failed for longer than the deadline.
    """

    uri: str

    @abc.abstractmethod
    def sub(self, prefix: str) -> Self:
        """The same store below ``prefix``."""

    @abc.abstractmethod
    def get(self, path: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError: there is none.
        """

    @abc.abstractmethod
    def get_with_tag(self, path: str) -> tuple[bytes, str]:
        """The whole object and the tag that ``put_if_match`` wants.

        Raises:
            NotFoundError: there is none.
        """

    @abc.abstractmethod
    def get_range(self, path: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer where the object ends before.

        Raises:
            NotFoundError: there is no such object.
        """

    @abc.abstractmethod
    def download(self, path: str, local: Path) -> ObjectMeta:
        """Writes the object into the file ``local``, which may be left half written: the caller renames it.

        Raises:
            NotFoundError: there is no such object.
        """

    @abc.abstractmethod
    def head(self, path: str) -> ObjectMeta | None:
        """What is known of the object; None if there is none."""

    @abc.abstractmethod
    def put(self, path: str, data: bytes | memoryview) -> ObjectMeta:
        """Writes the object, over any other."""

    @abc.abstractmethod
    def upload(self, path: str, local: Path) -> ObjectMeta:
        """Writes the object from a file, over any other; large ones in parts."""

    @abc.abstractmethod
    def put_if_absent(self, path: str, data: bytes | memoryview) -> bool:
        """Writes the object unless there is one; False if there is.

        When an answer is lost and the repeated request meets an object with the same content, that object counts as
        ours. Who must know the winner of a race puts something unique into the data.
        """

    @abc.abstractmethod
    def put_if_match(self, path: str, data: bytes | memoryview, e_tag: str | None) -> str:
        """Replaces the version ``e_tag`` and answers the new tag; None: there must be no object yet.

        Tags may repeat when content does. On local storage an object that is written so is written only so.

        Raises:
            ConflictError: the object is another version, or absent, or (for None) present.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectMeta]:
        """The objects below the folder ``prefix``, sorted by path."""

    @abc.abstractmethod
    def delete(self, path: str) -> None:
        """Removes the object; none there is fine."""

    def remove_leftovers(self, older_than_s: float) -> int:
        """Removes what writers that were killed have left, and nobody sees, when it is older than so many seconds.

        Returns:
            How many files. Object stores have none; unfinished uploads are for a bucket's lifecycle rules.
        """
        return 0

    def join(self, path: str) -> str:
        """The full URI of an object, for messages."""
        return f"{self.uri.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        return self.head(path) is not None

    def check_writable(self) -> None:
        """Writes and deletes a probe, so that a job finds out before it works.

        Raises:
            StorageAccessError: this place cannot be reached or written.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, b"mltrain checks that it can write here\n")
            self.delete(probe)
        except StorageAccessError:
            raise
        except StorageError as error:
            raise StorageAccessError(f"{self.uri} cannot be written: {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"


def checked(path: str) -> str:
    """``path`` if it is a usable relative object path.

    Raises:
        ValueError: it is empty, absolute, or has an empty, ``.`` or ``..`` segment.
    """
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        raise ValueError(f"object path {path!r}: want segments joined by '/', none of them empty, '.' or '..'")
    return path
