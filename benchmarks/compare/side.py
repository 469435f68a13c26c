"""One tool in a process of its own: ``python -m benchmarks.compare.side TOOL prepare|read FOLDER ROWS BATCH``.

It answers JSON, a line each. ``prepare`` writes the rows and ends. ``read`` says what it is, then waits for a line on
stdin with a number of epochs, takes their batches, and says what they held and how long that took.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    """Runs what the command line says."""
    tool, action, folder, rows, batch = sys.argv[1:]
    answer = _take_stdout()
    side = importlib.import_module(f"benchmarks.compare.sides.{tool}")
    if action == "prepare":
        started = time.perf_counter()
        side.prepare(Path(folder), int(rows))
        answer({"seconds": time.perf_counter() - started})
    else:
        _read(side, Path(folder), int(batch), answer)


def _take_stdout() -> Callable[[dict[str, Any]], None]:
    """Keeps stdout for answers: what tools print goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        channel.write(json.dumps(content) + "\n")
        channel.flush()

    return answer


def _read(side: ModuleType, folder: Path, batch: int, answer: Callable[[dict[str, Any]], None]) -> None:
    versions = {package: importlib.metadata.version(package) for package in side.PACKAGES}
    epochs = side.epochs(folder, batch)
    answer({"versions": versions, "settings": side.settings()})
    for line in sys.stdin:
        rows = labels = batches = 0
        started = time.perf_counter()
        for _ in range(int(line)):
            for values in next(epochs):
                rows += len(values)
                labels += int(values.sum())
                batches += 1
        answer({"rows": rows, "labels": labels, "batches": batches, "seconds": time.perf_counter() - started})


if __name__ == "__main__":
    main()
