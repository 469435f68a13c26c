"""Several processes in one cache: its budget, a disk that is smaller than the budget, one that is full.

A case: readers fetch shards in orders of their own, one of them is killed on the way; the sizes of the files are looked
at all the while. Every third case lies on a small file system, where that can be mounted.
"""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import xxhash

from mltrain.data import NodeCache
from mltrain.data.shard import blob_path
from mltrain.errors import StorageError
from mltrain.storage.local import LocalStore
from tests.chaos import warm
from tests.chaos.result import Result
from tests.support.datasets import Features, make_dataset

READERS = 4
_PAGE = 4096

Wanted = list[tuple[str, int]]


def run(count: int, seed: int, folder: Path) -> Result:
    """``count`` times several readers of one cache."""
    result = Result("cache", seed)
    made = make_dataset(folder / "root", rows=12_000, shards=24, features=Features(numeric=20))
    shards = [(entry.blob, entry.size_bytes) for entry in made.manifest.entries() if entry.split == "train"]
    for case in range(seed, seed + count):
        with result.case(case):
            rng = random.Random(case)
            largest = max(size for _, size in shards)
            place = folder / f"cache-{case}"
            if rng.random() < 1 / 3 and os.geteuid() == 0:
                _small_disk(folder / "root", place, shards, largest, rng, result)
            else:
                budget = rng.randrange(largest, 5 * largest)
                most = _race(folder / "root", place, budget, shards, rng)
                assert most <= budget, f"{most} bytes in a cache of {budget}"
                result.counts["races of readers within a budget of 1 to 5 shards"] += 1
                highest = max(float(result.figures.get("most of a budget used", "0")), most / budget)
                result.figures["most of a budget used"] = f"{highest:.2f}"
    return result


def _race(root: Path, cache: Path, budget: int, shards: Wanted, rng: random.Random) -> int:
    """Readers, one of them killed; the most bytes that were seen on disk."""
    most = 0
    with contextlib.ExitStack() as stack:
        orders = [rng.sample(shards, len(shards)) for _ in range(READERS)]
        running = [
            stack.enter_context(warm.started(_fetch, str(root), cache, budget, order, environment={}))
            for order in orders
        ]
        victim = running[rng.randrange(READERS)]
        killed_at = time.monotonic() + rng.uniform(0.0, 0.3)
        while any(process.is_alive() for process, _ in running):
            most = max(most, _bytes_in(cache))
            if time.monotonic() > killed_at:
                victim[0].kill()
            time.sleep(0.002)
        for one in running:
            if one is not victim:
                assert warm.answer(*one) == len(shards)
    for file in cache.glob("??/*.arrow"):
        assert xxhash.xxh3_128_hexdigest(file.read_bytes()) == file.stem, f"{file.name} is not whole"
    return most


def _small_disk(root: Path, place: Path, shards: Wanted, largest: int, rng: random.Random, result: Result) -> None:
    """Room for some shards: old ones go, though the budget is larger. Room for none: an error that says what to do."""
    enough = rng.random() < 0.5
    size = (READERS + 3) * largest if enough else largest // 2
    with _mounted(place, -(-size // _PAGE) * _PAGE + 64 * _PAGE * enough) as is_mounted:
        if not is_mounted:
            return
        if enough:
            _race(root, place, 1 << 30, shards, rng)
            result.counts["races of readers on a disk smaller than the budget"] += 1
            return
        blob, size_bytes = rng.choice(shards)
        try:
            NodeCache(place).fetch(LocalStore(str(root)), blob_path(blob), blob=blob, size_bytes=size_bytes)
        except StorageError as error:
            for part in (f"the disk of the cache {place} is full", "set cache.path", "cache.budget_bytes"):
                if part not in str(error):
                    raise AssertionError(f"the error does not say {part!r}: {error}") from error
        else:
            raise AssertionError("a shard on a disk with half of its room")
        assert not list(place.glob("??/*")), "what did not fit was left"
        result.counts["full disks: the error names the directory and what to do"] += 1


@contextlib.contextmanager
def _mounted(place: Path, size_bytes: int) -> Iterator[bool]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        yield False  # this container may not mount a file system
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fetch(connection: Connection, root: str, cache: Path, budget: int, wanted: Wanted) -> None:
    store = LocalStore(root)
    for blob, size_bytes in wanted:
        for _ in range(100):
            file = NodeCache(cache, budget).fetch(store, blob_path(blob), blob=blob, size_bytes=size_bytes)
            try:
                assert xxhash.xxh3_128_hexdigest(file.read_bytes()) == blob
                break
            except FileNotFoundError:
                continue  # another reader has made room since
    connection.send(len(wanted))


def _bytes_in(cache: Path) -> int:
    """What shards and partial downloads take."""
    total = 0
    for file in cache.glob("??/*"):
        if file.suffix in (".arrow", ".part"):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size
    return total
