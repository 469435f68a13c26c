"""Removing what nothing reaches any more, while others build.

Builders and collectors exclude each other by leases in storage, each side taking its own before it looks at the other's
(as in Dekker's mutual exclusion; reads see the last write): a builder takes ``builds/<id>.json`` and then waits for the
end of a collection; a collector takes ``shards/gc.json`` and then deletes nothing beside a living builder. So what a
builder finds in storage and reuses stays there until its manifest reaches it. The lease of a dead builder is taken from
it, so that it cannot go on if it was only paused; and a builder looks at all of its shards once more before it puts the
manifest.
"""

import dataclasses
import itertools
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mltrain.data.manifest import Manifest
from mltrain.data.publish import COLLECTION, read_manifest, read_pointer, read_record
from mltrain.data.shard import blob_path
from mltrain.data.source import is_local
from mltrain.errors import BuildError, DamagedError, NotFoundError
from mltrain.progress import Passing, Progress
from mltrain.storage import ObjectMeta, Store
from mltrain.storage.lease import HeldError, Lease, fence, read_holder
from mltrain.storage.parsing import parse_object

DEFAULT_GRACE_S = 24 * 3600.0
# Whoever writes one object for longer than this has died: others than builders may be writing now.
_LONGEST_WRITE_S = 3600.0
_READERS = 16
_DIGEST = re.compile(rb"[0-9a-f]{64}")
# How configs, results and checkpoints name the dataset of a run: name@digest, a field of its own, or a URI.
_DATASET = re.compile(
    rb"""\bdataset: ['"]?[\w.-]+@([0-9a-f]{64})|"dataset_digest": ?"([0-9a-f]{64})"|([^\s'"]+)/shards/([0-9a-f]{64})"""
)


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


@dataclasses.dataclass(frozen=True)
class _Mentioned:
    """What names, runs and sweeps say of datasets.

    Attributes:
        anywhere: digests that a name points at, or that a run, a sweep or one of their checkpoints mentions anywhere.
        datasets: who names a dataset of this root as its own, and its digest.
        faults: names that are damaged, so that it is not known what they point at.
    """

    anywhere: set[str]
    datasets: list[tuple[str, str]]
    faults: list[str]


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
        DamagedError: a lease or a manifest is damaged, or a manifest is missing although a name or a run points at it,
            so that what it reaches is not known. Nothing was removed, and the message names everything of that kind.
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
        _refuse_what_is_no_file(root)
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
        if holder is None:
            # What has no lease must be the record of a build that ended, and not a lease that is damaged.
            read_record(root, meta.path.removeprefix("builds/").removesuffix(".json"))
        if holder is None or holder.released:
            continue
        if not holder.gone(time.time()):
            raise BuildError(f"a build is under way: {meta.path}, {holder.described}; run this again when it has ended")
        fence(root, meta.path)


def _refuse_what_is_no_file(root: Store) -> None:
    """Refuses to take what stands in the place of a pointer or a manifest, and is not listed as a file, for nothing."""
    if not is_local(root):
        return
    top = Path(root.uri)
    named = itertools.chain(top.glob("datasets/*.json"), top.glob("shards/*/manifest.json"), top.glob("builds/*.json"))
    if wrong := [str(path) for path in named if not path.is_file()]:
        raise DamagedError(
            f"{', '.join(sorted(wrong))}: not a file, so what it should say is not known, and nothing was removed. "
            "Put back what was there, or remove it where nobody needs it"
        )


def _now(root: Store) -> float:
    """The time by storage's clock, by which the age of objects is told."""
    meta = root.head(COLLECTION)
    return meta.modified.timestamp() if meta else time.time()


