"""Removing what nothing reaches any more, while others build.

Builders and collectors exclude each other by leases in storage, each side taking its own before it looks at the other's
(as in Dekker's mutual exclusion; reads see the last write): a builder takes ``builds/<id>.json`` and then waits for the
end of a collection; a collector takes ``shards/gc.json`` and then deletes nothing beside a living builder. So what a
builder finds in storage and reuses stays there until its manifest reaches it. The lease of a dead builder is taken from
it, so that it cannot go on if it was only paused; and a builder looks at all of its shards once more before it puts the
manifest.
"""

import dataclasses
import re
import time
from collections.abc import Iterator

from mltrain.data.manifest import Manifest
from mltrain.data.publish import COLLECTION, read_manifest, read_pointer
from mltrain.data.shard import blob_path
from mltrain.errors import BuildError, DamagedError, NotFoundError
from mltrain.progress import Passing, Progress
from mltrain.storage import Store
from mltrain.storage.lease import HeldError, Lease, fence, read_holder

DEFAULT_GRACE_S = 24 * 3600.0
# Whoever writes one object for longer than this has died: others than builders may be writing now.
_LONGEST_WRITE_S = 3600.0
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Collected:
    """What a collection did, or would do.

    Attributes:
        removed: paths below the root.
        removed_bytes: their size together.
        kept: objects that something reaches.
        young: objects that nothing reaches and that are within their grace period.
        dry_run: nothing was removed.
    """

    removed: tuple[str, ...]
    removed_bytes: int
    kept: int
    young: int
    dry_run: bool


def collect(
    root: Store,
    *,
    grace_s: float = DEFAULT_GRACE_S,
    unnamed: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda line: None,
) -> Collected:
    """Removes shards and vocabularies that no dataset reaches.

    Args:
        root: where datasets lie.
        grace_s: what was written less than this ago stays.
        unnamed: also remove datasets that no name points at and no run or sweep mentions.
        dry_run: only say what would be removed.
        progress: told what is being done.

    Raises:
        NotFoundError: there are no datasets.
        BuildError: a build or another collection is under way.
        DamagedError: a manifest is damaged, so that what it reaches is not known.
    """
    if next(root.list("shards"), None) is None:
        raise NotFoundError(f"there are no datasets below {root.uri}; is it the right root?")
    root.check_writable()
    try:
        lease = Lease.acquire(root, COLLECTION)
    except HeldError as error:
        raise BuildError(f"another collection is under way: {error}; run this again when it has ended") from error
    try:
        _fence_builders(root)
        progress("reading manifests")
        garbage, kept, young = _mark(root, _now(root), grace_s, unnamed)
        for number, path in enumerate(garbage):
            if not dry_run:
                lease.check()
                root.delete(path)
                progress(Passing(f"removed {number + 1} of {len(garbage)} objects"))
        if not dry_run:
            root.remove_leftovers(max(grace_s, _LONGEST_WRITE_S))
        return Collected(tuple(garbage), sum(garbage.values()), kept, young, dry_run)
    finally:
        lease.release()


def _fence_builders(root: Store) -> None:
    """Refuses to go on beside a living builder; takes the leases of dead ones, which then cannot publish."""
    for meta in root.list("builds"):
        holder, _ = read_holder(root, meta.path)
        if holder is None or holder.released:
            continue
        if not holder.gone(time.time()):
            raise BuildError(f"a build is under way: {meta.path}, {holder.described}; run this again when it has ended")
        fence(root, meta.path)


def _now(root: Store) -> float:
    """The time by storage's clock, by which the age of objects is told."""
    meta = root.head(COLLECTION)
    return meta.modified.timestamp() if meta else time.time()


def _mark(root: Store, now: float, grace_s: float, unnamed: bool) -> tuple[dict[str, int], int, int]:
    """Paths and sizes of garbage, manifests first; how many objects are reached; how many are too young."""
    stored = {meta.path: meta for meta in root.list("shards") if meta.path != COLLECTION}
    old = {path for path, meta in stored.items() if meta.modified.timestamp() <= now - grace_s}
    digests = {path.split("/")[1] for path in stored if path.endswith("/manifest.json")}
    doomed = {d for d in digests - _mentioned(root) if f"shards/{d}/manifest.json" in old} if unnamed else set()
    reached: set[str] = set()
    for digest in sorted(digests - doomed):
        reached.update(_reached(root, digest))
    loose = [path for path in stored if path not in reached]
    garbage = sorted((path for path in loose if path in old), key=lambda path: (not path.endswith(".json"), path))
    return {path: stored[path].size_bytes for path in garbage}, len(stored) - len(loose), len(loose) - len(garbage)


def _reached(root: Store, digest: str) -> Iterator[str]:
    """What a dataset consists of."""
    path = f"shards/{digest}/manifest.json"
    try:
        manifest = read_manifest(root, path)
    except NotFoundError as error:
        raise DamagedError(f"{root.join(path)} lacks a part: {error}; build the dataset again, then collect") from error
    yield path
    yield from blobs_of(manifest)


def blobs_of(manifest: Manifest) -> Iterator[str]:
    """Paths of all blobs that a manifest names."""
    for shard in range(len(manifest.index)):
        yield blob_path(manifest.index.blob_name(shard))
    yield blob_path(manifest.index_blob.name)
    yield blob_path(manifest.statistics_blob.name)
    for vocabulary in manifest.transforms.get("vocabularies", {}).values():
        if "blob" in vocabulary:
            yield blob_path(vocabulary["blob"])


def _mentioned(root: Store) -> set[str]:
    """Digests that a name points at, or that a run, a sweep or one of their checkpoints mentions anywhere."""
    found = {
        str(read_pointer(root, meta.path.removeprefix("datasets/").removesuffix(".json"))["digest"])
        for meta in root.list("datasets")
    }
    for kind in ("runs", "sweeps"):
        for meta in root.list(kind):
            if meta.path.endswith((".json", ".yaml")):
                try:
                    found.update(digest.decode() for digest in _DIGEST.findall(root.get(meta.path)))
                except NotFoundError:
                    continue  # a checkpoint that its run has replaced since it was listed
    return found
