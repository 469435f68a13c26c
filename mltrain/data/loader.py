"""The loader: batches of one rank's share, in an order that depends on no number of workers."""

import dataclasses
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mltrain.data.batch import Batch
from mltrain.data.dataset import Dataset
from mltrain.data.order import EpochOrder, Segment, SequentialEpoch, ShuffledEpoch, steps
from mltrain.data.pipeline import Pipeline
from mltrain.errors import RequestError

if TYPE_CHECKING:
    from mltrain.data.cuda import CudaFeed
    from mltrain.data.gather import Gatherer, Piece, Slot

STATE_VERSION = 1
# A batch and the one before it stay valid while the next ones are prepared.
_HELD = 2
_JOIN_S = 0.2
# Steps are planned together, about this many rows at a time: planning one costs nearly as much as planning several.
_PLANNED_ROWS = 1 << 17
# Without windows, so many times as far ahead is prefetched.
_PREFETCHED_GROUPS = 4


@dataclasses.dataclass(frozen=True)
class Counters:
    """What a loader has done since it was made.

    Attributes:
        batches: batches handed out.
        rows: rows in them.
        shards_touched: different shards read.
        bytes_touched: their size together.
        wait_s: seconds that the training thread waited for batches, or helped to gather them.
    """

    batches: int
    rows: int
    shards_touched: int
    bytes_touched: int
    wait_s: float


