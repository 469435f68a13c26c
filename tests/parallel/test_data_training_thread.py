"""What the thread that takes batches is spared: waiting, once the cache is warm, and checking shards."""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from mltrain.data import Dataset, Loader, NodeCache
from tests.support.datasets import Features, make_dataset

ROWS, SHARDS, BATCH = 60_000, 16, 1500
_ROUNDS = 5
# A step of the training takes so many times what a batch costs the loader.
_SLOWER = 10


def _waited_s(loader: Loader, step_s: float) -> float:
    """Seconds that an epoch waits after its first batch, where training takes ``step_s`` a batch."""
    epoch = iter(loader)
    next(epoch)
    before = loader.counters.wait_s
    for _ in epoch:
        # The computing of a step, as on a GPU.
        time.sleep(step_s)
    return loader.counters.wait_s - before


def test_with_a_warm_cache_a_training_slower_than_its_loader_does_not_wait(bucket: str, tmp_path: Path) -> None:
    """Beside epochs of the same loader that take each batch at once, and so wait for all of them."""
    make_dataset(bucket, rows=ROWS, shards=SHARDS, splits=("train",), features=Features(numeric=200))
    made = Dataset.open("made", root=bucket, cache=NodeCache(tmp_path / "cache"))
    loader = Loader(made, "train", global_batch_size=BATCH)
    assert sum(batch.rows for batch in loader) == ROWS
    at_once, slowly = [], []
    for _ in range(_ROUNDS):
        at_once.append(_waited_s(loader, 0.0))
        slowly.append(_waited_s(loader, _SLOWER * at_once[-1] / len(loader)))
    # Others on the machine may hold up an epoch, but not each of them.
    assert min(slowly) < 0.1 * statistics.median(at_once), (slowly, at_once)


@pytest.mark.parametrize("where", ["local", "S3"])
def test_shards_are_checked_by_other_threads(
    where: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the loader cannot keep up, so that who takes batches gathers some of them too."""
    root = bucket if where == "S3" else str(tmp_path / "root")
    make_dataset(root, rows=1500, shards=SHARDS, splits=("train",))
    loader = Loader(Dataset.open("made", root=root, cache=NodeCache(tmp_path / "cache")), "train", global_batch_size=64)
    hashed_by: list[threading.Thread] = []
    new_hash = xxhash.xxh3_128

    def noted(*data: Any) -> Any:
        hashed_by.append(threading.current_thread())
        return new_hash(*data)

    monkeypatch.setattr(xxhash, "xxh3_128", noted)
    assert sum(batch.rows for batch in loader) == 1500
    first_epoch = len(hashed_by)
    assert sum(batch.rows for batch in loader) == 1500
    # What was fetched is hashed as it comes, and when it is opened.
    assert len(hashed_by) == first_epoch == SHARDS * (2 if where == "S3" else 1)
    assert threading.current_thread() not in hashed_by