def _mark(root: Store, now: float, grace_s: float, unnamed: bool) -> tuple[dict[str, int], int, int]:
    """Paths and sizes of garbage, manifests first; how many objects are reached; how many are too young."""
    stored = {meta.path: meta for meta in root.list("shards") if meta.path != COLLECTION}
    old = {path for path, meta in stored.items() if meta.modified.timestamp() <= now - grace_s}
    digests = {path.split("/")[1] for path in stored if path.endswith("/manifest.json")}
    mentioned = _mentioned(root)
    doomed = {d for d in digests - mentioned.anywhere if f"shards/{d}/manifest.json" in old} if unnamed else set()
    reached: set[str] = set()
    damaged: dict[str, str] = {}
    for digest in sorted(digests - doomed):
        try:
            reached.update(_reached(root, digest))
        except (DamagedError, NotFoundError) as error:
            damaged[digest] = str(error)
    _refuse_lost(mentioned, digests, damaged)
    stored |= {meta.path: meta for meta in _ended_leases(root)}
    old |= {path for path, meta in stored.items() if meta.modified.timestamp() <= now - grace_s}
    loose = [path for path in stored if path not in reached]
    garbage = sorted((path for path in loose if path in old), key=lambda path: (not path.endswith(".json"), path))
    return {path: stored[path].size_bytes for path in garbage}, len(stored) - len(loose), len(loose) - len(garbage)


def _refuse_lost(mentioned: _Mentioned, digests: set[str], damaged: Mapping[str, str]) -> None:
    faults = [*mentioned.faults, *damaged.values()]
    for what, digest in mentioned.datasets:
        if digest not in digests or digest in damaged:
            how = "damaged" if digest in damaged else "missing"
            faults.append(f"{what} names dataset {digest}, whose manifest is {how}")
    if faults:
        raise DamagedError(
            "what some datasets consist of is not known, so nothing was removed:"
            + "".join(f"\n  - {fault}" for fault in faults)
            + "\nBuild each of them again (`mltrain dataset build`), or remove what is named here where nobody needs it"
        )


def _reached(root: Store, digest: str) -> Iterator[str]:
    """What a dataset consists of."""
    path = f"shards/{digest}/manifest.json"
    manifest = read_manifest(root, path)
    yield path
    yield from blobs_of(manifest)


def _ended_leases(root: Store) -> Iterator[ObjectMeta]:
    """Leases of builds that were refused, failed or died: they left no record of a dataset."""
    for meta in root.list("builds"):
        try:
            content = parse_object(root.get(meta.path))
        except (NotFoundError, ValueError):
            continue
        if content.keys() == {"lease"} and content["lease"]["released"]:
            yield meta


def blobs_of(manifest: Manifest) -> Iterator[str]:
    """Paths of all blobs that a manifest names."""
    for shard in range(len(manifest.index)):
        yield blob_path(manifest.index.blob_name(shard))
    yield blob_path(manifest.index_blob.name)
    yield blob_path(manifest.statistics_blob.name)
    for vocabulary in manifest.transforms.get("vocabularies", {}).values():
        if "blob" in vocabulary:
            yield blob_path(vocabulary["blob"])


def _mentioned(root: Store) -> _Mentioned:
    """Who mentions which dataset."""
    found = _Mentioned(set(), [], [])
    for meta in root.list("datasets"):
        try:
            digest = str(read_pointer(root, meta.path.removeprefix("datasets/").removesuffix(".json"))["digest"])
        except DamagedError as error:
            found.faults.append(str(error))
            continue
        found.anywhere.add(digest)
        found.datasets.append((root.join(meta.path), digest))
    for kind in ("runs", "sweeps"):
        named: dict[str, set[str]] = {}
        elsewhere: dict[str, set[str]] = {}
        for path, content in _texts(root, kind):
            found.anywhere.update(digest.decode() for digest in _DIGEST.findall(content))
            run = root.join("/".join(path.split("/")[:2]))
            for by_name, by_field, place, by_uri in _DATASET.findall(content):
                here = not place or place.decode(errors="replace") == root.uri
                (named if here else elsewhere).setdefault(run, set()).add((by_name or by_field or by_uri).decode())
        for run, digests in sorted(named.items()):
            found.datasets.extend((run, digest) for digest in sorted(digests - elsewhere.get(run, set())))
    return found


def _texts(root: Store, kind: str) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the JSON and YAML files below a directory."""

    def read(path: str) -> tuple[str, bytes]:
        try:
            return path, root.get(path)
        except NotFoundError:
            return path, b""  # a checkpoint that its run has replaced since it was listed

    paths = (meta.path for meta in root.list(kind) if meta.path.endswith((".json", ".yaml")))
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, paths)
