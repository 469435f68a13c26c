import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mltrain.features import parcels


def rows(count: int, places: int) -> pa.RecordBatch:
    random = np.random.default_rng(count)
    return pa.record_batch(
        {
            "place": pa.array(random.integers(0, places, count), pa.int32()),
            "number": np.arange(count),
            "text": pa.array([None if i % 5 == 0 else "é" * (i % 9) for i in range(count)]),
            "list": pa.array([list(range(i % 4)) for i in range(count)], pa.list_(pa.int32())),
        }
    )


@pytest.mark.parametrize("places", [1, 7, 1 << 20])
@pytest.mark.parametrize("limit", [1 << 18, 200])
def test_rows_come_out_of_the_parcels_of_their_place(monkeypatch: pytest.MonkeyPatch, places: int, limit: int) -> None:
    monkeypatch.setattr(parcels, "_PARCEL_BYTES", limit)
    given = rows(500, places)
    batches = [given.slice(start, 90) for start in range(0, 500, 90)]
    wrapped = pa.Table.from_batches(list(parcels.wrap(iter(batches), "place"))).combine_chunks()
    found = []
    for parcel in wrapped.to_batches(max_chunksize=1):
        (inside,) = parcels.unwrap(parcel)
        assert pc.unique(inside.column("place")).to_pylist() == parcel.column("place").to_pylist()
        assert inside.nbytes <= limit or inside.num_rows == 1
        found.append(inside)
    assert pa.Table.from_batches(found).sort_by("number").combine_chunks() == pa.table(given).combine_chunks()


def test_rows_that_are_in_no_parcel_are_themselves() -> None:
    assert list(parcels.unwrap(rows(3, 2))) == [rows(3, 2)]


def fixed(count: int, places: int) -> pa.RecordBatch:
    """Rows of columns of one width, and one that is null throughout."""
    random = np.random.default_rng(count)
    return pa.record_batch(
        {
            "before": pa.array(random.integers(0, 2**62, count)),
            "place": pa.array(random.integers(0, places, count), pa.int32()),
            "bytes": pa.array([random.bytes(12) for _ in range(count)], pa.binary()),
            "day": pa.array(random.integers(0, 20_000, count), pa.int32()).cast(pa.date32()),
            "nothing": pa.nulls(count, pa.string()),
            "small": pa.array(random.integers(-9, 9, count), pa.int8()),
        }
    )


@pytest.mark.parametrize("limit", [1 << 18, 100])
def test_rows_of_one_width_come_out_of_all_parcels_of_a_place_at_once(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(parcels, "_PARCEL_BYTES", limit)
    given = fixed(300, 5)
    wrapped = pa.Table.from_batches(list(parcels.wrap(iter([given.slice(0, 170), given.slice(170)]), "place")))
    found = [one for batch in wrapped.combine_chunks().to_batches() for one in parcels.unwrap(batch.slice(1))]
    first = next(parcels.unwrap(wrapped.to_batches()[0].slice(0, 1)))
    assert len(found) == 1
    assert found[0].schema == given.schema
    everything = pa.Table.from_batches([first, *found])
    assert everything.sort_by("before").combine_chunks() == pa.table(given).sort_by("before").combine_chunks()


def test_a_column_that_loses_its_width_does_not_cut_parcels_short() -> None:
    whole = fixed(400, 1)
    holes = pa.array([None if i % 100 == 99 else i % 100 for i in range(400)], pa.int8())
    given = whole.set_column(5, "small", holes)
    batches = [given.slice(start, 50) for start in range(0, 400, 50)]
    wrapped = list(parcels.wrap(iter(batches), "place"))
    # Every second batch has a hole: the rows before the first of them, and all others.
    assert [batch.num_rows for batch in wrapped] == [1, 1]
    found = pa.Table.from_batches([one for batch in wrapped for one in parcels.unwrap(batch)])
    assert found.sort_by("before").combine_chunks() == pa.table(given).sort_by("before").combine_chunks()


def test_notes_travel_beside_parcels() -> None:
    wrapped = list(parcels.wrap(iter([rows(5, 1)]), "place"))
    table = pa.Table.from_batches([parcels.note("place", 7, "{é}"), *wrapped])
    assert parcels.notes(table.slice(0, 1)) == ["{é}"]


def test_no_rows_make_no_parcels() -> None:
    assert list(parcels.wrap(iter([fixed(0, 1)]), "place")) == []


def test_rows_of_nothing_but_nulls_are_still_rows() -> None:
    given = pa.record_batch({"text": pa.nulls(7, pa.string()), "place": pa.array([2, 0, 1, 0, 2, 2, 2], pa.int32())})
    (wrapped,) = parcels.wrap(iter([given]), "place")
    assert wrapped.column("place").to_pylist() == [0, 1, 2]
    found = [one for i in range(3) for one in parcels.unwrap(wrapped.slice(i, 1))]
    assert [one.num_rows for one in found] == [2, 1, 4]
    assert {one.column("text").null_count for one in found} == {1, 2, 4}
