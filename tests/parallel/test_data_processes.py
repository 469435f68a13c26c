"""Datasets, loaders and the node's cache in several processes: races, kills, a remote root."""

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from mltrain.data import Batch, Dataset, Loader, NodeCache
from mltrain.data.shard import blob_path
from mltrain.errors import DamagedError, RequestError, StorageError
from mltrain.storage import ObjectMeta, open_store
from mltrain.storage.local import LocalStore
from tests.support.datasets import make_dataset

BATCH = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("root"), rows=2000, shards=12)


class CountingStore(LocalStore):
    """A directory that notes each download in a file beside it."""

    def download(self, path: str, local: Path) -> ObjectMeta:
        with open(f"{self.uri}.downloads", "a") as log:
            log.write(f"{path}\n")
        return super().download(path, local)


def blobs(dataset: Dataset) -> list[tuple[str, int]]:
    """Name and size of each shard."""
    return [(entry.blob, entry.size_bytes) for entry in dataset.manifest.entries()]


def fetch_all(root: str, cache: Path, budget: int, wanted: list[tuple[str, int]]) -> int:
    """Fetches shards one after the other; the most bytes that the cache was seen to hold."""
    node, store, most = NodeCache(cache, budget), CountingStore(root), 0
    for blob, size_bytes in wanted:
        node.fetch(store, blob_path(blob), blob=blob, size_bytes=size_bytes)
        most = max(most, node.used_bytes())
    return most


