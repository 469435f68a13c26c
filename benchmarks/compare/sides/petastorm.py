"""petastorm: Parquet files, ``make_batch_reader`` and its ``BatchedDataLoader``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from petastorm import make_batch_reader
from petastorm.pytorch import BatchedDataLoader

from benchmarks.compare.rows import PART, SHUFFLE_BUFFER, parts

PACKAGES = ("petastorm", "pyarrow", "torch", "numpy")
# With no more row groups than its pool takes ahead (4 a worker), petastorm 0.13.1 sometimes ends an epoch before it
# has begun: the thread that hands them out may be done before the one that waits has looked.
_WRITE: dict[str, Any] = {"row_group_size": PART // 2, "compression": "snappy"}
_READ: dict[str, Any] = {"reader_pool_type": "thread", "workers_count": os.cpu_count(), "shuffle_row_groups": True}
_LOAD: dict[str, Any] = {"shuffling_queue_capacity": SHUFFLE_BUFFER}


def settings() -> dict[str, Any]:
    """What is given to petastorm."""
    return {"write_table": _WRITE, "make_batch_reader": _READ, "BatchedDataLoader": _LOAD}


def prepare(folder: Path, rows: int) -> None:
    """A file of two row groups for each part, a column a feature."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts(rows):
        pq.write_table(pa.table(part.columns()), folder / f"{part.first:010}.parquet", **_WRITE)


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """A reader and a loader for each epoch, as in petastorm's examples."""
    while True:
        reader = make_batch_reader(f"file://{folder}", num_epochs=1, **_READ)
        with BatchedDataLoader(reader, batch_size=batch_size, **_LOAD) as loader:
            yield (batch["y"] for batch in loader)
