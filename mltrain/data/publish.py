"""Making a dataset visible: blobs, manifest, provenance, pointer, in this order.

Each step is atomic, and nothing before the manifest can be seen. Builders that race for one dataset write the same
manifest: one creates it, the others find it there and adopt it.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mltrain.data.manifest import Manifest, canonical_json
from mltrain.errors import DamagedError
from mltrain.storage import ConflictError, Store

POINTER_VERSION = 1
_POINTER_ATTEMPTS = 100


def pointer_path(name: str) -> str:
    """Where the pointer to the current dataset of a name lies below the root."""
    return f"datasets/{name}.json"


def build_path(build_id: str) -> str:
    """Where the lease, then the provenance record, of a build lies below the root."""
    return f"builds/{build_id}.json"


def publish(
    root: Store,
    manifest: Manifest,
    blobs: Mapping[str, pa.Buffer],
    *,
    name: str,
    build_id: str,
    provenance: Mapping[str, Any],
) -> Manifest:
    """Publishes a dataset whose shards are all in storage.

    Args:
        root: the store.
        manifest: from :func:`mltrain.data.manifest.assemble`.
        blobs: likewise.
        name: the dataset's name; its pointer moves to this dataset.
        build_id: this build.
        provenance: plain data on the source (Delta table id, version), code and times; goes to ``builds/<id>.json``.

    Returns:
        The manifest in storage: this one, or an equal one that another builder had put there.

    Raises:
        StorageError: storage failed, or others moved the pointer a hundred times in between.
    """
    for path, buffer in blobs.items():
        root.put(path, memoryview(buffer))
    stored = _put_manifest(root, manifest)
    record = {**provenance, "id": build_id, "name": name, "digest": manifest.digest}
    root.put(build_path(build_id), canonical_json(record))
    move_pointer(root, name, manifest.digest, build_id)
    return stored


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