def build(root: str, number: int) -> str:
    """Builds the one dataset that all builders build."""
    return make_dataset(root, rows=300, shards=3, seed=number // 100).digest


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def test_builders_that_race_for_one_dataset_all_succeed_with_one_manifest(tmp_path: Path) -> None:
    with processes(4) as pool:
        digests = list(pool.map(build, [str(tmp_path)] * 8, range(8)))
    assert len(set(digests)) == 1
    assert [path.parent.name for path in tmp_path.glob("shards/*/manifest.json")] == digests[:1]
    assert Dataset.open("made", root=tmp_path).verify().ok


def test_builders_of_different_datasets_leave_a_pointer_to_one_of_them(bucket: str) -> None:
    with processes(4) as pool:
        found = set(pool.map(build, [bucket] * 6, [0, 100, 200] * 2))
    # What a builder finds under the name may be another's.
    digests = {meta.path.split("/")[1] for meta in open_store(bucket).list("shards") if "/manifest.json" in meta.path}
    assert len(digests) == 3 and found <= digests
    opened = Dataset.open("made", root=bucket)
    assert opened.digest in digests and opened.provenance["digest"] == opened.digest


def test_one_process_fetches_a_shard_for_all(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    os.symlink(dataset.store.uri, root)
    wanted = blobs(dataset)
    with processes(4) as pool:
        list(pool.map(fetch_all, [str(root)] * 4, [tmp_path / "cache"] * 4, [1 << 30] * 4, [wanted] * 4))
    downloads = (tmp_path / "root.downloads").read_text().split()
    assert sorted(downloads) == sorted(blob_path(blob) for blob, _ in wanted)
    assert not list((tmp_path / "cache").rglob("*.part")) + list((tmp_path / "cache").glob("??/*.lock"))


def test_the_cache_keeps_its_budget_under_concurrent_readers(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "root"
    os.symlink(dataset.store.uri, root)
    wanted = blobs(dataset)
    budget = 5 * max(size for _, size in wanted)
    orders = [wanted, wanted[::-1], wanted[5:] + wanted[:5]]
    with processes(3) as pool:
        most = list(pool.map(fetch_all, [str(root)] * 3, [tmp_path / "cache"] * 3, [budget] * 3, orders))
    assert max(most) <= budget
    assert NodeCache(tmp_path / "cache", budget).used_bytes() <= budget


def test_least_recently_used_goes_first(dataset: Dataset, tmp_path: Path) -> None:
    (a, size_a), (b, size_b), (c, size_c) = blobs(dataset)[:3]
    node = NodeCache(tmp_path / "cache", size_a + size_b + size_c - 1)
    for blob, size_bytes, used_at in ((a, size_a, 100), (b, size_b, 200)):
        file = node.fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes)
        os.utime(file, (used_at, used_at))
    node.fetch(dataset.store, blob_path(a), blob=a, size_bytes=size_a)
    node.fetch(dataset.store, blob_path(c), blob=c, size_bytes=size_c)
    assert {file.stem for file in (tmp_path / "cache").rglob("*.arrow")} == {a, c}


def start_stuck_fetcher(dataset: Dataset, cache: Path, blob: str, size_bytes: int) -> subprocess.Popen[str]:
    """A process that has downloaded half of a shard and goes no further."""
    script = f"""
        import sys
        from pathlib import Path
        from mltrain.data import NodeCache
        from mltrain.storage.local import LocalStore

        class Stuck(LocalStore):
            def download(self, path, local):
                data = self.get(path)
                local.write_bytes(data[: len(data) // 2])
                print("half", flush=True)
                sys.stdin.read()

        NodeCache(Path({str(cache)!r}), {10 * size_bytes}).fetch(
            Stuck({dataset.store.uri!r}), {blob_path(blob)!r}, blob={blob!r}, size_bytes={size_bytes}
        )
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    fetcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert _pipe(fetcher.stdout).readline() == "half\n"
    return fetcher


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def test_a_killed_fetcher_leaves_no_lock_and_nothing_to_trust(dataset: Dataset, tmp_path: Path) -> None:
    blob, size_bytes = blobs(dataset)[0]
    fetcher = start_stuck_fetcher(dataset, tmp_path, blob, size_bytes)
    node = NodeCache(tmp_path, size_bytes)
    # While the fetcher lives, another one waits, and can be told to give up.
    with pytest.raises(InterruptedError):
        node.fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes, cancelled=lambda: True)
    fetcher.send_signal(signal.SIGKILL)
    fetcher.wait()
    assert list(tmp_path.rglob("*.part"))
    file = node.fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes)
    assert file.read_bytes() == dataset.store.get(blob_path(blob))
    assert not list(tmp_path.rglob("*.part")) + list(tmp_path.glob("??/*.lock"))


def test_what_a_killed_fetcher_left_goes_with_the_next_download(dataset: Dataset, tmp_path: Path) -> None:
    (first, size_first), (second, size_second) = blobs(dataset)[:2]
    fetcher = start_stuck_fetcher(dataset, tmp_path, first, size_first)
    fetcher.send_signal(signal.SIGKILL)
    fetcher.wait()
    assert NodeCache(tmp_path).used_bytes() >= size_first
    NodeCache(tmp_path).fetch(dataset.store, blob_path(second), blob=second, size_bytes=size_second)
    assert [file.stem for file in tmp_path.glob("??/*")] == [second]


def test_who_gives_up_where_a_killed_fetcher_was_leaves_nothing_either(dataset: Dataset, tmp_path: Path) -> None:
    (dead, size_dead), (alive, size_alive) = blobs(dataset)[:2]
    fetchers = [start_stuck_fetcher(dataset, tmp_path, *blob) for blob in ((dead, size_dead), (alive, size_alive))]
    fetchers[0].kill()
    fetchers[0].wait()
    node = NodeCache(tmp_path, size_alive + size_dead // 2)  # no room beside the one that lives
    with pytest.raises(InterruptedError):
        node.fetch(dataset.store, blob_path(dead), blob=dead, size_bytes=size_dead, cancelled=lambda: True)
    fetchers[1].kill()
    fetchers[1].wait()
    assert {file.stem for file in tmp_path.glob("??/*")} == {alive}


def test_a_download_that_is_damaged_twice_is_named(dataset: Dataset, tmp_path: Path) -> None:
    (blob, size_bytes), (other, _) = blobs(dataset)[:2]
    store = open_store(tmp_path / "root")
    store.put(blob_path(blob), dataset.store.get(blob_path(other)))
    node = NodeCache(tmp_path / "cache")
    with pytest.raises(DamagedError, match=f"{blob}.arrow is damaged: .* wanted {size_bytes} bytes"):
        node.fetch(store, blob_path(blob), blob=blob, size_bytes=size_bytes)
    store.delete(blob_path(blob))
    with pytest.raises(DamagedError, match=f"{blob}.arrow is missing although the manifest names it"):
        node.fetch(store, blob_path(blob), blob=blob, size_bytes=size_bytes)
    assert not list((tmp_path / "cache").glob("??/*"))


def test_a_shard_larger_than_the_budget_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    blob, size_bytes = blobs(dataset)[0]
    with pytest.raises(RequestError, match=r"set cache.budget_bytes to at least a few shards"):
        NodeCache(tmp_path, size_bytes - 1).fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, None])
def test_an_impossible_budget_is_refused(tmp_path: Path, budget: Any) -> None:
    with pytest.raises(RequestError, match="budget_bytes="):
        NodeCache(tmp_path, budget)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_said_clearly(dataset: Dataset, tmp_path: Path) -> None:
    blob, size_bytes = blobs(dataset)[0]
    mounted = tmp_path / "small"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes // 4096 * 4096 // 2}", "none", str(mounted)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this container may not mount a file system")
    try:
        with pytest.raises(StorageError, match=r"the disk of the cache .* is full"):
            NodeCache(mounted).fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes)
        assert not list(mounted.glob("??/*"))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_remote_dataset_loads_through_the_cache_like_a_local_one(bucket: str, tmp_path: Path) -> None:
    local = make_dataset(tmp_path / "local", rows=900, shards=6)
    make_dataset(bucket, rows=900, shards=6)
    cache = NodeCache(tmp_path / "cache")
    remote = Dataset.open(f"{bucket}/datasets/made", cache=cache)
    assert remote.digest == local.digest
    assert remote.verify().ok and cache.used_bytes() == 0
    rows = [
        [batch["x0"].tolist() for batch in Loader(made, "train", global_batch_size=BATCH)]  # type: ignore[union-attr]
        for made in (remote, local)
    ]
    assert rows[0] == rows[1]
    where = remote.manifest.shards("train")
    assert cache.used_bytes() == int(remote.manifest.index.size_bytes[where].sum())


def test_damage_in_the_cache_is_mended_from_storage(bucket: str, tmp_path: Path) -> None:
    make_dataset(bucket, rows=600, shards=3)
    cache = NodeCache(tmp_path / "cache")
    first = Dataset.open("made", root=bucket, cache=cache)
    table = first.read("train")
    blob = first.manifest.index.blob_name(1)
    file = tmp_path / "cache" / blob[:2] / f"{blob}.arrow"
    raw = bytearray(file.read_bytes())
    raw[300] ^= 1
    file.write_bytes(raw)
    assert Dataset.open("made", root=bucket, cache=cache).read("train").equals(table)
    assert file.read_bytes() != bytes(raw)


def test_damage_in_storage_ends_the_loader_with_the_shards_name(bucket: str, tmp_path: Path) -> None:
    made = make_dataset(bucket, rows=600, shards=3)
    blob = made.manifest.index.blob_name(2)
    raw = bytearray(made.store.get(blob_path(blob)))
    raw[-200] ^= 1
    made.store.put(blob_path(blob), bytes(raw))
    remote = Dataset.open("made", root=bucket, cache=NodeCache(tmp_path))
    with pytest.raises(DamagedError, match=f"shard {bucket}/{blob_path(blob)} is damaged"):
        list(Loader(remote, "train", global_batch_size=BATCH))


def test_torch_is_imported_only_when_a_loader_is_made_and_pandas_where_it_is_asked_for(dataset: Dataset) -> None:
    script = (
        "import sys, mltrain.data\n"
        f"ds = mltrain.data.Dataset.open({dataset.uri!r})\n"
        "assert 'pandas' not in sys.modules\n"
        "assert 'pandas' not in sys.modules\n"
        "ds.to_pandas('train', rows=5); ds.summary()\n"
        "assert not {'torch', 'ray', 'pyspark', 'horovod'} & set(sys.modules), sorted(sys.modules)\n"
        "next(iter(mltrain.data.Loader(ds, 'train', global_batch_size=10)))\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def read_everything(dataset: Dataset) -> None:
    numbers = range(len(dataset.manifest.index))
    dataset.source.prefetch(numbers)
    assert sum(dataset.source.shard(number).rows for number in numbers) == sum(dataset.manifest.index.rows)


def test_a_forked_child_does_without_its_parents_threads(dataset: Dataset) -> None:
    opened = Dataset.open(dataset.uri)
    opened.source.prefetch([0])
    assert opened.source.shard(0).rows
    child = get_context("fork").Process(target=read_everything, args=(opened,))
    child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    assert ended == 0


def test_an_unfinished_loop_does_not_keep_the_process_alive(dataset: Dataset) -> None:
    script = (
        "import mltrain.data\n"
        f"loader = mltrain.data.Loader(mltrain.data.Dataset.open({dataset.uri!r}), 'train', global_batch_size=10)\n"
        "iterator = iter(loader)\n"
        "print(next(iterator).rows)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("10\n", "")


def rows_left(loader: Loader) -> list[list[int]]:
    """Row numbers of the batches that a loader has left."""
    return [np.asarray(batch["__row__"]).tolist() for batch in loader]


def test_a_loader_that_was_iterated_travels_and_goes_on_there(dataset: Dataset) -> None:
    given: dict[str, Any] = {"rank": 1, "world_size": 2, "columns": ["x0"], "prefetch": 4, "epochs": 3}
    loader = Loader(dataset, "train", global_batch_size=BATCH, seed=3, row_numbers=True, **given)
    loader.seek(epoch=2)
    iteration = iter(loader)
    batches = [next(iteration), next(iteration)]
    copied = pickle.loads(pickle.dumps(loader))
    assert copied.state_dict() == loader.state_dict() and copied.schema == loader.schema
    assert batches[1].step == 1 and (copied.rank, copied.world_size, copied.epochs) == (1, 2, 3)
    with processes(1) as pool:
        elsewhere = pool.submit(rows_left, loader).result()
    assert elsewhere == rows_left(copied) == [np.asarray(batch["__row__"]).tolist() for batch in iteration]


def test_a_second_thread_is_refused_and_nobody_hangs(dataset: Dataset) -> None:
    for _ in range(5):
        taken: list[int] = []
        loader = Loader(dataset, "train", global_batch_size=8, seed=3)

        def take(iteration: Iterator[Batch], taken: list[int] = taken) -> str:
            try:
                for batch in iteration:
                    # Not its rows: their place is used again while this thread waits for its turn.
                    taken.append(batch.step)
            except RequestError as error:
                return str(error)
            return ""

        iteration = iter(loader)
        with ThreadPoolExecutor(4) as pool:
            said = set(pool.map(take, [iteration] * 4, timeout=60))
        # Where nobody was refused, nobody was there at the same moment.
        assert said <= {"", *(text for text in said if text.startswith("two threads take batches"))}
        assert sorted(taken) == list(range(len(loader)))


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_no_file_in_the_place_of_a_shard_is_named(
    dataset: Dataset, tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dataset.store.uri, tmp_path / "root")
    made = Dataset.open("made", root=tmp_path / "root")
    for shard, (blob, _) in enumerate(blobs(made)[:2]):
        file = tmp_path / "root" / blob_path(blob)
        if remote:
            cache = NodeCache(tmp_path / "cache")
            file = tmp_path / "cache" / blob[:2] / f"{blob}.arrow"
            made = dataclasses.replace(made, cache=cache)
            monkeypatch.setattr("mltrain.data.source.is_local", lambda store: False)
        file.unlink(missing_ok=True)
        if shard:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(file)
        else:
            file.mkdir(parents=True)
        with pytest.raises(StorageError, match=f"{blob}.*(Is a directory|symbolic links)"):
            made.source.shard(shard)


@pytest.mark.parametrize("place", ["", "{0}.part", "eviction.lock"])
def test_what_is_in_the_way_of_a_cache_is_named(dataset: Dataset, tmp_path: Path, place: str) -> None:
    blob, size_bytes = blobs(dataset)[0]
    in_the_way = tmp_path / "cache" / place.format(f"{blob[:2]}/{blob}")
    if place:
        in_the_way.mkdir(parents=True)
    else:
        in_the_way.write_text("a file")
    node = NodeCache(tmp_path / "cache")
    with pytest.raises((StorageError, RequestError), match=rf"cache.*{in_the_way.name}.*set cache\.path"):
        node.fetch(dataset.store, blob_path(blob), blob=blob, size_bytes=size_bytes)