class Loader:
    """Iterates over a rank's share of each step of an epoch.

    Every row of the split comes exactly once an epoch, and in the same step, for any ``world_size`` and through
    changes of it. The last step of an epoch keeps its real, shorter size; a share may be empty. A thread prepares
    batches ahead; it ends with the iteration, or when the loader is closed or collected, or the iteration is left.

    Args:
        dataset: what to read.
        split: name of the split.
        global_batch_size: rows a step, over all ranks.
        seed: of the order.
        rank: this worker, from 0. Number ranks node by node, so that a node reads neighbouring lanes.
        world_size: number of workers.
        columns: features to read; all by default. Labels and weight always come along.
        shuffle: False gives the canonical order, each rank a contiguous share of it.
        device: ``"cpu"`` or a CUDA device: batches are then copied through page-locked memory on a stream of their own.
        row_numbers: offer canonical row numbers as ``batch["__row__"]``.
        prefetch: batches to prepare ahead.

    Raises:
        RequestError: no such split or column, or an impossible size.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        columns: Iterable[str] | None = None,
        shuffle: bool = True,
        device: Any = "cpu",
        row_numbers: bool = False,
        prefetch: int = 3,
    ) -> None:
        dataset.check_split(split)
        _check_whole(1, global_batch_size=global_batch_size, prefetch=prefetch)
        _check_whole(None, seed=seed)
        self.dataset = dataset
        self.split = split
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.device = device
        self.schema = dataset.schema if columns is None else dataset.schema.subset(columns)
        self._row_numbers = row_numbers
        self._prefetch = prefetch
        self._entry = dataset.manifest.split(split)
        where = dataset.manifest.shards(split)
        self._sizes = dataset.manifest.index.rows[where]
        self._shard_bytes = dataset.manifest.index.size_bytes[where]
        self._first_shard = where.start
        self._touched: set[int] = set()
        self._order: tuple[int, EpochOrder] | None = None
        self._epoch = self._step = 0
        self._batches = self._rows = 0
        self._wait_s = 0.0
        self._slots: list[Slot] = []
        self._closed = False
        self._running: weakref.ref[_Iteration] | None = None
        self._device = _open_device(device)
        self.reshard(rank, world_size)

    def __len__(self) -> int:
        """Steps an epoch."""
        return steps(self._entry.rows, self.global_batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of this epoch; the next call gives the next epoch. An iteration that still runs is over.

        Raises:
            RequestError: the loader is closed.
        """
        if self._closed:
            raise RequestError("this loader is closed; make another one")
        self._stop()
        self.seek(*self.position)
        iteration = _Iteration(self)
        # Weak, so that leaving the loop drops the iteration, which ends its thread.
        self._running = weakref.ref(iteration)
        return iteration

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, step) of the batch that comes next."""
        return (self._epoch + 1, 0) if self._step >= len(self) else (self._epoch, self._step)

    @property
    def counters(self) -> Counters:
        """What the loader has done so far."""
        touched = sorted(self._touched.copy())
        return Counters(
            batches=self._batches,
            rows=self._rows,
            shards_touched=len(touched),
            bytes_touched=int(self._shard_bytes[touched].sum()),
            wait_s=self._wait_s,
        )

    def seek(self, epoch: int, step: int = 0) -> None:
        """Goes to a step of an epoch, in a time that depends on neither. A running iteration is over.

        Raises:
            RequestError: there is no such step.
        """
        _check_whole(0, epoch=epoch, step=step)
        if step > len(self):
            raise RequestError(f"no step {step} in epoch {epoch}: an epoch of {self.split!r} has {len(self)} steps")
        self._stop()
        self._epoch, self._step = epoch, step
        self._epoch, self._step = self.position

    def reshard(self, rank: int, world_size: int) -> None:
        """Takes another share from the next iteration on, after the membership changed. A running iteration is over.

        Raises:
            RequestError: no such rank.
        """
        _check_whole(0, rank=rank, world_size=world_size)
        if rank >= world_size:
            raise RequestError(f"rank {rank} of {world_size} workers")
        self._stop()
        self.rank = rank
        self.world_size = world_size

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: everything that its order depends on."""
        epoch, step = self.position
        return {"version": STATE_VERSION, **self._identity(), "epoch": epoch, "step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes where another loader of the same order was.

        Raises:
            RequestError: the state is of another version, dataset, split, seed, batch size or order.
        """
        if not isinstance(state, Mapping):
            raise RequestError(f"loader state {state!r}: wanted what state_dict() gave")
        if state.get("version") != STATE_VERSION:
            raise RequestError(f"loader state of version {state.get('version')!r}; this mltrain reads {STATE_VERSION}")
        wrong = {name: state.get(name) for name, value in self._identity().items() if state.get(name) != value}
        if wrong:
            mine = {name: value for name, value in self._identity().items() if name in wrong}
            raise RequestError(f"the loader state has {wrong}, but this loader has {mine}: it would give other batches")
        self.seek(state.get("epoch", -1), state.get("step", -1))

    def close(self) -> None:
        """Ends the background thread and waits for it. A closed loader cannot be iterated any more."""
        self._closed = True
        self._stop()

    def _identity(self) -> dict[str, Any]:
        return {
            "digest": self.dataset.digest,
            "split": self.split,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "shuffle": self.shuffle,
        }

    def _stop(self) -> None:
        running = self._running() if self._running is not None else None
        if running is not None:
            running.end()
        self._running = None

    def _gatherer(self) -> "Gatherer":
        from mltrain.data.gather import Gatherer

        first_rows = np.cumsum(self._sizes) - self._sizes
        return Gatherer(
            self.dataset.source, self._first_shard, first_rows, self.dataset.schema, self.schema, self._touched
        )

    def _ring(self) -> list["Slot"]:
        """The buffers, made anew only when the largest share has grown."""
        from mltrain.data.gather import Slot, read_dtypes

        rows = -(-min(self.global_batch_size, self._entry.rows) // self.world_size)
        if not self._slots or self._slots[0].rows < rows:
            layout, dtypes, pinned = self.dataset.schema, read_dtypes(self.schema), self._device is not None
            self._slots = [
                Slot(layout, dtypes, self.schema.ragged, rows, self._row_numbers, pinned)
                for _ in range(self._prefetch + _HELD)
            ]
        return self._slots

    def _window_steps(self) -> int:
        """Steps that a window lasts, about: what is prefetched are the windows that are open and those after them."""
        entry = self._entry
        return entry.window * entry.rows * entry.lanes // max(1, entry.shards * self.global_batch_size)

    def _epoch_order(self, epoch: int) -> EpochOrder:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._make_order(epoch))
        return self._order[1]

    def _make_order(self, epoch: int) -> EpochOrder:
        if not self.shuffle:
            return SequentialEpoch(self._sizes, self.global_batch_size)
        return ShuffledEpoch(
            self._sizes,
            self.global_batch_size,
            lanes=self._entry.lanes,
            window=self._entry.window,
            digest=self.dataset.digest,
            split=self.split,
            seed=self.seed,
            epoch=epoch,
        )


class _Iteration(Iterator[Batch]):
    """The rest of one epoch. Closing it, or losing it, ends its thread."""

    def __init__(self, loader: Loader) -> None:
        epoch, first = loader.position
        self._loader = loader
        plan = _Plan(loader, epoch)
        steps = range(first, len(loader))
        self._pipeline = Pipeline(steps, loader._ring(), plan.at_hand, plan.open, plan.gather)
        self._held: list[Slot] = []
        self._closed = self._ended = False
        self._finalizer = weakref.finalize(self, self._pipeline.close)

    def __next__(self) -> Batch:
        if self._ended:
            # Not StopIteration: the loop would take what it has seen for the whole epoch.
            raise RequestError(
                "this iteration is over before its epoch: its loader was closed, sought, resharded or iterated anew"
            )
        if self._closed:
            raise StopIteration
        loader = self._loader
        started = time.perf_counter()
        try:
            item = self._pipeline.take()
        except BaseException:
            self.close()
            raise
        loader._wait_s += time.perf_counter() - started
        if item is None:
            self.close()
            loader._epoch, loader._step = loader.position
            raise StopIteration
        batch, slot = item
        if loader._device is not None:
            loader._device.hand_over(batch, slot)
        self._held.append(slot)
        if len(self._held) > _HELD:
            self._pipeline.give_back(self._held.pop(0))
        loader._step = batch.step + 1
        loader._batches += 1
        loader._rows += batch.rows
        return batch

    def end(self) -> None:
        """Closes it at its loader's wish: whoever still takes batches is told."""
        self._ended = not self._closed
        self.close()

    def close(self) -> None:
        """Ends the thread. One that is still waiting for storage keeps its buffers, and the loader makes others."""
        if not self._closed:
            self._closed = True
            self._pipeline.close()
            if not self._pipeline.join(_JOIN_S):
                self._loader._slots = []


class _Plan:
    """What the background thread needs of a loader, without the loader."""

    def __init__(self, loader: Loader, epoch: int) -> None:
        self._order = loader._epoch_order(epoch)
        self._epoch = epoch
        self._size = loader.global_batch_size
        self._rank, self._world_size = loader.rank, loader.world_size
        self._gatherer = loader._gatherer()
        self._device = loader._device
        self._steps = len(loader)
        share = -(-min(self._size, self._order.total) // self._world_size)
        together = min(_PLANNED_ROWS // max(1, share), loader._window_steps())
        self._group = max(1, together)
        self._planned = range(0)
        self._shares: list[list[Segment]] = []

    def at_hand(self, step: int) -> bool:
        """Whether the shards of a step are open."""
        return step not in self._planned or self._gatherer.at_hand(self._shares[step - self._planned.start])

    def open(self, step: int) -> "tuple[int, list[Piece]]":
        """Finds out what a step reads, and opens it."""
        if step not in self._planned:
            self._plan_from(step)
        return step, self._gatherer.open(self._shares[step - self._planned.start])

    def gather(self, opened: "tuple[int, list[Piece]]", slot: "Slot") -> Batch:
        """Gathers the share of a step."""
        if self._device is not None:
            self._device.wait_until_free(slot)
        step, pieces = opened
        global_rows = min(self._size, self._order.total - step * self._size)
        batch = self._gatherer.fill(slot, pieces, epoch=self._epoch, step=step, global_rows=global_rows)
        return batch if self._device is None else self._device.copy(batch, slot)

    def _plan_from(self, step: int) -> None:
        """Works out what this step and some after it read, and has what comes next fetched and checked."""
        ahead = range(step, min(step + _PREFETCHED_GROUPS * self._group, self._steps))
        if self._gatherer.source.prefetches:
            self._gatherer.prefetch(self._order.upcoming(ahead, self._rank, self._world_size))
        self._planned = ahead[: self._group]
        self._shares = self._order.shares(self._planned, self._rank, self._world_size)


def _check_whole(least: int | None, **given: object) -> None:
    for name, value in given.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or (least is not None and int(value) < least):  # type: ignore[call-overload]
            bound = "" if least is None else f" of at least {least}"
            raise RequestError(f"{name}={value!r}: wanted a whole number{bound}")


def _open_device(device: Any) -> "CudaFeed | None":
    """How batches get to a device; None for the CPU."""
    if str(device) == "cpu":
        return None
    from mltrain.data.cuda import CudaFeed

    return CudaFeed(device)
