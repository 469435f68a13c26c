"""mosaicml-streaming: MDS shards, ``StreamingDataset`` and ``StreamingDataLoader``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

from benchmarks.compare.rows import FLOATS, INTS, parts

PACKAGES = ("mosaicml-streaming", "torch", "numpy")
_WRITE = {"dense": f"ndarray:float32:{1 + FLOATS}", "ids": f"ndarray:int32:{INTS}"}
_LOAD: dict[str, Any] = {"num_workers": os.cpu_count(), "persistent_workers": True}


def settings() -> dict[str, Any]:
    """What is given to streaming."""
    return {"MDSWriter": _WRITE, "StreamingDataset": {"shuffle": True}, "StreamingDataLoader": _LOAD}


def prepare(folder: Path, rows: int) -> None:
    """Shards of the default size, uncompressed: samples of two arrays, the label first among the floats."""
    with MDSWriter(out=str(folder), columns=_WRITE) as writer:
        for part in parts(rows):
            dense = np.concatenate([part.labels[:, None], part.floats], axis=1)
            for i in range(len(dense)):
                writer.write({"dense": dense[i], "ids": part.ints[i]})


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """One loader, whose every pass is an epoch."""
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
    loader = StreamingDataLoader(dataset, batch_size=batch_size, **_LOAD)
    while True:
        yield (batch["dense"][:, 0] for batch in loader)
