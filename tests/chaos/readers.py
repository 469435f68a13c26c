"""Readers that are killed at random moments, and the next one's start.

A case: a reader opens the dataset, fetches and reads; SIGKILL after a random time; what is left is looked at; another
reader starts in the same cache. In a third of the cases a second reader is at work in the cache meanwhile.
"""

import fcntl
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import xxhash

from mltrain.data import Dataset, Loader, NodeCache
from tests.chaos import warm
from tests.chaos.result import Result
from tests.support import s3
from tests.support.datasets import Features, make_dataset

BATCH = 512
NEXT_START_S = 2.0
_BUDGET = 1 << 30
_SPLIT = {"load": "train", "read": "train", "verify": "train", "load_little": "validation"}


def run(count: int, seed: int, folder: Path, next_start_s: float = NEXT_START_S) -> Result:
    """Kills ``count`` readers; after each of them the next one has rows within so many seconds."""
    result = Result("readers", seed)
    starts: list[float] = []
    with s3.serve(folder / "s3") as server:
        with s3.environment(server):
            bucket = server.bucket()
            make_dataset(bucket, rows=24_000, shards=16, features=Features(numeric=30, ragged=1))
        readers = _Readers(bucket, folder, dict(server.env))
        for case in range(seed, seed + count):
            with result.case(case):
                starts.append(readers.case(random.Random(case), result))
                assert starts[-1] <= next_start_s, f"the next start took {starts[-1]:.2f} s"
    if starts:
        result.figures["next start to first rows, median"] = f"{statistics.median(starts):.3f} s"
        result.figures["next start to first rows, worst"] = f"{max(starts):.3f} s"
    return result


class _Readers:
    def __init__(self, root: str, folder: Path, environment: dict[str, str]) -> None:
        self.root, self.cache, self.temporary = root, folder / "cache", folder / "tmp"
        self.temporary.mkdir()
        self.environment = {**environment, "TMPDIR": str(self.temporary)}
        self.took: dict[str, float] = {}
        self.right: dict[str, str] = {}
        for how in _READ:
            self._finish(how)  # warms the server up
            self.took[how], self.right[how] = self._finish(how)[1:]
            shutil.rmtree(self.cache, ignore_errors=True)

    def case(self, rng: random.Random, result: Result) -> float:
        """One kill; answers how long the next start took."""
        cold = rng.random() < 0.6
        if cold:
            shutil.rmtree(self.cache, ignore_errors=True)
        how = rng.choice(["load", "load", "load", "read", "verify"])
        beside = rng.random() < 1 / 3
        with warm.started(_work, how, self.root, self.cache, environment=self.environment) as (victim, connection):
            if beside:
                self._kill_beside_another(victim, connection, how, rng)
            else:
                self._kill(victim, connection, how, rng)
        self._look(result)
        following = rng.choice(["load", "load", "read", "load_little"])
        first_s, _, digest = self._finish(following)
        assert digest == self.right[following], "the next reader read something else"
        left = [path.name for path in self.cache.glob("??/*") if path.suffix != ".arrow"]
        if following == "load_little" and not cold:
            left = []  # it may have found everything that it needs, and looked no further
        assert not left, f"the next start left {left}"
        assert not list(self.temporary.iterdir()), "temporary files stay"
        result.counts[f"killed while it did: {how}, cache {'cold' if cold else 'warm'}"] += 1
        result.counts["… beside another reader, which read on"] += beside
        return first_s

    def _kill(self, victim: ForkServerProcess, connection: Connection, how: str, rng: random.Random) -> None:
        assert warm.answer(victim, connection) == "begun"
        victim.join(rng.uniform(0.0, 1.1 * self.took[how]))
        self._end(victim)

    def _kill_beside_another(
        self, victim: ForkServerProcess, connection: Connection, how: str, rng: random.Random
    ) -> None:
        with warm.started(_work, "load", self.root, self.cache, environment=self.environment) as (other, line):
            assert warm.answer(other, line) == "begun"
            self._kill(victim, connection, how, rng)
            _, _, digest = _finished(other, line)
            assert digest == self.right["load"], "the reader beside it read something else"

    def _end(self, victim: ForkServerProcess) -> None:
        shared = _shared_memory(victim.pid or 0)
        victim.kill()
        victim.join()
        left = [name for name in shared if Path(name).exists()]
        assert not left, f"shared memory stays: {left}"

    def _look(self, result: Result) -> None:
        """No lock is held, and what has a shard's name is that shard."""
        for lock in [*self.cache.glob("??/*.lock"), *self.cache.glob("*.lock")]:
            assert _is_free(lock), f"{lock.name} is still held"
            result.counts["… it left the name of a lock that nobody holds"] += lock.parent != self.cache
        for shard in self.cache.glob("??/*.arrow"):
            assert xxhash.xxh3_128_hexdigest(shard.read_bytes()) == shard.stem, f"{shard.name} is not whole"
        result.counts["… it left part of a download"] += len(list(self.cache.glob("??/*.part")))

    def _finish(self, how: str) -> tuple[float, float, str]:
        """Runs a reader to its end: seconds to its first rows, seconds in all, hash of what it read."""
        with warm.started(_work, how, self.root, self.cache, environment=self.environment) as (process, connection):
            assert warm.answer(process, connection) == "begun"
            return _finished(process, connection)


def _finished(process: ForkServerProcess, connection: Connection) -> tuple[float, float, str]:
    first_s, all_s, digest = warm.answer(process, connection)
    return first_s, all_s, digest


def _work(connection: Connection, how: str, root: str, cache: Path) -> None:
    import torch

    torch.set_num_threads(1)
    connection.send("begun")
    began = time.monotonic()
    first_s, digest = _READ[how](Dataset.open("made", root=root, cache=NodeCache(cache, _BUDGET)), _SPLIT[how])
    connection.send((first_s - began, time.monotonic() - began, digest))


def _load(dataset: Dataset, split: str) -> tuple[float, str]:
    hasher, first_s = xxhash.xxh3_128(), 0.0
    for batch in Loader(dataset, split, global_batch_size=BATCH, seed=5):
        first_s = first_s or time.monotonic()
        hasher.update(batch.numeric.numpy().tobytes())
    return first_s, hasher.hexdigest()


def _read(dataset: Dataset, split: str) -> tuple[float, str]:
    dataset.read(split, stop=1)
    first_s = time.monotonic()
    table = dataset.read(split, ["id", "x0"])
    return first_s, xxhash.xxh3_128_hexdigest(table["x0"].to_numpy().tobytes())


def _verify(dataset: Dataset, split: str) -> tuple[float, str]:
    assert dataset.verify().ok
    return time.monotonic(), dataset.digest


_READ: dict[str, Callable[[Dataset, str], tuple[float, str]]] = {
    "load": _load,
    "read": _read,
    "verify": _verify,
    "load_little": _load,
}


def _shared_memory(pid: int) -> set[str]:
    """Files of shared memory that a process has mapped or open."""
    found: set[str] = set()
    try:
        mapped = Path(f"/proc/{pid}/maps").read_text().splitlines()
        found.update(line.split(maxsplit=5)[-1] for line in mapped if "/dev/shm/" in line)
        found.update(os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return set()  # it has ended, or closed a file since
    return {name for name in found if name.startswith("/dev/shm/")}


def _is_free(lock: Path) -> bool:
    with lock.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
