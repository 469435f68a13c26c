"""The manifest: what a dataset is, written last. A dataset exists only when its manifest does.

``shards/<digest>/manifest.json`` holds schema, transforms and splits, and names two Arrow blobs: the *index*, one row
a shard in canonical order, and the *statistics*, which only ``dataset show`` reads. So opening 1e9 rows in 1e5 shards
costs reading 9 MB of columns and no Python object a shard. The file checksums itself and, through their names, both
blobs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.data import ipc, keys
from mltrain.data.index import ShardIndex
from mltrain.data.layout import choose_lanes, choose_window
from mltrain.data.schema import Schema
from mltrain.data.shard import EncodedShard, blob_path, checksum
from mltrain.data.statistics import ColumnStatistics, ShardStatistics, merge
from mltrain.errors import DamagedError

FORMAT = "mltrain-dataset"
FORMAT_VERSION = 1

_HEAD = b'{"checksum":"'
_HEAD_SIZE = len(_HEAD) + 64 + len(b'",\n')


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """One shard of a dataset.

    Attributes:
        split: name of its split.
        increment: 0 for a fresh build; growth adds more.
        bucket: top bits of its rows' key hashes.
        blob: xxh3-128 of the file, its name and checksum.
        rows: number of rows.
        size_bytes: length of the file.
        digest: SHA-256 of the logical content.
        multiset: order-free hash of its rows' keys.
        statistics: per column; None where they were not read.
    """

    split: str
    increment: int
    bucket: int
    blob: str
    rows: int
    size_bytes: int
    digest: str
    multiset: int
    statistics: ShardStatistics | None = None

    @classmethod
    def of(cls, shard: EncodedShard, *, split: str, increment: int, bucket: int) -> "ShardEntry":
        """The entry of a shard that was just encoded."""
        return cls(
            split=split,
            increment=increment,
            bucket=bucket,
            blob=shard.blob,
            rows=shard.rows,
            size_bytes=shard.size_bytes,
            digest=shard.digest,
            multiset=shard.multiset,
            statistics=shard.statistics,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for tasks to hand to the driver."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["multiset"] = f"{self.multiset:032x}"
        data["statistics"] = self.statistics and {name: s.to_json() for name, s in self.statistics.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardEntry":
        """The inverse of :meth:`to_json`."""
        statistics = data["statistics"] and {n: ColumnStatistics.from_json(s) for n, s in data["statistics"].items()}
        return cls(**{**data, "multiset": int(data["multiset"], 16), "statistics": statistics})


@dataclasses.dataclass(frozen=True)
class SplitEntry:
    """One split of a dataset.

    Attributes:
        name: ``train``, ``validation``, ...
        rows: number of rows.
        shards: number of shards.
        multiset: order-free hash of its rows' keys.
        lanes: C of the order function.
        window: K of the order function, in shard fragments.
        statistics: per column, over the split.
        buckets: by increment, into how many buckets it scattered its rows (some may be empty); nothing where shards
            are not buckets of key hashes: such a dataset cannot grow.
    """

    name: str
    rows: int
    shards: int
    multiset: int
    lanes: int
    window: int
    statistics: ShardStatistics
    buckets: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["multiset"] = f"{self.multiset:032x}"
        data["statistics"] = {name: statistics.to_json() for name, statistics in self.statistics.items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SplitEntry":
        """The inverse of :meth:`to_json`."""
        statistics = {name: ColumnStatistics.from_json(s) for name, s in data["statistics"].items()}
        buckets = tuple(data.get("buckets", ()))
        return cls(**{**data, "multiset": int(data["multiset"], 16), "statistics": statistics, "buckets": buckets})


@dataclasses.dataclass(frozen=True)
class Blob:
    """A content-addressed file: its name and length."""

    name: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A dataset.

    Attributes:
        digest: its identity (:func:`compute_digest`).
        schema: its columns.
        transforms: fitted transforms as plain data.
        splits: its splits, in canonical order.
        index: its shards.
        index_blob: where the index is stored.
        statistics_blob: where the statistics of each shard are stored.
    """

    digest: str
    schema: Schema
    transforms: Mapping[str, Any]
    splits: tuple[SplitEntry, ...]
    index: ShardIndex
    index_blob: Blob
    statistics_blob: Blob

    @property
    def path(self) -> str:
        """Where the manifest lies below the root."""
        return manifest_path(self.digest)

    def split(self, name: str) -> SplitEntry:
        """The split of this name.

        Raises:
            KeyError: there is none.
        """
        return {split.name: split for split in self.splits}[name]

    def shards(self, split: str) -> slice:
        """Where the shards of a split lie in the index."""
        names = [entry.name for entry in self.splits]
        start = sum(entry.shards for entry in self.splits[: names.index(split)])
        return slice(start, start + self.split(split).shards)

    def entries(self) -> Iterable[ShardEntry]:
        """All shards as objects, without statistics."""
        for i in range(len(self.index)):
            yield self.entry(i)

    def entry(self, shard: int) -> ShardEntry:
        """One shard by its position in the index."""
        index = self.index
        return ShardEntry(
            split=self.splits[int(index.split[shard])].name,
            increment=int(index.increment[shard]),
            bucket=int(index.bucket[shard]),
            blob=index.blob_name(shard),
            rows=int(index.rows[shard]),
            size_bytes=int(index.size_bytes[shard]),
            digest=index.digest[shard].tobytes().hex(),
            multiset=int.from_bytes(index.multiset[shard].tobytes(), "big"),
        )

    def to_bytes(self) -> bytes:
        """The file: a line with the SHA-256 of all that follows it, then sorted JSON; as a whole, JSON too."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "digest": self.digest,
            "schema": self.schema.to_json(),
            "transforms": self.transforms,
            "splits": [split.to_json() for split in self.splits],
            "index": dataclasses.asdict(self.index_blob),
            "statistics": dataclasses.asdict(self.statistics_blob),
        }
        rest = canonical_json(data)[1:]
        return _HEAD + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest

    @classmethod
    def from_bytes(cls, data: bytes, read_blob: Callable[[str], bytes], name: str = "manifest") -> "Manifest":
        """Reads and checks a manifest and its index.

        Args:
            data: the file.
            read_blob: path of a blob below the root to its bytes.
            name: what to call the file in errors.

        Raises:
            DamagedError: the file or its index does not match its checksum or format.
        """
        content = _parse(data, name)
        blob = Blob(**content["index"])
        raw = read_blob(blob_path(blob.name))
        found = checksum(raw)
        if found != blob.name or len(raw) != blob.size_bytes:
            raise DamagedError(
                f"shard index {blob_path(blob.name)} of {name} is damaged: {len(raw)} bytes that hash to {found}; "
                f"wanted {blob.size_bytes} bytes. Build the dataset again to repair it"
            )
        return cls(
            digest=content["digest"],
            schema=Schema.from_json(content["schema"]),
            transforms=content["transforms"],
            splits=tuple(SplitEntry.from_json(split) for split in content["splits"]),
            index=ShardIndex.from_buffer(pa.py_buffer(raw)),
            index_blob=blob,
            statistics_blob=Blob(**content["statistics"]),
        )


def manifest_path(digest: str) -> str:
    """Where the manifest of a digest lies below the root."""
    return f"shards/{digest}/manifest.json"


def canonical_json(data: Any) -> bytes:
    """One spelling for equal plain data: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def assemble(
    schema: Schema,
    transforms: Mapping[str, Any],
    split_names: Sequence[str],
    shards: Iterable[ShardEntry],
    *,
    buckets: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Manifest, dict[str, pa.Buffer]]:
    """A manifest from the shards of a build, in any order, each with its statistics.

    Args:
        schema: the columns.
        transforms: fitted transforms as plain data; part of the digest.
        split_names: the splits in canonical order.
        shards: all shards; empty ones are left out.
        buckets: for each split, buckets by increment, of a dataset that can grow.

    Returns:
        The manifest, and path to content of the blobs that go to storage before it.

    Raises:
        ValueError: a shard names another split, or two claim one place.
    """
    order = {name: position for position, name in enumerate(split_names)}
    entries = sorted((s for s in shards if s.rows), key=lambda s: (order[s.split], s.increment, s.bucket))
    places = [(entry.split, entry.increment, entry.bucket) for entry in entries]
    if len(set(places)) != len(places):
        repeated = sorted({place for place in places if places.count(place) > 1})
        raise ValueError(f"more than one shard for (split, increment, bucket) {repeated[:3]}")
    splits = tuple(
        dataclasses.replace(
            _split_entry(schema, name, [e for e in entries if e.split == name]), buckets=(buckets or {}).get(name, ())
        )
        for name in split_names
    )
    index = _index(entries, order)
    index_buffer, statistics_buffer = index.to_buffer(), _encode_statistics(entries)
    manifest = Manifest(
        digest=compute_digest(schema, transforms, splits, index),
        schema=schema,
        transforms=json.loads(canonical_json(transforms)),
        splits=splits,
        index=index,
        index_blob=Blob(checksum(index_buffer), index_buffer.size),
        statistics_blob=Blob(checksum(statistics_buffer), statistics_buffer.size),
    )
    blobs = {manifest.index_blob.name: index_buffer, manifest.statistics_blob.name: statistics_buffer}
    return manifest, {blob_path(name): buffer for name, buffer in blobs.items()}


