"""Reading a whole dataset again and hashing all of it."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import xxhash

from mltrain.data import keys
from mltrain.data.manifest import Manifest, ShardEntry, SplitEntry, compute_digest
from mltrain.data.schema import Schema
from mltrain.data.shard import Shard, blob_path, checksum, content_digest, open_shard
from mltrain.errors import DamagedError, NotFoundError
from mltrain.progress import Passing
from mltrain.storage import Store
from mltrain.transforms.vocabulary import Vocabulary

_PART_BYTES = 8 << 20
_READERS = 8
_TOLD_EVERY_S = 1.0


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What a verification saw.

    Attributes:
        digest: the dataset.
        shards: shards read.
        rows: rows in those that are whole.
        size_bytes: bytes that were hashed.
        damaged: object to what is wrong with it; empty when all is well.
    """

    digest: str
    shards: int
    rows: int
    size_bytes: int
    damaged: dict[str, str]

    @property
    def ok(self) -> bool:
        """Nothing is damaged."""
        return not self.damaged


def verify(store: Store, manifest: Manifest, progress: Callable[[str], None] | None = None) -> VerifyReport:
    """Checks digest, shards (length, checksum, content, rows, keys), vocabularies, and counts and hashes of splits.

    Args:
        store: the dataset's root.
        manifest: the dataset.
        progress: told what was done so far, once a second.
    """
    damaged: dict[str, str] = {}
    if compute_digest(manifest.schema, manifest.transforms, manifest.splits, manifest.index) != manifest.digest:
        damaged[manifest.path] = "its content does not hash to its digest"
    _check_blob(store, manifest.statistics_blob.name, damaged)
    _check_vocabularies(store, manifest, damaged)
    rows = size_bytes = 0
    told = time.monotonic()
    # A file without a name: nothing of it stays if this process is killed.
    with tempfile.TemporaryFile(prefix="mltrain-verify-") as file:
        scratch = Path(f"/proc/self/fd/{file.fileno()}")
        for number, entry in enumerate(manifest.entries()):
            fault = _fault(store, manifest.schema, entry, scratch)
            size_bytes += entry.size_bytes
            if fault is None:
                rows += entry.rows
            else:
                damaged[blob_path(entry.blob)] = fault
            done = number + 1 == len(manifest.index)
            if progress is not None and (done or time.monotonic() - told >= _TOLD_EVERY_S):
                told = time.monotonic()
                progress(Passing(f"{number + 1} of {len(manifest.index)} shards, {len(damaged)} damaged"))
    for split in manifest.splits:
        fault = _split_fault(manifest, split)
        if fault is not None:
            damaged[f"{manifest.path} ({split.name})"] = fault
    return VerifyReport(manifest.digest, len(manifest.index), rows, size_bytes, damaged)


def is_intact(store: Store, blob: str, size_bytes: int) -> bool:
    """Whether a shard, index or statistics blob is in storage, in its length and with the bytes that its name says."""
    path, hasher = blob_path(blob), xxhash.xxh3_128()
    meta = store.head(path)
    if meta is None or meta.size_bytes != size_bytes:
        return False
    try:
        for start in range(0, size_bytes, _PART_BYTES):
            hasher.update(store.get_range(path, start, min(_PART_BYTES, size_bytes - start)))
    except NotFoundError:
        return False  # removed since
    return hasher.hexdigest() == blob


def all_intact(store: Store, manifest: Manifest) -> bool:
    """Whether everything that a manifest names is in storage with the bytes that its name says; reads all of it."""
    blobs = {entry.blob: entry.size_bytes for entry in manifest.entries()}
    for blob in (manifest.index_blob, manifest.statistics_blob):
        blobs[blob.name] = blob.size_bytes
    with ThreadPoolExecutor(_READERS) as pool:
        whole = all(pool.map(lambda item: is_intact(store, *item), blobs.items()))
    damaged: dict[str, str] = {}
    _check_vocabularies(store, manifest, damaged)
    return whole and not damaged


def _fault(store: Store, schema: Schema, entry: ShardEntry, scratch: Path) -> str | None:
    """What is wrong with a shard in storage."""
    path = blob_path(entry.blob)
    try:
        store.download(path, scratch)
        shard = open_shard(scratch, schema, blob=entry.blob, size_bytes=entry.size_bytes)
    except NotFoundError:
        return "missing"
    except DamagedError as error:
        return str(error).replace(str(scratch), path)
    return _content_fault(shard, schema, entry)


def _content_fault(shard: Shard, schema: Schema, entry: ShardEntry) -> str | None:
    if shard.rows != entry.rows:
        return f"has {shard.rows} rows; the manifest says {entry.rows}"
    if content_digest(shard.batch, schema) != entry.digest:
        return "its content does not hash to the digest that the manifest says"
    if not schema.key:
        return None
    found = keys.multiset(pa.table({name: shard.carried(name) for name in schema.key}))
    return None if found == entry.multiset else "its keys do not hash to the multiset that the manifest says"


def _split_fault(manifest: Manifest, split: SplitEntry) -> str | None:
    where = manifest.shards(split.name)
    entries = [manifest.entry(number) for number in range(where.start, where.stop)]
    rows = sum(entry.rows for entry in entries)
    if rows != split.rows:
        return f"its shards have {rows} rows; the split says {split.rows}"
    if keys.add_multisets(*(entry.multiset for entry in entries)) != split.multiset:
        return "the multiset hashes of its shards do not add up to the split's"
    return None


def _check_vocabularies(store: Store, manifest: Manifest, damaged: dict[str, str]) -> None:
    """Large vocabularies lie beside the manifest: without them no model of the dataset can be served."""
    for stored in manifest.transforms.get("vocabularies", {}).values():
        try:
            Vocabulary.from_json(stored, lambda name: store.get(blob_path(name)))
        except NotFoundError:
            damaged[blob_path(stored["blob"])] = "missing"
        except DamagedError as error:
            damaged[blob_path(stored["blob"])] = str(error)


def _check_blob(store: Store, name: str, damaged: dict[str, str]) -> None:
    try:
        found = checksum(store.get(blob_path(name)))
    except NotFoundError:
        damaged[blob_path(name)] = "missing"
        return
    if found != name:
        damaged[blob_path(name)] = f"hashes to {found}"
