"""Claim: a checkpoint costs the steps at most 1.1 times the bare copy, and storage gets 0.8 of what plain puts give it.

One process holds a model and Adam's state (three times the weights) and saves it again and again: with this library,
with `torch.save` (to memory, then one put: the steps wait for all of it), with torch.distributed.checkpoint's
async_save (to a directory), and with Ray Train's report() (a worker of its own saves to a local directory, which is
uploaded beside the steps). All take turns, in a directory and on a local S3 server. Beside them: a bare copy of the
same tensors to memory that is used again (the least a consistent copy can cost), and plain puts of as many objects of
the same size from four threads (what the store takes).

With ``--ranks``, so many ranks write their shares of one checkpoint at the same time, beside plain puts from four
threads for each; the sides that have no ranks here are left out.

    python -m benchmarks.checkpoint [--megabytes 96] [--rounds 5] [--ranks 1]
"""

import argparse
import io
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from pyarrow.fs import S3FileSystem
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from benchmarks.checkpoint_ray import RayReport
from benchmarks.versions import surroundings
from mltrain.storage import Store, open_store
from mltrain.train import checkpoints
from mltrain.train.layout import PART_BYTES
from tests.support import s3
from tests.support.saving import Ranks

_STREAMS = 4


@dataclass
class Took:
    """Seconds that the steps stood still, until all was durable, and to read it back; bytes stored."""

    stall_s: float
    durable_s: float
    restore_s: float
    size_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=96, help="of weights and Adam's state together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1, help="all in this process")
    given = parser.parse_args()
    # DCP warns of what does not matter in one process.
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tensors = _replica(given.megabytes * 1_000_000)
    print(surroundings("torch", "obstore", "ray"))
    print(f"{given.megabytes} MB in {len(tensors)} tensors, {given.ranks} ranks, {given.rounds} rounds, medians")
    if given.ranks > 1:
        _compare_ranks(tensors, given.rounds, given.ranks)
        return
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        with RayReport(f"{folder}/ray", None, tensors) as report:
            _compare("directory", open_store(f"{folder}/root"), tensors, given.rounds, report, Path(folder, "dcp"))
        with s3.serve(Path(folder, "s3")) as server, s3.environment(server):
            bucket = server.bucket()
            filesystem = S3FileSystem(endpoint_override=server.endpoint)
            with RayReport(f"{bucket.removeprefix('s3://')}/ray", filesystem, tensors) as report:
                _compare("S3", open_store(bucket), tensors, given.rounds, report, None)
        dist.destroy_process_group()


