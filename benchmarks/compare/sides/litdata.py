"""litData: optimized chunks, ``StreamingDataset`` and ``StreamingDataLoader``."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, optimize

from benchmarks.compare.rows import PART, parts

PACKAGES = ("litdata", "torch", "numpy")
_WRITE: dict[str, Any] = {"chunk_bytes": "64MB"}
_READ: dict[str, Any] = {"shuffle": True, "drop_last": False, "batch_decode": 0}
_LOAD: dict[str, Any] = {"num_workers": os.cpu_count(), "persistent_workers": True}


def settings() -> dict[str, Any]:
    """What is given to litData."""
    return {"optimize": _WRITE, "StreamingDataset": _READ, "StreamingDataLoader": _LOAD}


def samples(number: int, rows: int) -> Iterator[dict[str, Any]]:
    """The rows of one part as samples of two arrays, the label first among the floats."""
    for part in parts(rows):
        if part.first == number * PART:
            dense = np.concatenate([part.labels[:, None], part.floats], axis=1)
            yield from ({"dense": dense[i], "ids": part.ints[i]} for i in range(len(dense)))


def prepare(folder: Path, rows: int) -> None:
    """Chunks of samples, by the tool's own writer."""
    numbers = list(range(-(-rows // PART)))
    write = functools.partial(samples, rows=rows)
    optimize(fn=write, inputs=numbers, output_dir=str(folder), num_workers=os.cpu_count(), **_WRITE)


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """One loader, whose every pass is an epoch."""
    dataset = StreamingDataset(str(folder), **_READ)
    loader = StreamingDataLoader(dataset, batch_size=batch_size, **_LOAD)
    while True:
        yield (batch["dense"][:, 0] for batch in loader)
