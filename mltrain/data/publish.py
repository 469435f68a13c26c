"""Making a dataset visible: blobs, manifest, provenance, pointer, in this order.

Each step is atomic, and nothing before the manifest can be seen. Builders that race for one dataset write the same
manifest: one creates it, the others find it there and adopt it.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pyarrow as pa

from mltrain.data.manifest import Manifest, canonical_json
from mltrain.data.shard import blob_path
from mltrain.errors import BuildError, DamagedError
from mltrain.progress import Progress
from mltrain.storage import ConflictError, Store
from mltrain.storage.lease import Lease, fence, read_holder

POINTER_VERSION = 1
COLLECTION = "shards/gc.json"
"""The lease of a collection of garbage."""
_POINTER_ATTEMPTS = 100
_CHECKS = 16
_POLL_S = 0.2


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
        self._lease.record({**provenance, "id": self._id, "name": self._name, "digest": manifest.digest})
        self._check_shards(manifest)
        self._lease.check()
        stored = _put_manifest(self._root, manifest)
        move_pointer(self._root, self._name, manifest.digest, self._id)
        return stored

    def _check_shards(self, manifest: Manifest) -> None:
        """The last look before the manifest: every shard is there, with its length."""

        def missing(shard: int) -> str | None:
            path = blob_path(manifest.index.blob_name(shard))
            meta = self._root.head(path)
            return None if meta and meta.size_bytes == manifest.index.size_bytes[shard] else path

        with ThreadPoolExecutor(_CHECKS) as pool:
            absent = [path for path in pool.map(missing, range(len(manifest.index))) if path]
        if absent:
            raise BuildError(
                f"{len(absent)} shards are not in storage, among them {self._root.join(absent[0])}: they were deleted "
                "while this build was under way. Nothing was published; build again"
            )


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
            root.put_if_match(path, canonical_json(pointer), e_tag)
            return
        except ConflictError:
            # Each conflict means that another builder got through, so this ends.
            if attempt == _POINTER_ATTEMPTS - 1:
                raise


def read_manifest(root: Store, path: str) -> Manifest:
    """Reads and checks a manifest and its index.

    Raises:
        NotFoundError: there is none.
        DamagedError: manifest or index does not match its checksum.
    """
    return Manifest.from_bytes(root.get(path), root.get, root.join(path))


def read_pointer(root: Store, name: str) -> dict[str, Any]:
    """The pointer of a name.

    Raises:
        NotFoundError: no dataset has this name.
        DamagedError: not a pointer.
    """
    path = pointer_path(name)
    try:
        pointer = json.loads(root.get(path))
    except ValueError as error:
        raise DamagedError(f"{root.join(path)} is not JSON: {error}; build the dataset again to repair it") from error
    if not isinstance(pointer, dict) or not {"digest", "build"} <= pointer.keys():
        raise DamagedError(f"{root.join(path)} does not name a dataset; build the dataset again to repair it")
    return pointer


def _put_manifest(root: Store, manifest: Manifest) -> Manifest:
    content = manifest.to_bytes()
    if root.put_if_absent(manifest.path, content):
        return manifest
    try:
        return read_manifest(root, manifest.path)
    except DamagedError:
        root.put(manifest.path, content)
        return manifest
