"""Opening, describing, reading and verifying datasets; manifests and their damage."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.config import CacheConfig
from mltrain.data import (
    Build,
    Column,
    Dataset,
    Loader,
    Manifest,
    NodeCache,
    Schema,
    ShardEntry,
    assemble,
    ipc,
    write_shard,
)
from mltrain.data.dataset import Reference, parse_reference
from mltrain.data.layout import choose_buckets, choose_lanes, choose_window
from mltrain.data.manifest import decode_statistics
from mltrain.data.publish import put_shard
from mltrain.data.shard import blob_path, checksum
from mltrain.errors import DamagedError, NotFoundError, RequestError
from mltrain.progress import Passing
from mltrain.storage import open_store
from mltrain.transforms.vocabulary import INLINE_LIMIT, Vocabulary
from tests.support.datasets import Features, make_dataset

EVERYTHING = Features(numeric=3, categorical=2, vectors=1, ragged=2, weight=True, keep=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def made(root: Path) -> Dataset:
    return make_dataset(root, rows=400, shards=3, features=EVERYTHING, transforms={"x0": {"mean": 0.1}})


def entries_with_statistics(dataset: Dataset) -> list[ShardEntry]:
    raw = dataset.store.get(blob_path(dataset.manifest.statistics_blob.name))
    statistics = decode_statistics(raw)
    return [
        ShardEntry(**{**entry.__dict__, "statistics": statistics[number]})
        for number, entry in enumerate(dataset.manifest.entries())
    ]


def test_a_dataset_opens_by_everything_that_names_it(made: Dataset, root: Path) -> None:
    for reference, base in [
        (f"{root}/datasets/made", None),
        (f"{root}/datasets/made.json", None),
        (f"file://{root}/datasets/made", None),
        (f"{root}/datasets/made@{made.digest}", None),
        (f"{root}/shards/{made.digest}", None),
        (f"{root}/shards/{made.digest}/manifest.json", None),
        ("made", root),
        (f"made@{made.digest}", root),
        (made.digest, root),
    ]:
        assert Dataset.open(reference, root=base).digest == made.digest
    assert Dataset.resolve(root, "made").digest == made.digest


def test_references_split_into_root_name_and_digest() -> None:
    digest = "a" * 64
    assert parse_reference("s3a://ml/prod/datasets/adult") == Reference("s3://ml/prod", "adult", None)
    assert parse_reference(f"s3://ml/shards/{digest}/") == Reference("s3://ml", None, digest)
    assert parse_reference(f"adult@{digest}", "s3://ml/prod/") == Reference("s3://ml/prod", "adult", digest)


@pytest.mark.parametrize(
    ("reference", "root", "message"),
    [
        ("adult", None, "needs a root"),
        ("adult@123", "/r", "'123' is not a digest"),
        ("s3://ml/prod/adult", None, "neither <root>/datasets/<name> nor"),
        ("ad ult", "/r", "not the name of a dataset"),
        ("", "/r", "not the name of a dataset"),
    ],
)
def test_what_is_no_reference_is_refused(reference: str, root: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_reference(reference, root)


def test_an_unknown_name_lists_the_known_ones(made: Dataset, root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no dataset named 'mode' below .*; there are \['made'\]"):
        Dataset.open("mode", root=root)
    with pytest.raises(NotFoundError, match="there is none; `mltrain dataset build"):
        Dataset.open("mode", root=tmp_path)
    with pytest.raises(NotFoundError, match="no dataset with digest 000"):
        Dataset.open("0" * 64, root=root)


def test_opening_reads_the_manifest_only(made: Dataset, root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "root"
    for path in ("datasets/made.json", made.manifest.path, blob_path(made.manifest.index_blob.name)):
        (copied / path).parent.mkdir(parents=True, exist_ok=True)
        (copied / path).write_bytes((root / path).read_bytes())
    opened = Dataset.open("made", root=copied)
    assert opened.rows("train") == made.rows("train")
    assert opened.schema == made.schema and opened.transforms == {"x0": {"mean": 0.1}}
    assert opened.splits == ("train", "validation", "test")


def test_the_summary_says_schema_splits_provenance_and_statistics(made: Dataset) -> None:
    summary = made.summary()
    assert json.loads(json.dumps(summary)) == summary or summary["splits"]["train"]["statistics"]["y"]["classes"]
    assert summary["provenance"]["source"] == "tests.support.datasets"
    train = summary["splits"]["train"]
    assert (train["rows"], train["shards"]) == (made.rows("train"), 3)
    assert sum(train["statistics"]["y"]["classes"]) == train["rows"]
    assert Dataset.open(made.uri).provenance["digest"] == made.digest


def test_reading_gives_canonical_rows(made: Dataset) -> None:
    table = made.read("train")
    assert table.num_rows == made.rows("train")
    assert made.read("train", ["id", "h0"], start=100, stop=250).equals(table.select(["id", "h0"]).slice(100, 150))
    assert made.read("train", ["x0"], start=10, stop=10).num_rows == 0
    frame = made.to_pandas("validation", rows=7)
    assert len(frame) == 7 and frame.columns[0] == "id"
    with pytest.raises(RequestError, match="no split 'dev'; it has"):
        made.read("dev")
    with pytest.raises(RequestError, match="no column 'z'"):
        made.read("train", ["z"])


def test_names_of_columns_are_a_list_and_none_of_them_leaves_the_rows(made: Dataset) -> None:
    assert made.read("train", []).num_rows == made.rows("train") and made.read("train", [], stop=7).shape == (7, 0)
    with pytest.raises(RequestError, match=r"columns='id': wanted a list of names, as in \['id'\]"):
        made.read("train", "id")
    with pytest.raises(RequestError, match="columns='id'"):
        Loader(made, "train", global_batch_size=8, columns="id")


def test_a_whole_dataset_verifies(made: Dataset) -> None:
    told: list[str] = []
    report = made.verify(told.append)
    assert report.ok and report.shards == 5 and report.rows == 400
    assert told[-1] == "5 of 5 shards, 0 damaged" and isinstance(told[-1], Passing)


def test_verify_says_how_far_it_is_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = make_dataset(tmp_path, rows=300, shards=60), list[str]()
    monkeypatch.setattr("mltrain.data.verify._TOLD_EVERY_S", 3600.0)
    made.verify(told.append)
    assert told == ["62 of 62 shards, 0 damaged"]


def test_verify_reads_the_vocabularies_that_the_transforms_name(tmp_path: Path) -> None:
    blobs: dict[str, bytes] = {}
    large = Vocabulary(pa.array([f"item {i}" for i in range(INLINE_LIMIT + 1)]))
    stored = {"item": large.to_json(blobs), "small": Vocabulary(pa.array(["a"])).to_json(blobs)}
    [(name, content)] = blobs.items()
    made = make_dataset(tmp_path, rows=100, shards=1, transforms={"vocabularies": stored})
    assert made.verify().damaged == {blob_path(name): "missing"}
    made.store.put(blob_path(name), content)
    assert made.verify().ok
    made.store.put(blob_path(name), content.replace(b"item 7", b"item 8", 1))
    assert list(made.verify().damaged) == [blob_path(name)]


def test_ids_go_back_to_what_they_stand_for(tmp_path: Path) -> None:
    blobs: dict[str, bytes] = {}
    items = Vocabulary(pa.array([f"item {i}" for i in range(INLINE_LIMIT + 1)]))
    stored = {"item": items.to_json(blobs), "c1": Vocabulary(pa.array([7, 5])).to_json(blobs)}
    made = make_dataset(tmp_path, rows=10, shards=1, transforms={"vocabularies": stored})
    named = {"c0": "item", "c1": "c1"}
    columns = tuple(dataclasses.replace(c, vocabulary=named.get(c.name)) for c in made.schema.columns)
    manifest = dataclasses.replace(made.manifest, schema=Schema(columns, made.schema.key))
    made = dataclasses.replace(made, manifest=manifest)
    assert made.vocabulary("c1").to_pylist() == [None, 7, 5]
    with pytest.raises(DamagedError, match="'item' is missing"):
        made.vocabulary("c0")
    [(name, content)] = blobs.items()
    made.store.put(blob_path(name), content)
    assert made.vocabulary("c0").take(pa.array([0, 1, INLINE_LIMIT + 1])).to_pylist() == [
        None,
        "item 0",
        f"item {INLINE_LIMIT}",
    ]
    for column, what in (("x0", "'x0' is a numeric column"), ("z", "'z' is no column")):
        with pytest.raises(RequestError, match=rf"{what}.*\['c0', 'c1'\]"):
            made.vocabulary(column)


def test_a_dataset_is_told_in_one_line(made: Dataset) -> None:
    rows = ", ".join(f"{split} {made.rows(split)}" for split in made.splits)
    assert repr(made) == f"Dataset('made', {made.digest[:12]}, {rows} rows)"
    assert repr(Dataset.open(made.digest, root=made.store.uri)) == f"Dataset({made.digest[:12]}, {rows} rows)"


def test_a_cache_is_where_a_config_has_it_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CacheConfig()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert NodeCache().path == config.directory == Path.home() / ".cache/mltrain/shards"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert NodeCache().path == config.directory == tmp_path / "mltrain/shards"
    assert NodeCache().budget_bytes == config.budget_bytes


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=300, shards=4)
    flipped, cut, gone = (tmp_path / blob_path(made.manifest.index.blob_name(i)) for i in (0, 2, 3))
    raw = bytearray(flipped.read_bytes())
    raw[-100] ^= 1
    flipped.write_bytes(raw)
    cut.write_bytes(cut.read_bytes()[:-8])
    gone.unlink()
    (tmp_path / blob_path(made.manifest.statistics_blob.name)).write_bytes(b"?")
    report = made.verify()
    assert not report.ok
    shards = [str(file.relative_to(tmp_path)) for file in (flipped, cut, gone)]
    assert set(report.damaged) == {*shards, blob_path(made.manifest.statistics_blob.name)}
    assert "damaged" in report.damaged[shards[0]] and "bytes; the manifest says" in report.damaged[shards[1]]
    assert report.damaged[shards[2]] == "missing"


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_in_a_manifest_is_found(made: Dataset, data: st.DataObject) -> None:
    raw = bytearray(made.store.get(made.manifest.path))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedError, match="the manifest is damaged"):
        Manifest.from_bytes(bytes(raw), made.store.get, "the manifest")


@given(length=st.integers(0, 3000))
@settings(max_examples=20, deadline=None)
def test_a_truncated_manifest_is_found(made: Dataset, length: int) -> None:
    raw = made.store.get(made.manifest.path)
    with pytest.raises(DamagedError, match="the manifest is damaged"):
        Manifest.from_bytes(raw[: min(length, len(raw) - 1)], made.store.get, "the manifest")


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_flipped_bit_in_the_shard_index_is_found(made: Dataset, data: st.DataObject) -> None:
    raw = bytearray(made.store.get(blob_path(made.manifest.index_blob.name)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DamagedError, match="shard index .* of the manifest is damaged"):
        Manifest.from_bytes(made.store.get(made.manifest.path), lambda _: bytes(raw), "the manifest")


def test_a_manifest_comes_back_and_is_json(made: Dataset) -> None:
    raw = made.manifest.to_bytes()
    assert json.loads(raw)["digest"] == made.digest
    assert Manifest.from_bytes(raw, made.store.get).to_bytes() == raw


def test_the_order_in_which_shards_are_named_does_not_matter(made: Dataset) -> None:
    entries = entries_with_statistics(made)
    again = [ShardEntry.from_json(json.loads(json.dumps(entry.to_json()))) for entry in reversed(entries)]
    manifest, blobs = assemble(made.schema, made.transforms, made.splits, again)
    assert manifest.to_bytes() == made.manifest.to_bytes()
    assert set(blobs) == {blob_path(b.name) for b in (made.manifest.index_blob, made.manifest.statistics_blob)}


def _with(entry: ShardEntry, **changes: Any) -> ShardEntry:
    return ShardEntry(**{**entry.__dict__, **changes})


@pytest.mark.parametrize("field", ["digest", "bucket", "increment", "rows"])
def test_the_digest_covers_content_and_layout(made: Dataset, field: str) -> None:
    entries = entries_with_statistics(made)
    changed = {"digest": "0" * 64, "bucket": 99, "increment": 1, "rows": entries[1].rows + 1}[field]
    entries[1] = _with(entries[1], **{field: changed})
    assert assemble(made.schema, made.transforms, made.splits, entries)[0].digest != made.digest


@pytest.mark.parametrize("field", ["blob", "size_bytes"])
def test_the_digest_covers_no_file(made: Dataset, field: str) -> None:
    entries = entries_with_statistics(made)
    entries[1] = _with(entries[1], **{field: {"blob": "0" * 32, "size_bytes": 1}[field]})
    assert assemble(made.schema, made.transforms, made.splits, entries)[0].digest == made.digest


def test_transforms_are_part_of_the_digest(made: Dataset) -> None:
    entries = entries_with_statistics(made)
    assert assemble(made.schema, {"x0": {"mean": 0.2}}, made.splits, entries)[0].digest != made.digest


def test_two_shards_for_one_place_are_refused(made: Dataset) -> None:
    entries = entries_with_statistics(made)
    with pytest.raises(ValueError, match="more than one shard for"):
        assemble(made.schema, {}, made.splits, [*entries, entries[0]])


def test_a_damaged_manifest_is_repaired_by_building_again(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=100, shards=2)
    file = tmp_path / made.manifest.path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"manifest.json is damaged: .* build the dataset again"):
        Dataset.open("made", root=tmp_path)
    make_dataset(tmp_path, rows=100, shards=2)
    assert Dataset.open("made", root=tmp_path).verify().ok


def test_a_manifest_that_is_gone_while_a_name_points_at_it_is_damage(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=100, shards=2)
    (tmp_path / made.manifest.path).unlink()
    with pytest.raises(DamagedError, match=r"the manifest of dataset made is missing .*; build it again"):
        Dataset.open("made", root=tmp_path)
    with pytest.raises(NotFoundError, match="no dataset with digest"):
        Dataset.open(made.digest, root=tmp_path)
    make_dataset(tmp_path, rows=100, shards=2)
    assert Dataset.open("made", root=tmp_path).verify().ok


@pytest.mark.parametrize("wrong", [{"start": -5}, {"stop": -1}, {"start": "0"}, {"stop": 1.5}])
def test_rows_that_a_split_cannot_have_are_refused(made: Dataset, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(wrong))}=.*: wanted a number of rows"):
        made.read("train", **wrong)
    with pytest.raises(RequestError, match="rows=-1"):
        made.to_pandas("train", rows=-1)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["half", "list", "deep"])
def test_a_damaged_pointer_says_so(tmp_path: Path, content: str) -> None:
    make_dataset(tmp_path, rows=100, shards=1)
    (tmp_path / "datasets/made.json").write_text(content)
    with pytest.raises(DamagedError, match="made.json is damaged"):
        Dataset.open("made", root=tmp_path)


def test_a_changed_letter_in_a_pointer_or_a_record_is_found(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=100, shards=1)
    record = tmp_path / f"builds/{made.build}.json"
    record.write_text(record.read_text().replace("tests.support", "tests.suqport"))
    with pytest.raises(DamagedError, match=rf"builds/{made.build}.json is damaged"):
        _ = Dataset.open("made", root=tmp_path).provenance
    pointer = tmp_path / "datasets/made.json"
    shutil.copy(pointer, tmp_path / "datasets/other.json")
    with pytest.raises(DamagedError, match="other.json does not name this dataset"):
        Dataset.open("other", root=tmp_path)
    pointer.write_text(pointer.read_text().replace(made.digest[:8], "01234567"))
    with pytest.raises(DamagedError, match=r"datasets/made.json is damaged"):
        Dataset.open("made", root=tmp_path)


def test_a_manifest_in_anothers_place_and_a_missing_index_are_damage(tmp_path: Path) -> None:
    first, second = (make_dataset(tmp_path, rows=100, shards=1, seed=seed) for seed in (1, 2))
    (tmp_path / blob_path(first.manifest.index_blob.name)).unlink()
    with pytest.raises(DamagedError, match=f"{first.manifest.index_blob.name}.arrow is missing although"):
        Dataset.open(first.digest, root=tmp_path)
    shutil.copy(tmp_path / second.manifest.path, tmp_path / first.manifest.path)
    with pytest.raises(DamagedError, match=f"{first.digest}/manifest.json is the manifest of another dataset"):
        Dataset.open(first.digest, root=tmp_path)


def test_a_shard_that_is_there_already_is_read_and_replaced_where_it_is_damaged(tmp_path: Path) -> None:
    store, columns = open_store(tmp_path), Schema((Column("id", "key", "carried", "int64"),), ("id",))
    shard = write_shard({"id": np.arange(100)}, columns)
    file = tmp_path / blob_path(shard.blob)
    put_shard(store, shard)
    first = file.stat()
    put_shard(store, shard)
    assert file.stat().st_ino == first.st_ino
    for damaged in (flipped(bytes(shard.buffer)), bytes(shard.buffer)[:-1], b""):
        file.write_bytes(damaged)
        put_shard(store, shard)
        assert file.read_bytes() == bytes(shard.buffer)


def flipped(raw: bytes) -> bytes:
    return raw[:300] + bytes([raw[300] ^ 1]) + raw[301:]


def test_an_equal_manifest_whose_files_are_gone_is_replaced(tmp_path: Path) -> None:
    """Another version of Arrow may have written other files of the same rows."""
    store, columns = open_store(tmp_path), Schema((Column("id", "key", "carried", "int64"),), ("id",))
    shard = write_shard({"id": np.arange(100)}, columns)
    batch, sink = ipc.decode(shard.buffer), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    packed = sink.getvalue()
    other = dataclasses.replace(shard, buffer=packed, blob=checksum(packed))
    for number, (written, gone) in enumerate([(other, None), (shard, None), (shard, other)]):
        if gone is not None:
            store.delete(blob_path(gone.blob))
        put_shard(store, written)
        entry = ShardEntry.of(written, split="train", increment=0, bucket=0)
        with Build.start(store, "made", f"build-{number}") as build:
            stored = build.publish(*assemble(columns, {}, ("train",), [entry]), {})
        assert stored.index.blob_name(0) == (other if number < 2 else shard).blob
        assert Dataset.open("made", root=tmp_path).verify().ok


def test_publishing_moves_the_pointer_and_keeps_what_was(tmp_path: Path) -> None:
    first = make_dataset(tmp_path, rows=100, shards=1, seed=1)
    second = make_dataset(tmp_path, rows=100, shards=1, seed=2)
    assert Dataset.open("made", root=tmp_path).digest == second.digest != first.digest
    assert Dataset.open(f"made@{first.digest}", root=tmp_path).read("train").num_rows == first.rows("train")


def test_publishing_twice_adopts_what_is_there(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, rows=100, shards=1)
    manifest, blobs = assemble(made.schema, made.transforms, made.splits, entries_with_statistics(made))
    with Build.start(open_store(tmp_path), "made", "again") as build:
        stored = build.publish(manifest, blobs, {"who": "b"})
    assert stored.to_bytes() == made.manifest.to_bytes()
    assert Dataset.open("made", root=tmp_path).provenance["who"] == "b"


def test_the_layout_follows_from_shards_and_bytes() -> None:
    assert [choose_lanes(n) for n in (0, 1, 31, 32, 64, 1000, 4096, 100_000)] == [1, 1, 1, 2, 4, 32, 256, 256]
    assert [choose_buckets(n, 1000) for n in (0, 1000, 1400, 1500, 10_000)] == [1, 1, 1, 2, 8]
    assert choose_window(31, 31 * 131072, 160.0) == 3
    assert choose_window(1, 10, 4.0) == 1
    assert choose_window(100, 100 * 131072, 16.0) == 32
    assert choose_window(100, 100 * 131072, 16000.0) == 2


def test_statistics_of_each_shard_are_kept(made: Dataset) -> None:
    entries = entries_with_statistics(made)
    where = made.manifest.shards("train")
    mine = entries[where]
    classes = [e.statistics["y"].classes for e in mine if e.statistics]
    total = made.manifest.split("train").statistics["y"].classes
    assert total == tuple(map(sum, zip(*[c for c in classes if c], strict=True)))
    assert pa.array([e.rows for e in mine]).to_pylist() == made.manifest.index.rows[where].tolist()
