"""What changed between two datasets: columns, transforms, and rows, matched by key."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mltrain.data import keys
from mltrain.data.dataset import Dataset
from mltrain.data.schema import Column
from mltrain.progress import Progress

_KEY, _CONTENT = "mltrain/diff/key", "mltrain/diff/content"

Hashes = NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class SplitDiff:
    """How the rows of a split differ.

    Attributes:
        before, after: rows in each dataset; 0 where it lacks the split.
        added: rows whose key only the second dataset has there.
        removed: rows whose key only the first dataset has there.
        changed: rows of one key whose values differ in a column that both have.
        shared_shards: shards that are the same file; their rows are not read.
        read_shards: shards of both datasets that had to be read.
    """

    before: int
    after: int
    added: int
    removed: int
    changed: int
    shared_shards: int
    read_shards: int


@dataclasses.dataclass(frozen=True)
class DatasetDiff:
    """How two datasets differ.

    Attributes:
        before, after: their digests.
        columns_added, columns_removed: columns that only one has.
        columns_changed: columns that both have as something else: type, width, role, classes.
        refitted: columns whose fitted transform or vocabulary differs, so that equal source values may be stored as
            other numbers.
        splits: by name.
        key_before, key_after: columns of their keys. Where these are not the same, rows are matched by content.
    """

    before: str
    after: str
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_changed: tuple[str, ...]
    refitted: tuple[str, ...]
    splits: Mapping[str, SplitDiff]
    key_before: tuple[str, ...]
    key_after: tuple[str, ...]

    @property
    def matched_by(self) -> str:
        """How rows were found again."""
        if self.key_before == self.key_after:
            return f"key {', '.join(self.key_before)}" if self.key_before else "content: there is no key"
        keys = (", ".join(key) or "none" for key in (self.key_before, self.key_after))
        return f"content: the keys differ ({' and '.join(keys)}), so a changed row counts as one removed and one added"

    @property
    def equal(self) -> bool:
        """Nothing differs but perhaps the layout."""
        columns = (*self.columns_added, *self.columns_removed, *self.columns_changed, *self.refitted)
        return not columns and not any(s.added or s.removed or s.changed for s in self.splits.values())


def diff(before: Dataset, after: Dataset, progress: Progress = lambda line: None) -> DatasetDiff:
    """Compares two datasets. Holds 16 bytes for each row of the shards that differ.

    Rows are matched by key; without one and the same key in both, by content: a changed row then counts as one removed
    and one added.

    Args:
        before: the first.
        after: the second.
        progress: told what was done so far.

    Raises:
        DamagedError: a shard is damaged.
    """
    mine, theirs = ({c.name: c for c in dataset.schema.columns} for dataset in (before, after))
    same = [name for name, column in mine.items() if name in theirs and _comparable(column, theirs[name])]
    names = dict.fromkeys((*before.splits, *after.splits))
    return DatasetDiff(
        before=before.digest,
        after=after.digest,
        columns_added=tuple(name for name in theirs if name not in mine),
        columns_removed=tuple(name for name in mine if name not in theirs),
        columns_changed=tuple(name for name in mine if name in theirs and mine[name] != theirs[name]),
        refitted=tuple(_refitted(before.transforms, after.transforms)),
        splits={name: _split(before, after, name, same, progress) for name in names},
        key_before=before.schema.key,
        key_after=after.schema.key,
    )


def _comparable(one: Column, other: Column) -> bool:
    return (one.dtype, one.width, one.ragged) == (other.dtype, other.width, other.ragged)


def _refitted(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Columns that both transform, but not alike."""
    mine, theirs = ({one["column"]: one for one in _fitted(side)} for side in (before, after))
    vocabularies = [side.get("vocabularies", {}) for side in (before, after)]

    def differs(column: str) -> bool:
        one, other = mine[column], theirs[column]
        name = one.get("vocabulary")
        return bool(one != other or (name and vocabularies[0].get(name) != vocabularies[1].get(name)))

    return [column for column in mine if column in theirs and differs(column)]


def _fitted(transforms: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*transforms.get("features", ()), *transforms.get("targets", ())]


def _split(before: Dataset, after: Dataset, split: str, columns: Sequence[str], progress: Progress) -> SplitDiff:
    blobs = [_blobs(dataset, split) for dataset in (before, after)]
    shared = set(blobs[0].values()) & set(blobs[1].values())
    rest = [[shard for shard, blob in side.items() if blob not in shared] for side in blobs]
    key = before.schema.key if before.schema.key == after.schema.key else ()
    progress(f"split {split}: {len(shared)} shards are the same, {len(rest[0])} and {len(rest[1])} to read")
    mine = _hashes(before, rest[0], columns, key)
    theirs = _hashes(after, rest[1], columns, key)
    added, removed, changed = _matched(mine, theirs)
    rows = [dataset.rows(split) if split in dataset.splits else 0 for dataset in (before, after)]
    return SplitDiff(rows[0], rows[1], added, removed, changed, len(shared), len(rest[0]) + len(rest[1]))


def _blobs(dataset: Dataset, split: str) -> dict[int, str]:
    """Position in the index to blob, of a split's shards."""
    if split not in dataset.splits:
        return {}
    where = dataset.manifest.shards(split)
    return {shard: dataset.manifest.index.blob_name(shard) for shard in range(where.start, where.stop)}


def _hashes(
    dataset: Dataset, shards: Sequence[int], columns: Sequence[str], key: Sequence[str]
) -> tuple[Hashes, Hashes]:
    """Of every row: the hash of its key, or of its content where there is no key, and the hash of its content."""
    identities, contents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for shard in shards:
        opened = dataset.source.shard(shard)
        content = _hash(opened.table(tuple(columns)), _CONTENT)
        identities.append(_hash(opened.table(tuple(key)), _KEY) if key else content)
        contents.append(content)
    return np.concatenate(identities), np.concatenate(contents)


def _hash(rows: pa.Table, domain: str) -> Hashes:
    return keys.hash_rows(rows, domain=domain, seed=0)


def _matched(mine: tuple[Hashes, Hashes], theirs: tuple[Hashes, Hashes]) -> tuple[int, int, int]:
    """Rows added, removed and changed. Rows without a key have their content as identity, and may repeat."""
    left, left_rows, left_counts = np.unique(mine[0], return_index=True, return_counts=True)
    right, right_rows, right_counts = np.unique(theirs[0], return_index=True, return_counts=True)
    place = np.searchsorted(right, left)
    known = np.flatnonzero(np.append(right, np.uint64(0))[place] == left)
    known = known[place[known] < len(right)]
    place = place[known]
    paired = int(np.minimum(left_counts[known], right_counts[place]).sum())
    changed = int((mine[1][left_rows[known]] != theirs[1][right_rows[place]]).sum())
    return len(theirs[0]) - paired, len(mine[0]) - paired, changed
