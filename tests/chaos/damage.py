"""Flipped bytes and truncations of everything that a dataset consists of, read in every way that people read it."""

import random
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mltrain.data import Dataset, Loader, NodeCache
from mltrain.data.garbage import collect
from mltrain.data.publish import build_path, pointer_path
from mltrain.data.shard import blob_path
from mltrain.errors import DamagedError
from mltrain.storage import open_store
from mltrain.transforms.vocabulary import INLINE_LIMIT, Vocabulary
from tests.chaos.result import Result
from tests.support import s3
from tests.support.datasets import Features, make_dataset

BATCH = 64
FEATURES = Features(numeric=3, categorical=2, vectors=1, ragged=1, weight=True, keep=True)
READERS = {
    "shard": ("load", "read", "to_pandas", "verify"),
    "index": ("open", "open_digest", "collect"),
    "manifest": ("open", "open_digest", "collect"),
    "statistics": ("verify",),
    "vocabulary": ("verify", "vocabulary"),
    "pointer": ("open", "collect_unnamed"),
    "record": ("provenance", "summary"),
}
"""What can be damaged, and who reads it."""
_WEIGHTS = (10, 3, 4, 2, 1, 2, 2)


@dataclass
class Place:
    """A dataset in a root, and the directory in which its objects are files."""

    root: str
    files: Path
    caches: Path
    dataset: Dataset
    rows: pa.Table
    batches: list[np.ndarray[Any, Any]]

    def open(self, reference: str = "made") -> Dataset:
        """Opens it with an empty cache."""
        return Dataset.open(reference, root=self.root, cache=NodeCache(self.caches / uuid.uuid4().hex))

    def object(self, kind: str, rng: random.Random) -> str:
        """The path of an object of this kind."""
        manifest = self.dataset.manifest
        if kind == "shard":
            return blob_path(manifest.index.blob_name(rng.randrange(manifest.split("train").shards)))
        return {
            "index": blob_path(manifest.index_blob.name),
            "manifest": manifest.path,
            "statistics": blob_path(manifest.statistics_blob.name),
            "vocabulary": blob_path(manifest.transforms["vocabularies"]["item"]["blob"]),
            "pointer": pointer_path("made"),
            "record": build_path(self.dataset.build or ""),
        }[kind]


def run(count: int, seed: int, folder: Path) -> Result:
    """Damages one object a case and expects the first read to name it; of two that are made, one lies behind S3."""
    result = Result("damage", seed)
    with s3.serve(folder / "s3") as server, s3.environment(server):
        bucket = server.bucket()
        local = _place(str(folder / "local"), folder / "local", folder / "caches")
        remote = _place(bucket, server.local(bucket), folder / "caches")
        for case in range(seed, seed + count):
            with result.case(case):
                rng = random.Random(case)
                place = rng.choice([local, local, remote])
                if place is remote and rng.random() < 0.3:
                    _damage_in_the_cache(place, rng, result)
                else:
                    _damage_in_storage(place, rng, result)
            shutil.rmtree(folder / "caches", ignore_errors=True)
    return result


def _place(root: str, files: Path, caches: Path) -> Place:
    made = _make(root)
    return Place(root, files, caches, made, made.read("train"), list(_batches(made)))


def _make(root: str) -> Dataset:
    blobs: dict[str, bytes] = {}
    large = Vocabulary(pa.array([f"item {i}" for i in range(INLINE_LIMIT + 1)])).to_json(blobs)
    for name, content in blobs.items():
        open_store(root).put(blob_path(name), content)
    return make_dataset(root, rows=900, shards=5, features=FEATURES, transforms={"vocabularies": {"item": large}})


def _batches(dataset: Dataset) -> Any:
    for batch in Loader(dataset, "train", global_batch_size=BATCH, seed=3):
        yield np.concatenate([batch.numeric.numpy().copy().reshape(-1), batch.labels["y"].numpy().copy()])


