"""Storage that is away in the middle of an epoch: the loader waits, and goes on, or fails with the object's name."""

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain.data import Dataset, Loader, NodeCache
from mltrain.errors import StorageError
from tests.chaos.result import Result
from tests.support import faults_http, s3
from tests.support.datasets import make_dataset
from tests.support.faults_http import FaultyProxy

BATCH = 64
SHARDS = 48
_DEADLINE_S = 1.5
_FULL_S = 60.0


def run(count: int, seed: int, folder: Path, outage_s: float = _FULL_S) -> Result:
    """``count`` outages that end in time, and as many that do not."""
    result = Result("outage", seed)
    with s3.serve(folder / "s3") as server, s3.environment(server):
        root = server.bucket()
        made = make_dataset(root, rows=6000, shards=SHARDS)
        right = [batch.numeric.numpy().copy() for batch in Loader(made, "train", global_batch_size=BATCH, seed=1)]
        for case in range(seed, seed + count):
            rng = random.Random(case)
            with result.case(case), faults_http.before(server.endpoint) as proxy:
                _waits(_open(root, proxy, folder / f"waits-{case}", 3 * outage_s), proxy, right, rng, outage_s, result)
            with result.case(case), faults_http.before(server.endpoint) as proxy:
                _fails(_open(root, proxy, folder / f"fails-{case}", _DEADLINE_S), proxy, right, rng, result)
    return result


def _open(root: str, proxy: FaultyProxy, cache: Path, deadline_s: float) -> Loader:
    """A loader that reads through the proxy."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        dataset = Dataset.open("made", root=root, cache=NodeCache(cache), deadline_s=deadline_s)
    return Loader(dataset, "train", global_batch_size=BATCH, seed=1)


def _go_away(proxy: FaultyProxy, after: int) -> threading.Event:
    """Storage is away from its so-many-th shard on; the event tells that it has gone."""
    gone = threading.Event()
    asked: list[str] = []

    def count(method: str, path: str) -> None:
        asked.append(path)
        if len(asked) == after:
            threading.Thread(target=_refuse, args=(proxy, gone), daemon=True).start()
        if len(asked) >= after:
            gone.wait()

    proxy.before_request = count
    return gone


def _refuse(proxy: FaultyProxy, gone: threading.Event) -> None:
    proxy.refuse()
    gone.set()


def _come_back(proxy: FaultyProxy, gone: threading.Event, outage_s: float) -> None:
    gone.wait()
    time.sleep(outage_s)
    if proxy.refusing:
        proxy.accept()


def _waits(
    loader: Loader, proxy: FaultyProxy, right: list[Any], rng: random.Random, outage_s: float, result: Result
) -> None:
    gone, said = _go_away(proxy, rng.randrange(2, SHARDS // 2)), _Said()
    back = threading.Thread(target=_come_back, args=(proxy, gone, outage_s), daemon=True)
    back.start()
    try:
        with said.listening():
            longest_s, seen = 0.0, []
            began = time.monotonic()
            for batch in loader:
                longest_s = max(longest_s, time.monotonic() - began)
                seen.append(batch.numeric.numpy().copy())
                began = time.monotonic()
    finally:
        gone.set()
        back.join()
    assert len(seen) == len(right) and all(map(np.array_equal, seen, right)), "other rows than without the outage"
    assert longest_s > 0.5 * outage_s, f"it did not meet the outage: the longest wait was {longest_s:.1f} s"
    named = [line for line in said.lines if "shards/blobs/" in line and "trying again" in line]
    assert named, "it waited without a word"
    result.counts["outages that it waited for, and went on with the same rows"] += 1
    result.figures["last outage, longest wait for a batch, lines that named a shard"] = (
        f"{outage_s:g} s, {longest_s:.1f} s, {len(named)}"
    )


def _fails(loader: Loader, proxy: FaultyProxy, right: list[Any], rng: random.Random, result: Result) -> None:
    gone, seen = _go_away(proxy, rng.randrange(2, SHARDS // 2)), []
    try:
        for batch in loader:
            seen.append(batch.numeric.numpy().copy())
    except StorageError as error:
        for part in ("shards/blobs/", f"no success in {_DEADLINE_S:g} s", "storage.deadline_s"):
            if part not in str(error):
                raise AssertionError(f"the error does not say {part!r}: {error}") from error
    assert gone.is_set() and len(seen) < len(right), "an epoch was over although storage was away"
    proxy.before_request = lambda method, path: None
    proxy.accept()
    seen += [batch.numeric.numpy().copy() for batch in loader]
    assert len(seen) == len(right) and all(map(np.array_equal, seen, right)), "other rows after the failure"
    result.counts["outages past the deadline: named, and read on when storage was back"] += 1


class _Said(logging.Handler):
    """What the storage layer logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        logger = logging.getLogger("mltrain.storage")
        level, logger.propagate = logger.level, False
        logger.setLevel(logging.WARNING)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = True
