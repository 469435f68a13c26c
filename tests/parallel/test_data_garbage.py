"""Collecting garbage beside builders: what nothing reaches goes, what anybody reaches or may still reach stays."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mltrain.data import Build, Dataset, assemble
from mltrain.data.garbage import blobs_of, collect
from mltrain.data.shard import blob_path
from mltrain.errors import BuildError, DamagedError, NotFoundError, StorageError
from mltrain.storage import Store, open_store
from mltrain.storage.lease import EXPIRES_S, LostError
from tests.chaos.garbage import SCHEMA, build, store_shards


def _blobs(store: Store) -> set[str]:
    return {meta.path for meta in store.list("shards/blobs")}


def test_only_what_no_dataset_reaches_is_removed_and_only_after_its_grace(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    build(store, "kept", [1, 2], "kept-1")
    reached = _blobs(store)
    store_shards(store, [2, 3])  # a builder that died
    loose = _blobs(store) - reached
    young = collect(store, grace_s=3600)
    assert young.removed == () and young.young == len(loose) == 1
    looked = collect(store, grace_s=0, dry_run=True)
    assert set(looked.removed) == loose and _blobs(store) == reached | loose
    assert set(collect(store, grace_s=0).removed) == loose
    assert _blobs(store) == reached and Dataset.open("kept", root=tmp_path).verify().ok


def test_what_killed_writers_left_on_a_disk_goes_when_it_is_old(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    build(store, "kept", [1], "kept-1")
    old, young = (tmp_path / "shards/blobs" / f".mltrain-{digit * 32}" for digit in "ab")
    for leftover in (old, young):
        leftover.write_bytes(b"half of a shard")
    os.utime(old, (time.time() - 2 * 3600,) * 2)
    collect(store, grace_s=0, dry_run=True)
    assert old.exists()
    collect(store, grace_s=0)
    assert (old.exists(), young.exists()) == (False, True)
    assert (tmp_path / "builds/.mltrain-lock").exists() and Dataset.open("kept", root=tmp_path).verify().ok


def test_datasets_go_only_when_asked_and_when_neither_a_name_nor_a_run_mentions_them(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    digests = [build(store, "adult", [number], f"adult-{number}") for number in range(3)]
    store.put("runs/r1/config.yaml", f"dataset: adult@{digests[0]}\n".encode())
    collect(store, grace_s=0)
    assert all(store.exists(f"shards/{digest}/manifest.json") for digest in digests)
    collect(store, grace_s=0, unnamed=True)
    assert [store.exists(f"shards/{digest}/manifest.json") for digest in digests] == [True, False, True]
    assert all(Dataset.open(f"adult@{digest}", root=tmp_path).verify().ok for digest in (digests[0], digests[2]))
    assert len(_blobs(store)) == len(set(_reached(store, digests[0])) | set(_reached(store, digests[2])))


def _reached(store: Store, digest: str) -> Iterator[str]:
    return blobs_of(Dataset.open(digest, root=store.uri).manifest)


def test_a_root_without_datasets_is_refused_and_nothing_is_made_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="right root"):
        collect(open_store(tmp_path / "mistyped"))
    assert not (tmp_path / "mistyped").exists()


def test_a_damaged_manifest_stops_the_collection_before_it_removes_anything(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    digest = build(store, "adult", [1], "adult-1")
    store_shards(store, [2])
    before = _blobs(store)
    path = f"shards/{digest}/manifest.json"
    store.put(path, store.get(path)[:-9])
    with pytest.raises(DamagedError, match=digest):
        collect(store, grace_s=0)
    assert _blobs(store) == before


def test_every_name_and_run_whose_manifest_is_lost_or_damaged_is_named_and_nothing_is_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    names = ("lost", "cut", "pointless", "run", "checkpointed")
    digests = {name: build(store, name, [number], f"{name}-1") for number, name in enumerate(names)}
    for name in ("run", "checkpointed"):
        store.delete(f"datasets/{name}.json")
    store.put("runs/r1/config.yaml", f"dataset: run@{digests['run']}\n".encode())
    store.put("runs/r2/checkpoints/step-1/manifest.json", f'{{"dataset_digest": "{digests["checkpointed"]}"}}'.encode())
    for name in ("lost", "run", "checkpointed"):
        store.delete(f"shards/{digests[name]}/manifest.json")
    cut = f"shards/{digests['cut']}/manifest.json"
    store.put(cut, store.get(cut)[:-9])
    store.put("datasets/pointless.json", b"{")
    before = {meta.path for meta in store.list("shards")}
    for unnamed in (False, True):
        with pytest.raises(DamagedError) as caught:
            collect(store, grace_s=0, unnamed=unnamed)
        message = str(caught.value)
        assert {meta.path for meta in store.list("shards")} - {"shards/gc.json"} == before
        wanted = (
            "datasets/lost.json",
            digests["lost"],
            cut,
            "datasets/cut.json",
            "datasets/pointless.json",
            "runs/r1 ",
            "runs/r2 ",
        )
        assert [part for part in wanted if part not in message] == []


def test_a_run_on_a_dataset_of_another_root_keeps_nothing_here(tmp_path: Path) -> None:
    store, other = open_store(tmp_path / "here"), open_store(tmp_path / "there")
    build(store, "adult", [1], "adult-1")
    digest = build(other, "adult", [2], "adult-2")
    store.put("runs/r1/config.yaml", f"dataset: {other.join(f'shards/{digest}')}\n".encode())
    store.put("runs/r1/checkpoints/step-1/manifest.json", f'{{"dataset_digest": "{digest}"}}'.encode())
    assert collect(store, grace_s=0).removed == ()


def test_nothing_is_removed_beside_a_living_builder(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store_shards(store, [1])
    with Build.start(store, "adult", "adult-1"), pytest.raises(BuildError, match="a build is under way"):
        collect(store, grace_s=0)
    assert len(collect(store, grace_s=0).removed) == 2


def _is_empty(file: Path) -> None:
    file.write_text("{}")


def _lacks_its_lease(file: Path) -> None:
    file.write_text(file.read_text().replace("checksum", "chequesum"))


def _is_a_directory(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def _is_a_loop_of_links(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(file)


@pytest.mark.parametrize(
    ("path", "damage"),
    [("builds/kept-1.json", damage) for damage in (_is_empty, _lacks_its_lease, _is_a_directory)]
    + [("shards/gc.json", _is_empty)]
    + [(path, what) for path in ("datasets/kept.json", "MANIFEST") for what in (_is_a_directory, _is_a_loop_of_links)],
)
def test_what_cannot_be_read_is_not_taken_for_nothing(
    tmp_path: Path, path: str, damage: Callable[[Path], None]
) -> None:
    store = open_store(tmp_path)
    digest = build(store, "kept", [1], "kept-1")
    path = path.replace("MANIFEST", f"shards/{digest}/manifest.json")
    damage(tmp_path / path)
    before = _blobs(store)
    with pytest.raises((DamagedError, StorageError), match=re.escape(path)):
        collect(store, grace_s=0, unnamed=True)
    assert _blobs(store) == before


def test_leases_of_builds_that_came_to_nothing_go_after_their_grace(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    build(store, "adult", [1], "adult-1")
    with Build.start(store, "adult", "adult-refused"):
        pass
    assert (collect(store, grace_s=3600).removed, store.exists("builds/adult-refused.json")) == ((), True)
    assert collect(store, grace_s=0).removed == ("builds/adult-refused.json",)
    assert Dataset.open("adult", root=tmp_path).provenance["id"] == "adult-1"


def test_a_builder_whose_lease_was_taken_while_it_was_paused_publishes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with Build.start(store, "adult", "adult-1") as builder:
        manifest, blobs = assemble(SCHEMA, {}, ("train",), store_shards(store, [1, 2]))
        lease = json.loads(store.get("builds/adult-1.json"))
        lease["lease"]["renewed"] = time.time() - EXPIRES_S - 1
        store.put("builds/adult-1.json", json.dumps(lease).encode())
        assert len(collect(store, grace_s=0).removed) == 2
        with pytest.raises(LostError):
            builder.publish(manifest, blobs, {})
    with pytest.raises(NotFoundError):
        Dataset.open("adult", root=tmp_path)


def test_a_shard_that_is_not_in_storage_stops_the_manifest(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with Build.start(store, "adult", "adult-1") as builder:
        entries = store_shards(store, [1, 2])
        store.delete(blob_path(entries[1].blob))
        with pytest.raises(BuildError, match=entries[1].blob):
            builder.publish(*assemble(SCHEMA, {}, ("train",), entries), {})
    assert not [meta for meta in store.list("shards") if meta.path.endswith("manifest.json")]
