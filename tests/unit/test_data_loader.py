"""The loader beside a plain reference, and how it starts, stops and fails."""

import dataclasses
import functools
import gc
import itertools
import os
import pickle
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import Batch, Dataset, Loader, Ragged
from mltrain.data.order import ShuffledEpoch
from mltrain.data.readahead import ReadAhead
from mltrain.data.shard import blob_path
from mltrain.errors import DamagedError, RequestError
from tests.support.datasets import Features, make_dataset
from tests.support.processes import wait_until

EVERYTHING = Features(numeric=3, categorical=2, vectors=1, ragged=2, weight=True, keep=True)
BATCH = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("root"), rows=1500, shards=9, features=EVERYTHING)


def reference(dataset: Dataset, *, epoch: int, seed: int, shuffle: bool) -> list[list[int]]:
    """Canonical rows of each step, by the definition of the order."""
    split = dataset.manifest.split("train")
    positions = np.arange(split.rows)
    if shuffle:
        positions = ShuffledEpoch(
            dataset.manifest.index.rows[dataset.manifest.shards("train")],
            BATCH,
            lanes=split.lanes,
            window=split.window,
            digest=dataset.digest,
            split="train",
            seed=seed,
            epoch=epoch,
        ).canonical_rows(positions)
    return [sorted(positions[start : start + BATCH].tolist()) for start in range(0, split.rows, BATCH)]


def plain(batch: Batch, name: str) -> list[Any]:
    column = batch[name]
    if isinstance(column, Ragged):
        return [column.values[a:b].tolist() for a, b in zip(column.offsets[:-1], column.offsets[1:], strict=True)]
    return list(column.tolist())


_ELSEWHERE: set[threading.Thread] = set()


@pytest.fixture(autouse=True, scope="module")
def threads_of_other_tests() -> None:
    """A node's cache keeps its fetching threads; those of other modules in this process are not the loader's."""
    _ELSEWHERE.update(loader_threads())


def loader_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("mltrain-loader")} - _ELSEWHERE


def wait_for_no_threads() -> None:
    """Joins what ends by itself; fails when something does not."""
    gc.collect()
    for thread in loader_threads():
        thread.join(10)
        assert not thread.is_alive(), thread.name


