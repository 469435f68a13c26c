"""What an epoch fetches from object storage, counted at a real S3 server, over the bytes that there are.

Claims, at 32 shards a lane: at most 1.1 where the number of nodes divides the lanes; at most 1.3 otherwise, and when a
node leaves in mid-epoch; at most 1.02 on one node for any number of workers, which share its cache. Nodes are
simulated one after the other, each with a cache of its own; they prefetch as loaders do. The shards are tiny, their
number is not: 256 lanes, and a window of 3 shards, as with shards of 131072 rows of 160 bytes.

    python -m benchmarks.bytes [--lanes 256] [--nodes 1,2,8,32,63,64] [--workers 4]
"""

import argparse
import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.versions import surroundings
from tests.support import s3
from tests.support.nodes import Spread, fetched_ratio, make_spread, read_share

PER_LANE, ROWS_PER_SHARD, WINDOW, EPOCH = 32, 64, 3, 32
PROCESSES = 2


def read(spread: Spread, folder: Path, changes: list[tuple[int, int]]) -> None:
    """Reads an epoch. ``changes``: from which step on there are how many nodes."""
    ends = [step for step, _ in changes[1:]] + [EPOCH]
    stretches = [(range(start, end), nodes) for (start, nodes), end in zip(changes, ends, strict=True)]
    most = max(nodes for _, nodes in stretches)
    shares = [[(steps, node, nodes) for steps, nodes in stretches if node < nodes] for node in range(most)]
    run(spread, [folder / f"node-{node}" for node in range(most)], shares, min(PROCESSES, most))


def run(spread: Spread, caches: list[Path], shares: list[list[tuple[range, int, int]]], processes: int) -> None:
    """Reads shares in some processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(read_share, [spread] * len(shares), caches, shares))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=256)
    parser.add_argument("--nodes", default="1,2,8,32,63,64")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    print(surroundings("obstore", "numpy"), flush=True)
    counts = [int(text) for text in args.nodes.split(",")]
    with tempfile.TemporaryDirectory(prefix="mltrain-benchmark-") as name:
        folder = Path(name)
        with s3.serve(folder / "s3") as server, s3.environment(server):
            spread = make_spread(
                server,
                lanes=args.lanes,
                per_lane=PER_LANE,
                rows_per_shard=ROWS_PER_SHARD,
                window=WINDOW,
                epoch=EPOCH,
            )
            print(f"{args.lanes * PER_LANE} shards in {args.lanes} lanes, windows of {WINDOW}, {EPOCH} steps an epoch")
            print(f"{'':<44} {'fetched / there is':>18} {'s':>6}")

            def row(title: str, work: Callable[[Path], None]) -> None:
                before, started = server.reads(), time.perf_counter()
                work(folder / "caches")
                took = time.perf_counter() - started
                ratio = fetched_ratio(server, spread, folder / "caches", before)
                print(f"{title:<44} {ratio:>18.3f} {took:>6.0f}", flush=True)
                shutil.rmtree(folder / "caches")

            for nodes in counts:
                row(
                    f"{nodes} {'node' if nodes == 1 else 'nodes'}",
                    functools.partial(read, spread, changes=[(0, nodes)]),
                )
            for step in (EPOCH // 2, EPOCH // 2 + 1) if counts[-1] > 1 else ():
                changes = [(0, counts[-1]), (step, counts[-1] - 1)]
                title = f"{counts[-1]} nodes, {counts[-1] - 1} from step {step} on"
                row(title, functools.partial(read, spread, changes=changes))
            workers = [[(range(EPOCH), rank, args.workers)] for rank in range(args.workers)]
            one = lambda caches: run(spread, [caches / "node"] * args.workers, workers, args.workers)  # noqa: E731
            row(f"1 node of {args.workers} workers at once", one)


if __name__ == "__main__":
    main()
