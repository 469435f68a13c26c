"""Ray Data over rows that ``materialize()`` has put, decoded, into Ray's object store: for tables that fit into it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.compare.sides import ray_data

PACKAGES = ray_data.PACKAGES
prepare = ray_data.prepare


def settings() -> dict[str, Any]:
    """What is given to Ray."""
    return {**ray_data.settings(), "materialize": True}


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """Reads the files once, then iterates anew over what is in memory."""
    return ray_data.batches_of(ray_data.read(folder).materialize(), batch_size)