@given(
    seed=st.integers(-5, 2**40),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
@settings(max_examples=12, deadline=None)
def test_batches_are_those_of_the_reference_through_changes_of_membership(
    dataset: Dataset, seed: int, epoch: int, shuffle: bool, worlds: list[int]
) -> None:
    """The world changes after every 5 steps; each step gathers the same rows, each row's columns are its own."""
    table = dataset.read("train")
    steps = reference(dataset, epoch=epoch, seed=seed, shuffle=shuffle)
    loaders: list[Loader] = []
    for generation, start in enumerate(range(0, len(steps), 5)):
        world = worlds[generation % len(worlds)]
        while len(loaders) < world:
            loaders.append(
                Loader(dataset, "train", global_batch_size=BATCH, seed=seed, shuffle=shuffle, row_numbers=True)
            )
        shares = []
        for rank in range(world):
            loaders[rank].reshard(rank, world)
            loaders[rank].seek(epoch, start)
            taken = [batch.clone() for batch, _ in zip(loaders[rank], range(5), strict=False)]
            assert all(batch.global_rows == len(steps[batch.step]) for batch in taken)
            shares.append(taken)
        for number in range(len(shares[0])):
            rows = [row for share in shares for row in share[number]["__row__"].tolist()]  # type: ignore[union-attr]
            assert sorted(rows) == steps[start + number]
            if number == 0:
                wanted = table.take(pa.array(rows))
                for column in dataset.schema.columns:
                    if not column.carried:
                        found = [value for share in shares for value in plain(share[number], column.name)]
                        assert found == wanted[column.name].to_pylist(), column.name
    for loader in loaders:
        loader.close()


def test_a_batch_groups_what_models_want(dataset: Dataset) -> None:
    batch = next(iter(Loader(dataset, "train", global_batch_size=BATCH)))
    assert batch.numeric.shape == (BATCH, 6) and batch.numeric.dtype == torch.float32
    assert torch.equal(batch.numeric[:, 0], batch["x0"])  # type: ignore[arg-type]
    assert torch.equal(batch.numeric[:, 3:], batch["v0"])  # type: ignore[arg-type]
    assert batch.categorical.shape == (BATCH, 2) and batch.categorical.dtype == torch.int32
    assert list(batch.labels) == ["y"] and batch.labels["y"].shape == (BATCH,)
    assert batch.weight is not None and batch.weight.shape == (BATCH,)
    assert batch.matrix("float64").shape == (BATCH, 0)
    with pytest.raises(KeyError, match="row_numbers=True"):
        batch["__row__"]
    with pytest.raises(KeyError, match="no column 'note'"):
        batch["note"]


@pytest.mark.parametrize(
    ("name", "what"),
    [("id", "'id', which is a key: ds.read"), ("note", "a kept column: ds.read"), ("z", "no column of the dataset")],
)
def test_columns_that_no_batch_has_are_refused_and_not_offered(dataset: Dataset, name: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        Loader(dataset, "train", global_batch_size=BATCH, columns=["x0", name])
    offered = str(caught.value).partition("the features ")[2].split(", ")
    assert offered == [column.name for column in dataset.schema.features]


def test_a_loader_is_told_in_one_line(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, rank=1, world_size=2)
    loader.seek(3, 2)
    assert repr(loader) == f"Loader({dataset!r}, 'train', rank 1 of 2, epoch 3, step 2 of {len(loader)})"


def test_columns_selects_features_and_keeps_labels(dataset: Dataset) -> None:
    everything = next(iter(Loader(dataset, "train", global_batch_size=BATCH)))
    some = next(iter(Loader(dataset, "train", global_batch_size=BATCH, columns=["x0", "x2", "h1"])))
    assert [column.name for column in some.schema.features] == ["x0", "x2", "h1"]
    assert torch.equal(some.numeric, everything.numeric[:, [0, 2]])
    assert some.categorical.shape == (BATCH, 0)
    assert torch.equal(some.labels["y"], everything.labels["y"])
    assert plain(some, "h1") == plain(everything, "h1")
    with pytest.raises(KeyError):
        some["x1"]


def test_the_last_step_keeps_its_size_and_a_share_may_be_empty(dataset: Dataset) -> None:
    rows = dataset.rows("train")
    loader = Loader(dataset, "train", global_batch_size=rows - 2, rank=0, world_size=3, row_numbers=True)
    batches = [batch.clone() for batch in loader]
    assert [batch.global_rows for batch in batches] == [rows - 2, 2]
    last = batches[-1]
    assert last.rows == 0 and last.numeric.shape == (0, 6) and plain(last, "h0") == []
    assert last.labels["y"].shape == (0,)


def test_the_next_iteration_is_the_next_epoch_and_a_left_one_goes_on(dataset: Dataset) -> None:
    loader = Loader(dataset, "validation", global_batch_size=BATCH, row_numbers=True)
    first = [batch["__row__"].tolist() for batch in loader]  # type: ignore[union-attr]
    assert loader.position == (1, 0)
    second = [batch["__row__"].tolist() for batch in loader]  # type: ignore[union-attr]
    assert (
        sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(dataset.rows("validation")))
    )
    assert first != second
    for batch in loader:
        if batch.step == 1:
            break
    assert loader.position == (2, 2 % len(loader)) or len(loader) == 2
    rest = [batch.step for batch in loader]
    assert rest == list(range(2, len(loader))) or len(loader) == 2


def test_a_batch_and_the_one_before_it_stay_valid(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, prefetch=1)
    previous: tuple[Batch, torch.Tensor] | None = None
    for batch in loader:
        if previous is not None:
            assert torch.equal(previous[0].numeric, previous[1])
        previous = (batch, batch.numeric.clone())


def test_buffers_are_used_again(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, prefetch=2)
    addresses = {batch.numeric.data_ptr() for epoch in range(2) for batch in loader}
    assert len(addresses) == 4


def test_small_batches_are_gathered_several_at_a_time_and_stay_valid_as_long(dataset: Dataset) -> None:
    """The same batches as one at a time, with the one before each untouched when it is taken."""
    for shuffle in (False, True):
        alone = Loader(dataset, "train", global_batch_size=7, shuffle=shuffle, row_numbers=True, prefetch=1)
        together = Loader(dataset, "train", global_batch_size=7, shuffle=shuffle, row_numbers=True, prefetch=12)
        together.seek(0, 3)
        expected = [batch.clone() for batch in alone][3:]
        before: Batch | None = None
        for batch, wanted in zip(together, expected, strict=True):
            for held, reference in ((batch, wanted), (before, expected[max(0, batch.step - 4)])):
                if held is not None:
                    assert all(map(torch.equal, held.tensors(), reference.tensors()))
            before = batch


def test_once_the_ring_exists_no_memory_of_a_batchs_size_is_allocated(tmp_path: Path) -> None:
    """What NumPy and Python allocate during a warm epoch; that outputs are a ring is tested above."""
    wide = make_dataset(tmp_path, rows=600, shards=4, splits=("train",), features=Features(500, 0))
    loader = Loader(wide, "train", global_batch_size=200)
    batch_bytes = 200 * 501 * 4
    for _ in range(2):
        list(loader)
    tracemalloc.start()
    try:
        for _ in loader:
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < batch_bytes / 4


@pytest.mark.parametrize("sorted_by", ["label", "time", "user"])
def test_batches_of_a_sorted_table_have_labels_as_random_samples_have(tmp_path: Path, sorted_by: str) -> None:
    """Chi-square of label counts a batch over 20 seeds: a random order passes at 1 % for nearly all of them."""
    rows, batch = 40_000, 500
    made = make_dataset(tmp_path, rows=rows, shards=32, splits=("train",), features=Features(2, 1))
    ids = np.asarray(made.read("train", ["id"])["id"])
    # Rows come to the scatter in the order of their id: sorted by label, drifting with time, or 50 to a user.
    users = np.random.default_rng(0).random(rows // 50 + 1) < 0.3
    labels = {
        "label": ids < 0.3 * rows,
        "time": np.random.default_rng(1).random(rows) < 0.6 * ids / rows,
        "user": users[ids // 50],
    }[sorted_by]
    entry, share = made.manifest.split("train"), labels.mean()
    passed = 0
    for seed in range(20):
        order = ShuffledEpoch(
            made.manifest.index.rows,
            batch,
            lanes=entry.lanes,
            window=2,
            digest=made.digest,
            split="train",
            seed=seed,
            epoch=0,
        ).canonical_rows(np.arange(rows))
        counts = labels[order].reshape(-1, batch).sum(axis=1)
        statistic = ((counts - batch * share) ** 2).sum() / (batch * share * (1 - share))
        freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
        p_value = torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64))
        passed += bool(p_value > 0.01)
    assert passed >= 18


def test_the_end_of_an_epoch_prefetches_the_start_of_the_next_one_if_there_is_one(tmp_path: Path) -> None:
    make_dataset(tmp_path, rows=6400, shards=64, splits=("train",), features=Features(1, 0))

    def at_hand_after_an_epoch(epochs: int | None) -> list[bool]:
        made = Dataset.open("made", root=tmp_path)
        loader = Loader(made, "train", global_batch_size=400, rank=0, world_size=4, epochs=epochs)
        list(loader)
        following = loader._orders(1).upcoming(range(1), 0, 4)
        if epochs is not None and epochs > 1:
            for shard in following:
                wait_until(functools.partial(made.source.at_hand, shard), 20, f"shard {shard}")
        return [made.source.at_hand(shard) for shard in following]

    assert all(at_hand_after_an_epoch(2))
    assert not all(at_hand_after_an_epoch(1))
    assert not all(at_hand_after_an_epoch(None))


def test_a_table_that_memory_drops_gives_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are closed, dropped from memory and read again as windows pass."""
    monkeypatch.setattr(ReadAhead, "needed", lambda self: True)
    make_dataset(tmp_path, rows=6400, shards=64, splits=("train",), features=Features(1, 0))
    made = Dataset.open("made", root=tmp_path)
    split = dataclasses.replace(made.manifest.splits[0], window=2)
    made = dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, splits=(split,)))
    loader = Loader(made, "train", global_batch_size=50, row_numbers=True)
    for _ in range(2):
        numbers = [number for batch in loader for number in batch["__row__"].tolist()]  # type: ignore[union-attr]
        assert sorted(numbers) == list(range(6400))
    assert sum(made.source.at_hand(shard) for shard in range(64)) == 64
    assert len(made.source._open) < 64


def test_state_goes_on_where_it_was(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, seed=5, row_numbers=True)
    expected = [batch["__row__"].tolist() for batch in loader]  # type: ignore[union-attr]
    loader.seek(0)
    for batch in loader:
        if batch.step == 6:
            state = loader.state_dict()
            break
    other = Loader(dataset, "train", global_batch_size=BATCH, seed=5, row_numbers=True)
    other.load_state_dict(state)
    assert [batch["__row__"].tolist() for batch in other] == expected[7:]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"digest": "0" * 64},
        {"seed": 6},
        {"global_batch_size": 32},
        {"split": "test"},
        {"shuffle": False},
    ],
)
def test_state_of_another_order_is_refused(dataset: Dataset, change: dict[str, Any]) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, seed=5)
    with pytest.raises(RequestError, match=str(next(iter(change.values())))):
        loader.load_state_dict({**loader.state_dict(), **change})


@pytest.mark.parametrize("change", [{"epoch": None}, {"step": 1.5}, {"step": 10**6}])
def test_state_of_no_place_is_refused(dataset: Dataset, change: dict[str, Any]) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH)
    with pytest.raises(RequestError, match=next(iter(change))):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(RequestError, match=r"wanted what state_dict\(\) gave"):
        loader.load_state_dict(None)  # type: ignore[arg-type]


def test_an_iteration_that_another_one_ended_is_not_taken_for_an_epoch(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(RequestError, match="over before its epoch"):
        list(first)
    assert len(list(second)) == len(loader) - 1
    assert list(second) == []
    loader.close()
    with pytest.raises(RequestError, match="this loader is closed"):
        iter(loader)


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "dev"},
        {"global_batch_size": 0},
        {"global_batch_size": "8"},
        {"global_batch_size": 1.5},
        {"prefetch": 0},
        {"seed": 0.5},
        {"rank": 2},
        {"rank": "0"},
        {"columns": ["nope"]},
        {"device": "foo"},
        {"device": 1.5},
    ],
)
def test_an_impossible_loader_is_refused(dataset: Dataset, wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"split": "train", "global_batch_size": BATCH, "world_size": 2, **wrong}
    with pytest.raises(RequestError, match=r"dev|global_batch_size=|prefetch=|seed=|rank 2 of 2|rank=|nope|device"):
        Loader(dataset, **arguments)


def test_seek_refuses_a_step_that_is_not_there(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH)
    with pytest.raises(RequestError, match=f"an epoch of 'train' has {len(loader)} steps"):
        loader.seek(0, len(loader) + 1)
    for place in ((-1, 0), (1.5, 0), (0, None), ("0", 0)):
        with pytest.raises(RequestError, match="wanted a whole number of at least 0"):
            loader.seek(*place)


def test_the_thread_ends_with_the_epoch_the_loop_and_the_loader(dataset: Dataset) -> None:
    wait_for_no_threads()
    loader = Loader(dataset, "train", global_batch_size=BATCH, prefetch=3)
    for _ in loader:
        pass
    wait_for_no_threads()
    for _ in loader:
        break
    wait_for_no_threads()
    iterator: Iterator[Batch] | None = iter(loader)
    assert iterator is not None and next(iterator).step == 1
    assert loader_threads()
    loader.close()
    wait_for_no_threads()
    with pytest.raises(RequestError, match="this iteration is over before its epoch"):
        next(iterator)
    iterator = iter(Loader(dataset, "train", global_batch_size=BATCH))
    next(iterator)
    iterator = None
    wait_for_no_threads()


def test_damage_surfaces_where_the_batch_is_taken(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=600, shards=3)
    blob = made.manifest.index.blob_name(1)
    file = tmp_path / blob_path(blob)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.unlink()
    file.write_bytes(raw)
    with pytest.raises(DamagedError, match=f"{blob}.arrow is damaged: .* Build the dataset again to repair it"):
        list(Loader(made, "train", global_batch_size=BATCH))
    wait_for_no_threads()
    file.unlink()
    with pytest.raises(DamagedError, match=f"{blob}.arrow is missing although the manifest names it"):
        list(Loader(Dataset.open("made", root=tmp_path), "train", global_batch_size=BATCH))


def test_a_file_that_changed_since_it_was_checked_is_checked_again_when_it_is_opened_again(tmp_path: Path) -> None:
    """What is mapped already is not looked at again: checks are once per file and process."""
    made = make_dataset(tmp_path, rows=600, shards=3)
    file = tmp_path / blob_path(made.manifest.index.blob_name(0))
    made.source.shard(0)
    changed_at = file.stat().st_mtime
    with file.open("r+b") as opened:
        opened.seek(300)
        byte = opened.read(1)
        opened.seek(300)
        opened.write(bytes([byte[0] ^ 1]))
    os.utime(file, (changed_at + 1, changed_at + 1))
    made.source.shard(0)
    with pytest.raises(DamagedError, match=f"{file.name} is damaged"):
        Dataset.open("made", root=tmp_path).source.shard(0)


def test_a_shard_with_other_rows_than_the_manifest_says_is_refused(dataset: Dataset) -> None:
    index = dataset.manifest.index
    longer = dataclasses.replace(index, rows=index.rows + 1)
    wrong = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, index=longer))
    with pytest.raises(DamagedError, match=f"has {index.rows[0]} rows; the manifest says {index.rows[0] + 1}"):
        wrong.source.shard(0)


def test_a_sequential_pass_counts_what_it_touched(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", global_batch_size=BATCH, shuffle=False, rank=0, world_size=1)
    next(iter(loader))
    first = loader.counters
    assert first.batches == 1 and first.rows == BATCH
    for _ in loader:
        pass
    counters = loader.counters
    where = dataset.manifest.shards("train")
    assert counters.shards_touched == 9
    assert counters.bytes_touched == int(dataset.manifest.index.size_bytes[where].sum())
    assert counters.rows == dataset.rows("train")


def test_a_dataset_travels_to_workers(dataset: Dataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    first = next(iter(Loader(copy, "train", global_batch_size=BATCH)))
    assert torch.equal(first.numeric, next(iter(Loader(dataset, "train", global_batch_size=BATCH))).numeric)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_is_refused(dataset: Dataset) -> None:
    with pytest.raises(RequestError, match="device 'cuda' is not usable here"):
        Loader(dataset, "train", global_batch_size=BATCH, device="cuda")
