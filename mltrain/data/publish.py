"""Making a dataset visible: blobs, manifest, provenance, pointer, in this order.

Each step is atomic, and nothing before the manifest can be seen. Builders that race for one dataset write the same
manifest: one creates it, the others find it there and adopt it.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pyarrow as pa

from mltrain.data.manifest import Manifest, canonical_json
from mltrain.data.shard import EncodedShard, blob_path
from mltrain.data.verify import is_intact
from mltrain.errors import BuildError, DamagedError, NotFoundError
from mltrain.progress import Progress
from mltrain.storage import ConflictError, Store
from mltrain.storage.lease import Lease, fence, read_holder
from mltrain.storage.parsing import parse_object

POINTER_VERSION = 1
COLLECTION = "shards/gc.json"
"""The lease of a collection of garbage."""
_POINTER_ATTEMPTS = 100
_CHECKS = 16
_POLL_S = 0.2
_BUILD_AGAIN = "build the dataset again to repair it"


def pointer_path(name: str) -> str:
    """Where the pointer to the current dataset of a name lies below the root."""
    return f"datasets/{name}.json"


def build_path(build_id: str) -> str:
    """Where the lease, then the provenance record, of a build lies below the root."""
    return f"builds/{build_id}.json"


class Build:
    """A builder's part in a root, from before its first shard until its dataset can be seen.

    It holds a lease, so that a collection of garbage and this build exclude each other.
    """

    def __init__(self, root: Store, name: str, build_id: str, lease: Lease) -> None:
        self._root, self._name, self._id, self._lease = root, name, build_id, lease

    @classmethod
    def start(cls, root: Store, name: str, build_id: str, progress: Progress = lambda line: None) -> Self:
        """Takes the lease, and comes back when no collection is under way.

        Args:
            root: where datasets lie.
            name: the dataset's name.
            build_id: this build.
            progress: told when there is something to wait for.
        """
        build = cls(root, name, build_id, Lease.acquire(root, build_path(build_id)))
        wait_for_collection(root, progress)
        return build

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()

    def publish(self, manifest: Manifest, blobs: Mapping[str, pa.Buffer], provenance: Mapping[str, Any]) -> Manifest:
        """Makes a dataset visible whose shards are all in storage, and points the name at it.

        Args:
            manifest: from :func:`mltrain.data.manifest.assemble`.
            blobs: likewise.
            provenance: plain data on the source (Delta table id, version), code and times; goes to
                ``builds/<id>.json``.

        Returns:
            The manifest in storage: this one, or an equal one that another builder had put there.

        Raises:
            BuildError: a shard is not there.
            LostError: this process was paused for so long that its lease was taken.
            StorageError: storage failed, or others moved the pointer a hundred times in between.
        """
        for path, buffer in blobs.items():
            self._root.put(path, memoryview(buffer))
        # Before the manifest: who dies in between leaves a record of nothing, not a dataset without a record.
        record = {**provenance, "id": self._id, "name": self._name, "digest": manifest.digest}
        self._lease.record(_sealed(record))
        self._check_shards(manifest)
        self._lease.check()
        stored = _put_manifest(self._root, manifest)
        move_pointer(self._root, self._name, manifest.digest, self._id)
        return stored

    def _check_shards(self, manifest: Manifest) -> None:
        """The last look before the manifest: every shard is there, with its length."""
        if absent := _absent_shards(self._root, manifest):
            raise BuildError(
                f"{len(absent)} shards are not in storage, among them {self._root.join(absent[0])}: they were deleted "
                "while this build was under way. Nothing was published; build again"
            )


def put_shard(root: Store, shard: EncodedShard) -> None:
    """Puts a shard where its content says.

    One that is there already is read, and replaced where its bytes are not what its name says: so building again
    repairs what is damaged. Reading it costs no more bytes than writing it would.
    """
    path, data = blob_path(shard.blob), memoryview(shard.buffer)
    if not root.exists(path) and root.put_if_absent(path, data):
        return
    if not is_intact(root, shard.blob, shard.size_bytes):
        root.put(path, data)


def wait_for_collection(root: Store, progress: Progress) -> None:
    """Returns when no collection of garbage is under way; the lease of one that died is taken from it."""
    said = False
    while (holder := read_holder(root, COLLECTION)[0]) is not None and not holder.released:
        if holder.gone(time.time()):
            with contextlib.suppress(ConflictError):  # another builder was faster
                fence(root, COLLECTION)
            continue
        if not said:
            progress(f"waiting for a collection of garbage by {holder.described}")
            said = True
        time.sleep(_POLL_S)


def move_pointer(root: Store, name: str, digest: str, build_id: str) -> None:
    """Points ``datasets/<name>.json`` at a dataset; of builders that race, the last one wins.

    Raises:
        ConflictError: others moved the pointer a hundred times in between.
    """
    path = pointer_path(name)
    pointer = {"format_version": POINTER_VERSION, "name": name, "digest": digest, "build": build_id}
    for attempt in range(_POINTER_ATTEMPTS):
        e_tag = root.get_with_tag(path)[1] if root.exists(path) else None
        try:
            root.put_if_match(path, canonical_json(_sealed(pointer)), e_tag)
            return
        except ConflictError:
            # Each conflict means that another builder got through, so this ends.
            if attempt == _POINTER_ATTEMPTS - 1:
                raise


def read_manifest(root: Store, path: str) -> Manifest:
    """Reads and checks a manifest and its index.

    Raises:
        NotFoundError: there is no manifest.
        DamagedError: manifest or index does not match its checksum or is another dataset's, or the index is missing.
    """
    where = root.join(path)

    def read_blob(blob: str) -> bytes:
        try:
            return root.get(blob)
        except NotFoundError as error:
            raise DamagedError(f"{root.join(blob)} is missing although {where} names it; {_BUILD_AGAIN}") from error

    manifest = Manifest.from_bytes(root.get(path), read_blob, where)
    if manifest.path != path:
        raise DamagedError(f"{where} is the manifest of another dataset, {manifest.digest}; {_BUILD_AGAIN}")
    return manifest


def read_pointer(root: Store, name: str) -> dict[str, Any]:
    """The pointer of a name.

    Raises:
        NotFoundError: no dataset has this name.
        DamagedError: not a pointer, or that of another name.
    """
    pointer = _read_sealed(root, pointer_path(name))
    if not {"digest", "build"} <= pointer.keys() or pointer.get("name") != name:
        raise DamagedError(f"{root.join(pointer_path(name))} does not name this dataset; {_BUILD_AGAIN}")
    return pointer


def read_record(root: Store, build_id: str) -> dict[str, Any]:
    """What a build wrote of itself, without its lease; empty while it has not come so far.

    Raises:
        NotFoundError: there was no such build.
        DamagedError: the record is not what was written.
    """
    return _read_sealed(root, build_path(build_id))


def _sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with its own checksum in it."""
    return {**content, "checksum": _checksum(content)}