def _compare_ranks(tensors: dict[str, Tensor], rounds: int, ranks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _compare("directory", open_store(f"{folder}/root"), tensors, rounds, None, None, ranks)
        with s3.serve(Path(folder, "s3")) as server, s3.environment(server):
            _compare("S3", open_store(server.bucket()), tensors, rounds, None, None, ranks)


def _replica(size_bytes: int) -> dict[str, Tensor]:
    """Weights of layers of 4 MB, and two moments of each."""
    made, layers = {}, max(1, size_bytes // 3 // (4 << 20))
    for layer in range(layers):
        for name in (f"model.{layer}.weight", f"optimizer.{layer}.exp_avg", f"optimizer.{layer}.exp_avg_sq"):
            made[name] = torch.randn(1024, 1024)
    return made


def _compare(
    place: str,
    store: Store,
    tensors: dict[str, Tensor],
    rounds: int,
    report: RayReport | None,
    directory: Path | None,
    size: int = 1,
) -> None:
    """All sides in turn, every round; prints medians, and medians of the rounds' ratios."""
    buffers = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    numbers, noise = itertools.count(1), memoryview(os.urandom(PART_BYTES))  # zeros might be stored for less
    with Ranks(store.sub("ours"), keep=1, part_bytes=PART_BYTES) as ranks:
        ranks.form(size)
        sides: dict[str, Callable[[], Took]] = {
            "ours": lambda: _ours(ranks, store.sub("ours"), tensors, next(numbers)),
            "bare copy": lambda: _bare_copy(tensors, buffers),
            "plain puts": lambda: _plain_puts(store, tensors, noise, size),
        }
        if size == 1:
            sides["torch.save"] = lambda: _torch_save(store, tensors)
        if report is not None:
            sides["Ray report()"] = lambda: Took(*report.save())
        if directory is not None:
            sides["DCP async_save"] = lambda: _dcp(tensors, directory)
        for side in sides.values():
            side()  # the first of each pays for fresh memory
        found: dict[str, list[Took]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                found[name].append(side())
    print(f"\n{place:<16} {'stall ms':>9} {'durable ms':>11} {'restore ms':>11} {'MB':>7}")
    for name, took in found.items():
        shown = [1e3 * statistics.median(getattr(each, what) for each in took) for what in _TIMES]
        print(f"{name:<16} {shown[0]:>9.1f} {shown[1]:>11.1f} {shown[2]:>11.1f} {took[-1].size_bytes / 1e6:>7.1f}")
    ours = found["ours"]
    stall = [one.stall_s / bare.stall_s for one, bare in zip(ours, found["bare copy"], strict=True)]
    speed = [plain.durable_s / one.durable_s for one, plain in zip(ours, found["plain puts"], strict=True)]
    print(f"stall / bare copy {_spread(stall)}; speed / plain puts {_spread(speed)}")


_TIMES = ("stall_s", "durable_s", "restore_s")


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _ours(ranks: Ranks, store: Store, tensors: dict[str, Tensor], step: int) -> Took:
    began = time.perf_counter()
    ranks.copy(step, tensors)
    stall_s = time.perf_counter() - began
    for writer in ranks.writers:
        writer.wait(lambda: None)
    made = None
    while made is None:
        made = ranks.shelf.take(ranks.messages.get(), lambda: None)
    durable_s = time.perf_counter() - began
    ranks.shelf.tidy()
    began = time.perf_counter()
    found = checkpoints.read_tensors(store, made)
    restore_s = time.perf_counter() - began
    assert found.keys() == tensors.keys()
    return Took(stall_s, durable_s, restore_s, made.size_bytes)


def _torch_save(store: Store, tensors: dict[str, Tensor]) -> Took:
    began = time.perf_counter()
    file = io.BytesIO()
    torch.save(tensors, file)
    store.put("torch.pt", file.getbuffer())
    stall_s = time.perf_counter() - began
    began = time.perf_counter()
    torch.load(io.BytesIO(store.get("torch.pt")), weights_only=True)
    return Took(stall_s, stall_s, time.perf_counter() - began, file.getbuffer().nbytes)


def _dcp(tensors: dict[str, Tensor], directory: Path) -> Took:
    shutil.rmtree(directory, ignore_errors=True)
    began = time.perf_counter()
    saving = async_save(tensors, checkpoint_id=directory)
    stall_s = time.perf_counter() - began
    assert not isinstance(saving, AsyncSaveResponse)
    saving.result()
    durable_s = time.perf_counter() - began
    into = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    began = time.perf_counter()
    load(into, checkpoint_id=directory)
    restore_s = time.perf_counter() - began
    return Took(stall_s, durable_s, restore_s, sum(file.stat().st_size for file in directory.iterdir()))


def _bare_copy(tensors: dict[str, Tensor], buffers: dict[str, Tensor]) -> Took:
    began = time.perf_counter()
    for name, tensor in tensors.items():
        buffers[name].copy_(tensor)
    return Took(time.perf_counter() - began, float("nan"), float("nan"), 0)


def _plain_puts(store: Store, tensors: dict[str, Tensor], data: memoryview, ranks: int) -> Took:
    """As many bytes in objects of the same size, from as many threads as the ranks have."""
    share, sizes = sum(tensor.nbytes for tensor in tensors.values()) // ranks, []
    for _ in range(ranks):
        left = share
        while left:
            sizes.append(min(left, PART_BYTES))
            left -= sizes[-1]
    began = time.perf_counter()
    with ThreadPoolExecutor(_STREAMS * ranks) as pool:
        list(pool.map(lambda number: store.put(f"plain/{number}", data[: sizes[number]]), range(len(sizes))))
    return Took(float("nan"), time.perf_counter() - began, float("nan"), sum(sizes))


if __name__ == "__main__":
    main()