def _damage_in_storage(place: Place, rng: random.Random, result: Result) -> None:
    kind = rng.choices(list(READERS), _WEIGHTS)[0]
    path, reader = place.object(kind, rng), rng.choice(READERS[kind])
    file = place.files / path
    whole = file.read_bytes()
    how = _damage(file, whole, rng)
    try:
        found = _seen(place, reader, path)
        where = "S3" if "://" in place.root else "local"
        if not found and kind == "vocabulary":
            # Of padding between Arrow's buffers nothing depends; the terms have a hash of their own.
            result.counts["vocabulary: bytes that nothing reads, terms right"] += 1
            return
        assert found, f"{how} of {path}: unseen by {reader}"
        result.counts[f"{kind}: {how.split()[0]}, named by the first read"] += 1
        result.counts[f"… in {where}"] += 1
        if kind in ("shard", "index", "manifest", "statistics", "pointer") and rng.random() < 0.2:
            _make(place.root)
            place.dataset = place.open()
            assert place.dataset.verify().ok, f"{how} of {path}: building again did not repair it"
            whole = file.read_bytes()  # a pointer names the new build
            result.counts["… repaired by building again"] += 1
    finally:
        file.write_bytes(whole)


def _damage(file: Path, whole: bytes, rng: random.Random) -> str:
    """Changes the file in place; says how."""
    if rng.random() < 0.7:
        where, change = rng.randrange(len(whole)), rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        file.write_bytes(whole[:where] + bytes([whole[where] ^ change]) + whole[where + 1 :])
        return f"flip at {where} by {change}"
    length = rng.choice([0, len(whole) - 1, rng.randrange(len(whole))])
    file.write_bytes(whole[:length])
    return f"truncation to {length}"


def _seen(place: Place, reader: str, path: str) -> bool:
    """Whether a reader was told of the damage, by the object's name."""
    if reader == "verify":
        return path in place.open().verify().damaged
    try:
        _READ[reader](place)
    except DamagedError as error:
        name = path.rsplit("/", 1)[-1].removesuffix(".arrow")
        if name not in str(error):
            raise AssertionError(f"{path} is not named: {error}") from error
        return True
    return False


def _load(place: Place) -> None:
    """Every batch before the error is right."""
    for number, batch in enumerate(_batches(place.open())):
        assert np.array_equal(batch, place.batches[number]), f"batch {number} is wrong"


def _read(place: Place) -> None:
    assert place.open().read("train").equals(place.rows), "wrong rows were read"


def _vocabulary(place: Place) -> None:
    stored = place.dataset.transforms["vocabularies"]["item"]
    found = Vocabulary.from_json(stored, lambda name: place.dataset.store.get(blob_path(name)))
    assert found.terms.to_pylist() == [f"item {i}" for i in range(INLINE_LIMIT + 1)], "wrong terms"


_READ: dict[str, Callable[[Place], object]] = {
    "open": lambda place: place.open(),
    "open_digest": lambda place: place.open(place.dataset.digest),
    "load": _load,
    "read": _read,
    "to_pandas": lambda place: place.open().to_pandas("train"),
    "collect": lambda place: collect(open_store(place.root), grace_s=0, dry_run=True),
    "collect_unnamed": lambda place: collect(open_store(place.root), grace_s=0, unnamed=True, dry_run=True),
    "provenance": lambda place: place.open().provenance,
    "summary": lambda place: place.open().summary(),
    "vocabulary": _vocabulary,
}


def _damage_in_the_cache(place: Place, rng: random.Random, result: Result) -> None:
    """Damage on the node's disk is mended from storage."""
    cache = NodeCache(place.caches / uuid.uuid4().hex)
    Dataset.open("made", root=place.root, cache=cache).read("train")
    file = rng.choice(sorted(cache.path.glob("??/*.arrow")))
    whole = file.read_bytes()
    how = _damage(file, whole, rng)
    assert Dataset.open("made", root=place.root, cache=cache).read("train").equals(place.rows), how
    assert file.read_bytes() == whole, f"{how} stays in the cache"
    result.counts[f"cached shard: {how.split()[0]}, mended from storage"] += 1
