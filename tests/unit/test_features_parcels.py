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
