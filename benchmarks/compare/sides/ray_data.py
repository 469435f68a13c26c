"""Ray Data: Parquet files, ``iter_torch_batches`` with a local shuffle."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from benchmarks.compare.rows import SHUFFLE_BUFFER, parts

PACKAGES = ("ray", "pyarrow", "torch", "numpy")
_READ: dict[str, Any] = {"shuffle": "files"}
_ITERATE: dict[str, Any] = {"local_shuffle_buffer_size": SHUFFLE_BUFFER, "prefetch_batches": 1}


def settings() -> dict[str, Any]:
    """What is given to Ray."""
    return {"num_cpus": os.cpu_count(), "read_parquet": _READ, "iter_torch_batches": _ITERATE}


def prepare(folder: Path, rows: int) -> None:
    """A file of one row group for each part, a column a feature."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts(rows):
        pq.write_table(pa.table(part.columns()), folder / f"{part.first:010}.parquet", compression="snappy")


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """Iterates anew over one Dataset; each pass reads the files again, as documented."""
    return batches_of(read(folder), batch_size)


def read(folder: Path) -> ray.data.Dataset:
    """The files as a Dataset, in a Ray of this process."""
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    # Never a cluster that somebody else runs on this machine.
    ray.init("local", num_cpus=os.cpu_count(), **quiet)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data.read_parquet(str(folder), **_READ)


def batches_of(dataset: ray.data.Dataset, batch_size: int) -> Iterator[Iterator[Any]]:
    """Epochs of a Dataset."""
    while True:
        yield (batch["y"] for batch in dataset.iter_torch_batches(batch_size=batch_size, **_ITERATE))