def compute_digest(
    schema: Schema, transforms: Mapping[str, Any], splits: Sequence[SplitEntry], index: ShardIndex
) -> str:
    """The dataset's identity: SHA-256 over logical content and layout, in hex.

    Content: schema, transforms, and each shard's content digest. Layout: splits, increments, buckets, rows a shard, C
        and K.
    File names, sizes, statistics and multiset hashes are not covered: they follow from the content or from Arrow's
        version.
    """
    head = {
        "format": "mltrain-digest-1",
        "schema": schema.to_json(),
        "transforms": transforms,
        "splits": [[split.name, split.rows, split.shards, split.lanes, split.window] for split in splits],
    }
    hasher = hashlib.sha256(canonical_json(head))
    for column, dtype in (("split", "<i4"), ("increment", "<i4"), ("bucket", "<i4"), ("rows", "<i8"), ("digest", "u1")):
        hasher.update(np.ascontiguousarray(getattr(index, column), dtype).data)
    return hasher.hexdigest()


def decode_statistics(data: bytes) -> list[ShardStatistics]:
    """The statistics of each shard, in the order of the index."""
    lines = pa.ipc.open_file(pa.py_buffer(data)).get_batch(0).column("statistics")
    return [{n: ColumnStatistics.from_json(s) for n, s in json.loads(line.as_py()).items()} for line in lines]


