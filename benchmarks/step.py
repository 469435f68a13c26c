"""Claim: a training step is at most 2 % slower than a bare PyTorch loop with Horovod's DistributedOptimizer.

All train the same model on batches of the same loader, in the same processes, in turn. The bare loop is taken twice:
with fresh gradients in every step (PyTorch's default) and with gradients that are kept and zeroed, as ours are; the
table shows the ratio of paired repeats to the faster of the two, with a bootstrap interval. Ours also hashes row
numbers, checks for NaN and can be aborted.

    python -m benchmarks.step [--workers 1 2] [--repeats 30] [--steps 20]
"""

import argparse
import contextlib
import functools
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.versions import surroundings

ROWS = 200_000
BATCH = 4096
HIDDEN = (512, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    from tests.support.datasets import Features, make_dataset

    with tempfile.TemporaryDirectory() as root:
        make_dataset(root, rows=ROWS, shards=8, features=Features(numeric=32, categorical=8, cardinality=1000))
        print(f"{surroundings('torch', 'horovod')}; one thread a worker; milliseconds a step")
        print(f"{'workers':>7} {'fresh':>9} {'kept':>9} {'ours':>9} {'ratio':>7}  95 % interval")
        for size in arguments.workers:
            fresh, kept, ours = _measure(root, size, arguments.repeats, arguments.steps)
            low, ratio, high = _interval(ours / min(fresh, kept, key=np.median))
            times = " ".join(f"{1e3 * np.median(each):9.2f}" for each in (fresh, kept, ours))
            print(f"{size:>7} {times} {ratio:7.3f}  [{low:.3f}, {high:.3f}]")


def _measure(root: str, size: int, repeats: int, steps: int) -> Any:
    """Seconds a step, of rank 0: an array of ``repeats`` for each loop."""
    from mltrain.collectives import RendezvousServer

    server = RendezvousServer()
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(size):
        pipe, theirs = context.Pipe()
        process = context.Process(target=_rank, args=(root, rank, size, server.address, repeats, steps, theirs))
        process.start()
        pipes.append(pipe)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    server.close()
    return np.array(results[0])


def _rank(root: str, rank: int, size: int, address: str, repeats: int, steps: int, pipe: Connection) -> None:
    import torch

    from mltrain.collectives import Membership, create
    from mltrain.data import Dataset, Loader

    torch.set_num_threads(1)
    made = create("horovod")
    made.join(Membership(1, rank, size, rank, size, 0, 1, "localhost", "lo", address), 60.0)
    dataset = Dataset.open("made", root=root)
    # The same work for the loader on both sides.
    loader = Loader(dataset, "train", global_batch_size=BATCH, rank=rank, world_size=size, row_numbers=True)
    reducer, our_step = _ours(dataset, made, rank)
    loops = [_bare(dataset, size, kept=False), _bare(dataset, size, kept=True), our_step]
    times: list[list[float]] = [[] for _ in loops]
    with reducer:
        batches = _endless(loader)
        for repeat in range(repeats + 2):
            order = list(enumerate(loops))
            for which, step in order if repeat % 2 else reversed(order):
                # Ranks start each turn together.
                made.gather(torch.zeros(1))
                began = time.perf_counter()
                for number in range(steps):
                    step(next(batches), number)
                if repeat >= 2:
                    times[which].append((time.perf_counter() - began) / steps)
    pipe.send(times)
    made.leave()


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


def _model(dataset: Any) -> Any:
    import torch

    from mltrain.models import tabular_mlp

    torch.manual_seed(0)
    return tabular_mlp(dataset.schema, hidden=HIDDEN)


def _bare(dataset: Any, size: int, *, kept: bool) -> Any:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    model = _model(dataset)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if size > 1:
        import horovod.torch as hvd

        names = [(f"{kept}.{name}", parameter) for name, parameter in model.named_parameters()]
        optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=names)

    def step(batch: Any, number: int) -> None:
        # Horovod's zero_grad takes no argument, so that of the class that it wraps is called.
        torch.optim.Optimizer.zero_grad(optimizer, set_to_none=not kept)
        outputs = model(batch)["y"].reshape(-1)
        binary_cross_entropy_with_logits(outputs, batch.labels["y"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _ours(dataset: Any, made: Any, rank: int) -> Any:
    from mltrain.config import OptimizerConfig
    from mltrain.evaluate import tasks
    from mltrain.train.control import Wishes
    from mltrain.train.optimizers import build_optimizer
    from mltrain.train.reducer import Reducer
    from mltrain.train.schedule import factor
    from mltrain.train.step import Recipe, train_step

    model = _model(dataset)
    optimizer = build_optimizer(model, OptimizerConfig.model_validate({}))
    reducer = Reducer(model, made)
    rate = functools.partial(factor, "constant", total_steps=1000)
    recipe = Recipe(tasks(dataset.schema), 1 << 20, None, contextlib.nullcontext, rate, 0)

    def step(batch: Any, number: int) -> None:
        train_step(model, optimizer, batch, reducer, recipe, step=number, rank=rank, wishes=Wishes())

    return reducer, step


def _interval(ratios: Any) -> tuple[float, float, float]:
    """Bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(np.median(ratios)), float(high)


if __name__ == "__main__":
    main()
