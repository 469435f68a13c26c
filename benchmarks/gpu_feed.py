"""Batches on their way to a GPU while it computes, beside a raw copy from page-locked memory.

Claim: on a machine with a GPU, a loader with ``device="cuda"`` delivers bytes at >= 0.9x of a bare copy of page-locked
memory of a batch's size, while the GPU multiplies matrices. Sides alternate. Elsewhere it says so and ends.

    python -m benchmarks.gpu_feed [--rows 4000000] [--batch 65536] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.loader import workload
from benchmarks.versions import surroundings
from mltrain.data import Loader

MATRIX = 1024


def feed(loader: Loader) -> Callable[[], float]:
    """Bytes a second of a warm epoch, with a product of matrices a batch."""
    left = torch.rand(MATRIX, MATRIX, device="cuda")

    def run() -> float:
        moved = 0
        started = time.perf_counter()
        for batch in loader:
            torch.mm(left, left)
            moved += sum(tensor.nbytes for tensor in batch.tensors())
        torch.cuda.synchronize()
        return moved / (time.perf_counter() - started)

    return run


def raw_copy(size_bytes: int, times: int) -> Callable[[], float]:
    """Bytes a second of copies from one page-locked buffer, with nothing beside."""
    source = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")

    def run() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return size_bytes * times / (time.perf_counter() - started)

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU")
        return
    print(surroundings("torch", "numpy"), flush=True)
    with tempfile.TemporaryDirectory(prefix="mltrain-benchmark-") as folder:
        dataset = workload(Path(folder), args.rows)
        loader = Loader(dataset, "train", global_batch_size=args.batch, device="cuda")
        sides = (feed(loader), raw_copy(args.batch * 160, len(loader)))
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds + 1):
            for side, run in zip(rates, sides, strict=True):
                side.append(run())
        ours, theirs = (statistics.median(side[1:]) / 1e9 for side in rates)
        print(f"{torch.cuda.get_device_name()}, batches of {args.batch} rows of 160 bytes")
        print(f"fed while it computes {ours:.2f} GB/s, raw copy {theirs:.2f} GB/s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
