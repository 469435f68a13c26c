"""A loader whose storage is slow, refuses for a while, or for too long."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mltrain.data import Dataset, Loader, NodeCache, source
from mltrain.data.shard import blob_path
from mltrain.errors import StorageError
from tests.support.datasets import make_dataset
from tests.support.faults_http import Fault, FaultyProxy
from tests.support.processes import wait_until

BATCH, SHARDS = 64, 12
Open = Callable[..., Dataset]


@pytest.fixture
def remote(proxy: FaultyProxy, bucket: str, tmp_path: Path) -> Open:
    """Opens a dataset behind the proxy, with an empty cache."""
    make_dataset(bucket, rows=1500, shards=SHARDS, splits=("train",))

    def opened(deadline_s: float = 30.0) -> Dataset:
        return Dataset.open("made", root=bucket, cache=NodeCache(tmp_path / "cache"), deadline_s=deadline_s)

    return opened


def test_requests_overlap(proxy: FaultyProxy, remote: Open) -> None:
    """None is answered before four are under way: what one takes is hidden behind the others."""
    four = threading.Barrier(4, timeout=20)
    dataset = remote()

    def delay(method: str, path: str) -> None:
        if "blobs" in path:
            four.wait()

    proxy.before_request = delay
    assert len(list(Loader(dataset, "train", global_batch_size=BATCH))) == -(-1500 // BATCH)
    assert not four.broken


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.UNAVAILABLE])
def test_a_passing_outage_is_waited_out_and_said(
    proxy: FaultyProxy,
    remote: Open,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "_PATIENCE_S", 0.1)
    dataset = remote()
    proxy.fail(fault, part_of_path="blobs", times=3 * SHARDS)
    with caplog.at_level(logging.WARNING, logger="mltrain"):
        rows = sum(batch.rows for batch in Loader(dataset, "train", global_batch_size=BATCH))
    assert rows == 1500
    assert proxy.met[fault] == 3 * SHARDS
    assert any("trying again in" in record.message for record in caplog.records)
    assert any(
        "waiting for shard s3://" in record.message and ".arrow since" in record.message for record in caplog.records
    )


def test_an_outage_past_the_deadline_ends_the_loader_and_names_the_object(proxy: FaultyProxy, remote: Open) -> None:
    dataset = remote(deadline_s=1.0)
    loader = Loader(dataset, "train", global_batch_size=BATCH)
    missing = dataset.manifest.index.blob_name(5)
    proxy.fail(Fault.UNAVAILABLE, part_of_path=missing, times=10**6)
    with pytest.raises(StorageError, match=f"{blob_path(missing)}: no success in 1 s .*503"):
        list(loader)
    proxy.heal()
    assert sum(batch.rows for batch in Loader(dataset, "train", global_batch_size=BATCH)) == 1500


def test_what_could_not_be_fetched_ahead_is_asked_for_again_when_it_is_needed(proxy: FaultyProxy, remote: Open) -> None:
    """An outage longer than the deadline that nobody had to wait for harms nobody."""
    dataset = remote(deadline_s=0.5)
    proxy.fail(Fault.UNAVAILABLE, part_of_path="blobs", times=10**6)
    dataset.source.prefetch([3])
    wait_until(lambda: dataset.source.at_hand(3), 20, "end of the prefetch")
    proxy.heal()
    assert dataset.source.shard(3).rows == dataset.manifest.index.rows[3]
