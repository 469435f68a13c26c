"""Opening a large dataset costs what its manifest costs, and nothing for each shard. The times: benchmarks/open.py."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.open import BATCH, synthetic
from mltrain.data import Dataset, Loader

SHARDS = 20_000
# At 100,000 shards that is 50 MB.
MOST_BYTES_A_SHARD = 500


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    synthetic(folder, SHARDS)
    return folder


def open_and_seek(root: Path) -> object:
    """What is alive once it is known what a step in the middle of an epoch reads."""
    loader = Loader(Dataset.open("large", root=root), "train", global_batch_size=BATCH, rank=1, world_size=8)
    loader.seek(epoch=3, step=len(loader) // 2)
    epoch, step = loader.position
    shares = loader._orders(epoch).shares(range(step, step + 1), 1, 8)
    assert sum(segment.count for segment in shares[0]) == BATCH // 8
    return loader, shares


def calls_of(work: Callable[[], object]) -> int:
    """How many functions, of Python and of C, the work calls in this thread."""
    calls = 0

    def count(frame: FrameType, event: str, what: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def test_opening_and_seeking_take_little_memory_a_shard(root: Path) -> None:
    open_and_seek(root)
    arrow = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        kept = open_and_seek(root)
        most = tracemalloc.get_traced_memory()[1] + arrow.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert kept and most < MOST_BYTES_A_SHARD * SHARDS


def test_opening_and_seeking_do_nothing_for_each_shard(root: Path) -> None:
    open_and_seek(root)
    assert 100 < calls_of(lambda: open_and_seek(root)) < SHARDS // 4
