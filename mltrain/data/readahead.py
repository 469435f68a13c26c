"""Shards that no longer lie in memory, read from the disk again before they are needed."""

import contextlib
import errno
import os
import resource
from collections.abc import Iterable
from pathlib import Path

_PROBE_BYTES = 1 << 20
# Fewer are of other parts of the process.
_FAULTS = 16
# Only Linux says whether a page is in memory.
_POSSIBLE = hasattr(os, "RWF_NOWAIT")


class ReadAhead:
    """Asks the kernel to read mapped files that it has dropped, as long as it drops any.

    A table larger than memory is read from the disk in each epoch. A page that is missing when its rows are gathered
    is a wait for the disk, a few rows at a time; asked for ahead, files come as fast as the disk gives them. Where
    everything stays in memory, this costs a look at the process's page faults now and then.
    """

    def __init__(self) -> None:
        self._faults = _major_faults()
        self._absent = False
        self._asked: tuple[set[int], set[int]] = set(), set()

    def needed(self) -> bool:
        """Whether pages have been waited for, or files were found absent, lately."""
        faults = _major_faults()
        if faults - self._faults > _FAULTS:
            self._absent = True
        self._faults = faults
        return self._absent and _POSSIBLE

    def turn(self, coming: Iterable[int]) -> tuple[list[int], list[int]]:
        """Of the shards that come next, those that were not among them the last time, and those that are no longer.

        The latter only at the second time: steps that are not gathered yet may read them.
        """
        now = dict.fromkeys(coming)
        before, last = self._asked
        self._asked = last, set(now)
        return [shard for shard in now if shard not in last], sorted(before.difference(last, now))

    def read(self, files: Iterable[Path]) -> None:
        """Has those that are not in memory read; returns before they are."""
        absent = [_ask_for(file) for file in files]
        self._absent = any(absent)

    def drop(self, files: Iterable[Path]) -> None:
        """Makes room: the kernel would keep what was read often before what comes next, and has not been read yet."""
        for file in files:
            with contextlib.suppress(FileNotFoundError), file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ask_for(file: Path) -> bool:
    """Whether a file was not in memory as a whole; the rest of it is then on its way."""
    try:
        opened = os.open(file, os.O_RDONLY)
    # Dropped by the cache meanwhile: it is fetched again where it is needed.
    except FileNotFoundError:
        return False
    try:
        size_bytes = os.fstat(opened).st_size
        if all(_present(opened, offset) for offset in range(0, size_bytes, _PROBE_BYTES)):
            return False
        os.posix_fadvise(opened, 0, size_bytes, os.POSIX_FADV_WILLNEED)
        return True
    finally:
        os.close(opened)


def _present(opened: int, offset: int) -> bool:
    """Whether the page at an offset is in memory; True where the file system cannot say."""
    try:
        os.preadv(opened, [bytearray(1)], offset, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
