"""An epoch over a cold cache with and without 50 ms of latency before each request.

Claim: prefetching hides the latency. A proxy before a real S3 server delays each request; training is a pause per
step, as on a GPU; sides alternate, each with an empty cache. The first window has to be waited for; what training
waits beyond that is not hidden.

    python -m benchmarks.latency [--rows 1000000] [--batch 8192] [--step-ms 20] [--delay-ms 50] [--rounds 3]
"""

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.loader import workload
from benchmarks.versions import surroundings
from mltrain.data import Dataset, Loader, NodeCache
from tests.support import faults_http, s3


def delay(seconds: float, method: str, path: str) -> None:
    """What a request waits for."""
    time.sleep(seconds)


def epoch(uri: str, cache: Path, batch: int, step_s: float) -> tuple[float, float, float]:
    """Seconds of an epoch over a cold cache, those until its first batch, and those it waited after that."""
    loader = Loader(
        Dataset.open("workload", root=uri, cache=NodeCache(cache)), "train", global_batch_size=batch, shuffle=True
    )
    started = time.perf_counter()
    first_s = 0.0
    for _ in loader:
        first_s = first_s or time.perf_counter() - started
        time.sleep(step_s)
    took_s = time.perf_counter() - started
    shutil.rmtree(cache)
    return took_s, first_s, loader.counters.wait_s - first_s


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(surroundings("obstore", "torch", "numpy"), flush=True)
    with tempfile.TemporaryDirectory(prefix="mltrain-benchmark-") as name:
        folder = Path(name)
        with s3.serve(folder / "s3") as server, s3.environment(server):
            uri = server.bucket()
            workload(server.local(uri), args.rows)
            results: dict[float, list[tuple[float, float, float]]] = {0.0: [], args.delay_ms: []}
            with faults_http.before(server.endpoint) as proxy:
                os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
                for _ in range(args.rounds):
                    for delay_ms, runs in results.items():
                        proxy.before_request = functools.partial(delay, delay_ms / 1e3)
                        runs.append(epoch(uri, folder / "cache", args.batch, args.step_ms / 1e3))
    print(f"{args.rows} rows of 160 bytes, batch {args.batch}, {args.step_ms} ms a step; medians of {args.rounds}")
    print(f"{'delay, ms':>10} {'epoch, s':>10} {'first batch, s':>15} {'waited after it, s':>20}")
    for delay_ms, runs in results.items():
        took, first, waited = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{delay_ms:>10.0f} {took:>10.2f} {first:>15.2f} {waited:>20.2f}")


if __name__ == "__main__":
    main()
