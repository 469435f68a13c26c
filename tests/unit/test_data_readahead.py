"""Files that the kernel has dropped are asked for again."""

import os
from pathlib import Path

import pytest

from mltrain.data.readahead import ReadAhead
from tests.support.processes import wait_until


def missing(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            os.preadv(opened.fileno(), [bytearray(1)], file.stat().st_size - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
    return False


def test_a_file_that_is_not_in_memory_is_read_once_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "shard"
    with file.open("wb") as opened:
        opened.write(bytes(4 << 20))
        opened.flush()
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not missing(file):
        pytest.skip("this file system keeps its files in memory")
    ahead = ReadAhead()
    ahead.read([file, tmp_path / "dropped by the cache"])
    assert ahead.needed()
    wait_until(lambda: not missing(file), 20, "the file in memory")

    def all_there() -> bool:
        ahead.read([file])
        return not ahead.needed()

    wait_until(all_there, 20, "nothing to ask for")


def test_a_shard_is_read_when_it_comes_up_and_dropped_when_no_planned_step_reads_it() -> None:
    ahead = ReadAhead()
    assert ahead.turn([1, 2]) == ([1, 2], [])
    assert ahead.turn([2, 3]) == ([3], [])
    assert ahead.turn([3, 4]) == ([4], [1])
    assert ahead.turn([1, 4]) == ([1], [2])


def test_a_dropped_file_is_no_longer_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "shard"
    with file.open("wb") as opened:
        opened.write(bytes(1 << 20))
        opened.flush()
        os.fsync(opened.fileno())
    assert not missing(file)
    ReadAhead().drop([file, tmp_path / "dropped by the cache"])
    if not missing(file):
        pytest.skip("this file system keeps its files in memory")