def _encode_statistics(entries: Sequence[ShardEntry]) -> pa.Buffer:
    lines = [canonical_json({n: s.to_json() for n, s in (entry.statistics or {}).items()}) for entry in entries]
    return ipc.encode(pa.record_batch({"statistics": pa.array(lines, pa.binary())}))


def _parse(data: bytes, name: str) -> dict[str, Any]:
    stored = data[len(_HEAD) : len(_HEAD) + 64]
    rest = data[_HEAD_SIZE:]
    found = hashlib.sha256(rest).hexdigest().encode()
    if data[:_HEAD_SIZE] != _HEAD + found + b'",\n':
        raise DamagedError(
            f"{name} is damaged: its content hashes to {found.decode()[:16]}…, and it says "
            f"{stored[:16].decode(errors='replace')}…; build the dataset again to repair it"
        )
    content: dict[str, Any] = json.loads(b"{" + rest)
    if content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise DamagedError(
            f"{name} has format {content.get('format')!r} version {content.get('format_version')!r}; this mltrain "
            f"reads {FORMAT!r} version {FORMAT_VERSION}: use the mltrain that wrote it, or a newer one"
        )
    return content


def _split_entry(schema: Schema, name: str, entries: Sequence[ShardEntry]) -> SplitEntry:
    rows = sum(entry.rows for entry in entries)
    columns = next((entry.statistics for entry in entries if entry.statistics), {})
    statistics = {c: merge([e.statistics[c] for e in entries if e.statistics]) for c in columns}
    ids = sum(statistics[c.name].count * np.dtype(c.dtype).itemsize for c in schema.ragged if c.name in statistics)
    row_bytes = sum(matrix.row_bytes for matrix in schema.matrices.values()) + ids / max(1, rows)
    return SplitEntry(
        name=name,
        rows=rows,
        shards=len(entries),
        multiset=keys.add_multisets(*(entry.multiset for entry in entries)),
        lanes=choose_lanes(len(entries)),
        window=choose_window(len(entries), rows, row_bytes),
        statistics=statistics,
    )


def _index(entries: Sequence[ShardEntry], order: Mapping[str, int]) -> ShardIndex:
    def packed(values: list[bytes], width: int) -> NDArray[np.uint8]:
        return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), width)

    return ShardIndex(
        split=np.array([order[entry.split] for entry in entries], np.int16),
        increment=np.array([entry.increment for entry in entries], np.int32),
        bucket=np.array([entry.bucket for entry in entries], np.int32),
        rows=np.array([entry.rows for entry in entries], np.int64),
        size_bytes=np.array([entry.size_bytes for entry in entries], np.int64),
        blob=packed([bytes.fromhex(entry.blob) for entry in entries], 16),
        digest=packed([bytes.fromhex(entry.digest) for entry in entries], 32),
        multiset=packed([entry.multiset.to_bytes(16, "big") for entry in entries], 16),
    )
