"""Which shards of a base meet which range of key hashes, and what a growth adds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import Column, Schema, ShardEntry, assemble
from mltrain.data.manifest import Manifest
from mltrain.data.schema import FINGERPRINT
from mltrain.features.compare import Growth, Ranges, differing
from mltrain.features.files import difference
from mltrain.features.growth import advice
from mltrain.features.parquet import Part
from mltrain.features.scatter import Places
from mltrain.storage import open_store

SCHEMA = Schema((Column("id", "key", "carried", "int64"),), ("id",), fingerprints=True)
IDENTITY = pa.schema([("id", pa.int64())])
VERSIONS = st.dictionaries(st.integers(0, 30), st.integers(0, 2))
POWERS = st.sampled_from([1, 2, 4, 16])


def manifest(buckets: dict[str, tuple[int, ...]]) -> Manifest:
    """A dataset with a shard in every bucket of every increment."""
    entries = [
        ShardEntry(split, increment, bucket, f"{increment:016x}{bucket:016x}", 1, 1, "00" * 32, 0)
        for split, counts in buckets.items()
        for increment, count in enumerate(counts)
        for bucket in range(count)
    ]
    return assemble(SCHEMA, {}, tuple(buckets), entries, buckets=buckets)[0]


@settings(deadline=None)
@given(
    train=st.lists(POWERS, min_size=1, max_size=4),
    test=st.lists(POWERS, min_size=1, max_size=2),
    ranges=st.tuples(POWERS, POWERS),
    hashes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
)
def test_a_row_is_compared_with_every_shard_that_may_have_it_and_no_other(
    train: list[int], test: list[int], ranges: tuple[int, int], hashes: list[int]
) -> None:
    base = manifest({"train": tuple(train), "test": tuple(test)})
    # No narrower than the narrowest bucket, as Ranges.of chooses them.
    counts = (min(ranges[0], max(train)), min(ranges[1], max(test)))
    made = Ranges(open_store(Path(".")), base, IDENTITY, Places(("train", "test"), counts))
    unsigned = np.array(hashes, np.uint64)
    for split, name in enumerate(("train", "test")):
        numbers = [number for number in range(made.places.count) if made.places.locate(number)[0] == name]
        holders = np.array([made.inside(number, unsigned) for number in numbers])
        assert (holders.sum(axis=0) == 1).all()
        for place, number in enumerate(numbers):
            found = {(e.split, e.increment, e.bucket) for e in map(base.entry, made.shards(number))}
            width = 2**64 // counts[split]
            expected = {
                (name, increment, bucket)
                for increment, count in enumerate((train, test)[split])
                for bucket in range(count)
                if bucket * (2**64 // count) < (place + 1) * width and place * width < (bucket + 1) * (2**64 // count)
            }
            assert found == expected


def test_ranges_are_wider_than_small_shards_and_no_narrower_than_the_smallest() -> None:
    base = manifest({"train": (16, 4), "test": (1,)})
    assert Ranges.of(open_store(Path(".")), base, IDENTITY, frozenset()).places == Places(("train", "test"), (1, 1))


@pytest.mark.parametrize(("added", "buckets"), [((5, 0), {"train": (4, 2, 1), "test": (1,)}), ((0, 0), None)])
def test_only_a_split_that_gains_rows_gains_an_increment(
    added: tuple[int, ...], buckets: dict[str, tuple[int, ...]] | None
) -> None:
    base = manifest({"train": (4, 2), "test": (1,)})
    growth = Growth(added)
    assert growth.nothing == (buckets is None)
    assert growth.buckets(base, growth.places(base, 100)) == (buckets or {"train": (4, 2), "test": (1,)})


def test_a_fresh_build_is_advised_when_it_would_have_half_as_many_shards() -> None:
    few, many = manifest({"train": (16, 1, 1), "test": (1,)}), manifest({"train": (16, 8, 8, 4), "test": (1,)})
    assert advice(few, 1) is None and advice(many, 1) is None
    assert "has grown to 37 shards, and a fresh build would have about 2: build without" in str(advice(many, 100))


def part(path: str, deleted: str | None = None, among: str | None = None, size: int = 9) -> Part:
    """A file, with deletion vectors by name."""
    vectors = [{"pathOrInlineDv": name} if name else None for name in (deleted, among)]
    return Part(path, size, ["a"], vectors[0], vectors[1], 0, size)


def test_what_differs_between_two_versions_are_files_and_rows_of_files_that_one_deletes() -> None:
    earlier = [
        part("same", "x"),
        part("gone", "x"),
        part("less"),
        part("more", "x"),
        part("other", "x"),
        part("new", size=8),
    ]
    later = [part("new"), part("come"), part("less", "y"), part("same", "x"), part("more"), part("other", "y")]
    removed, added = difference(earlier, later)
    assert removed == [part("gone", "x"), part("less", among="y"), part("other", "x", "y"), part("new", size=8)]
    assert added == [part("more", among="x"), part("other", "y", "x"), part("new"), part("come")]


def rows_with(ids: list[int], **numbers: list[int]) -> pa.Table:
    """Rows as they are compared; ids are their own hashes."""
    wanted = {"__mltrain_split": [0] * len(ids), "__mltrain_hash": ids, **numbers}
    return pa.table({"id": pa.array(ids, pa.int64()), **{name: pa.array(n, pa.int64()) for name, n in wanted.items()}})


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(0, 30), st.integers(0, 2)),
    st.dictionaries(st.integers(0, 30), st.integers(0, 2)),
    st.data(),
)
def test_comparing_what_was_read_finds_what_comparing_everything_finds(
    before: dict[int, int], after: dict[int, int], data: st.DataObject
) -> None:
    """Equal rows may lie in files that both versions have."""
    same = [key for key in before if after.get(key) == before[key]]
    left_out = data.draw(st.sets(st.sampled_from(same))) if same else set()
    known = rows_with(list(before), __fingerprint__=list(before.values()), __mltrain_shard=[7] * len(before))
    known = known.rename_columns([FINGERPRINT if name == "__fingerprint__" else name for name in known.schema.names])

    def table(ids: list[int]) -> pa.Table:
        rows = rows_with(ids, __mltrain_row=ids)
        return rows.append_column(FINGERPRINT, pa.array([after[key] for key in ids], pa.int64()))

    whole = differing(known, table(list(after)), None, ["id"])
    removed = rows_with([key for key in before if key not in left_out])
    found = differing(known, table([key for key in after if key not in left_out]), removed, ["id"])
    for one in (whole, found):
        assert sorted(one.table["id"].to_pylist()) == sorted(k for k in after if before.get(k) != after[k])
        assert sorted(one.gone["id"].to_pylist()) == sorted(before.keys() - after.keys())
        assert not one.repeated
    if left_out:
        twice = differing(known, table(list(after)), removed, ["id"])
        assert twice.repeated == {(key,) for key in left_out}, "they are in a file that was left out, and in another"