def _read_sealed(root: Store, path: str) -> dict[str, Any]:
    """What :func:`_sealed` made, checked; a lease beside it is left out.

    Raises:
        NotFoundError: there is no such object.
        DamagedError: it is something else.
    """
    where = root.join(path)
    try:
        content = parse_object(root.get(path))
    except ValueError as error:
        raise DamagedError(f"{where} is damaged: {error}; {_BUILD_AGAIN}") from error
    content.pop("lease", None)
    stated = content.pop("checksum", None)
    if content and stated != _checksum(content):
        raise DamagedError(f"{where} is damaged: its content does not hash to its checksum; {_BUILD_AGAIN}")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _put_manifest(root: Store, manifest: Manifest) -> Manifest:
    content = manifest.to_bytes()
    if root.put_if_absent(manifest.path, content):
        return manifest
    try:
        stored = read_manifest(root, manifest.path)
        # Equal rows in other files, from another version of Arrow: of use only while those files are there.
        if stored.to_bytes() == content or not _absent_shards(root, stored):
            return stored
    except DamagedError:
        pass  # what follows repairs it
    root.put(manifest.path, content)
    return manifest


def _absent_shards(root: Store, manifest: Manifest) -> list[str]:
    """Paths of shards that are not in storage, or not in their length."""

    def missing(shard: int) -> str | None:
        path = blob_path(manifest.index.blob_name(shard))
        meta = root.head(path)
        return None if meta and meta.size_bytes == manifest.index.size_bytes[shard] else path

    with ThreadPoolExecutor(_CHECKS) as pool:
        return [path for path in pool.map(missing, range(len(manifest.index))) if path]
