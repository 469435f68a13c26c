"""The loader: batches of one rank's share, in an order that depends on no number of workers."""

import collections
import dataclasses
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mltrain.data.batch import Batch
from mltrain.data.dataset import Dataset
from mltrain.data.order import ShuffledEpoch
from mltrain.data.pipeline import Pipeline
from mltrain.data.schema import Schema, column_names
from mltrain.data.shares import EpochOrder, Segment, SequentialEpoch, steps
from mltrain.errors import RequestError

if TYPE_CHECKING:
    from mltrain.data.cuda import CudaFeed
    from mltrain.data.gather import Gatherer, Part, Piece, Slot

STATE_VERSION = 1
# A batch and the one before it stay valid while the next ones are prepared.
_HELD = 2
_JOIN_S = 0.2
# Steps are planned together, about this many rows at a time: planning one costs nearly as much as planning several.
_PLANNED_ROWS = 1 << 17
# Without windows, so many times as far ahead is prefetched.
_PREFETCHED_GROUPS = 4
# Batches to prepare ahead, by default: so many bytes, and so many batches.
_AHEAD_BYTES = 8 << 20
_LEAST_AHEAD, _MOST_AHEAD = 3, 96
# Small batches are gathered several at a time: to wake a thread takes as long as to copy a megabyte.
_BUNDLE_BYTES = 3 << 20


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
        shuffle: False gives the canonical order, each rank a contiguous share of each step. Every node then reads a
            part of nearly every shard, and fetches all of it; shuffled, a node fetches about its share of the bytes.
        device: ``"cpu"`` or a CUDA device: batches are then copied through page-locked memory on a stream of their own.
        row_numbers: offer canonical row numbers as ``batch["__row__"]``.
        prefetch: batches to prepare ahead; by default 8 MiB of them, and at least 3.
        epochs: how many will be read, if known: towards the end of each, the next one's first shards are fetched.

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
        prefetch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        dataset.check_split(split)
        given = {"global_batch_size": global_batch_size, "prefetch": prefetch, "epochs": epochs}
        _check_whole(1, **{name: value for name, value in given.items() if value is not None})
        _check_whole(None, seed=seed)
        self.dataset = dataset
        self.split = split
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.device = device
        self.epochs = epochs
        self._columns = None if columns is None else column_names(columns)
        self.schema = dataset.schema if self._columns is None else dataset.schema.subset(self._columns)
        self._row_numbers = row_numbers
        self._prefetch = prefetch
        self._entry = dataset.manifest.split(split)
        where = dataset.manifest.shards(split)
        self._sizes = dataset.manifest.index.rows[where]
        self._shard_bytes = dataset.manifest.index.size_bytes[where]
        self._first_shard = where.start
        self._touched: set[int] = set()
        self._orders = functools.lru_cache(maxsize=2)(self._order_of_epoch())
        self._epoch = self._step = 0
        self._batches = self._rows = 0
        self._wait_s = 0.0
        self._slots: list[Slot] = []
        self._closed = False
        self._running: weakref.ref[_Iteration] | None = None
        self._device = _open_device(device)
        self._row_bytes = _row_bytes(dataset.schema, self.schema)
        self.reshard(rank, world_size)

    def __repr__(self) -> str:
        epoch, step = self.position
        return (
            f"Loader({self.dataset!r}, {self.split!r}, rank {self.rank} of {self.world_size}, "
            f"epoch {epoch}, step {step} of {len(self)})"
        )

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

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process, or here, reads the same share from where this one is, by a thread of its own."""
        given = {name: getattr(self, name) for name in ("global_batch_size", "seed", "rank", "world_size", "shuffle")}
        given |= {"device": self.device, "epochs": self.epochs, "columns": self._columns}
        given |= {"row_numbers": self._row_numbers, "prefetch": self._prefetch}
        return _copied, (type(self), self.dataset, self.split, given, self.position)

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

    def _share(self) -> int:
        """Rows of the largest share of a step."""
        return -(-min(self.global_batch_size, self._entry.rows) // self.world_size)

    def _bundle(self) -> tuple[int, int]:
        """(steps that are gathered together, how many such bundles to prepare ahead)."""
        share_bytes = max(1, self._share() * self._row_bytes)
        ahead = self._prefetch or min(max(_AHEAD_BYTES // share_bytes, _LEAST_AHEAD), _MOST_AHEAD)
        together = max(1, min(ahead // _LEAST_AHEAD, _BUNDLE_BYTES // share_bytes))
        return together, -(-ahead // together)

    def _ring(self) -> list["Slot"]:
        """The buffers, made anew only when the largest share has grown."""
        from mltrain.data.gather import Slot, read_dtypes

        rows, (together, ahead) = self._share(), self._bundle()
        if not self._slots or self._slots[0].rows < rows or len(self._slots[0].parts) != together:
            layout, dtypes, pinned = self.dataset.schema, read_dtypes(self.schema), self._device is not None
            self._slots = [
                Slot(layout, dtypes, self.schema.ragged, rows, together, self._row_numbers, pinned)
                for _ in range(ahead + -(-_HELD // together))
            ]
        return self._slots

    def _window_steps(self) -> int:
        """Steps that a window lasts, about: what is prefetched are the windows that are open and those after them."""
        entry = self._entry
        return entry.window * entry.rows * entry.lanes // max(1, entry.shards * self.global_batch_size)

    def _order_of_epoch(self) -> Callable[[int], EpochOrder]:
        """What makes the order of an epoch; it does not hold the loader."""
        sizes, size = self._sizes, self.global_batch_size
        if not self.shuffle:
            return lambda _: SequentialEpoch(sizes, size)
        make = functools.partial(ShuffledEpoch, sizes, size, lanes=self._entry.lanes, window=self._entry.window)
        make = functools.partial(make, digest=self.dataset.digest, split=self.split, seed=self.seed)
        return lambda epoch: make(epoch=epoch)


def _copied(
    kind: type[Loader], dataset: Dataset, split: str, given: Mapping[str, Any], position: tuple[int, int]
) -> Loader:
    loader = kind(dataset, split, **given)
    loader.seek(*position)
    return loader


def _row_bytes(layout: Schema, selected: Schema) -> int:
    """Bytes of a row in the matrices that are read; lists are left out."""
    return sum(layout.matrices[dtype].width * np.dtype(dtype).itemsize for dtype in selected.matrices)


class _Iteration(Iterator[Batch]):
    """The rest of one epoch. Closing it, or losing it, ends its thread."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        plan = _Plan(loader)
        self._pipeline = Pipeline(plan.bundles, loader._ring(), plan.ahead, plan.at_hand, plan.open, plan.gather)
        # Batches that were taken together, each with its buffers; the last one also with the slot to give back.
        self._coming: collections.deque[tuple[Batch, Part, Slot | None]] = collections.deque()
        self._held: collections.deque[Slot | None] = collections.deque()
        self._closed = self._ended = False
        self._taking = threading.Lock()
        self._finalizer = weakref.finalize(self, self._pipeline.close)

    def __next__(self) -> Batch:
        # They would also write over each other's batches: a batch stays valid for as long as two more are taken.
        if not self._taking.acquire(blocking=False):
            raise RequestError(
                "two threads take batches of one iteration at once; take them in one thread, or give each a loader, "
                "as one more rank, of its own"
            )
        try:
            return self._next()
        finally:
            self._taking.release()

    def _next(self) -> Batch:
        if self._ended:
            # Not StopIteration: the loop would take what it has seen for the whole epoch.
            raise RequestError(
                "this iteration is over before its epoch: its loader was closed, sought, resharded or iterated anew"
            )
        if self._closed:
            raise StopIteration
        if not self._coming and not self._take():
            raise StopIteration
        loader = self._loader
        batch, part, slot = self._coming.popleft()
        if loader._device is not None:
            loader._device.hand_over(batch, part)
        self._held.append(slot)
        if len(self._held) > _HELD:
            left = self._held.popleft()
            if left is not None:
                self._pipeline.give_back(left)
        loader._step = batch.step + 1
        loader._batches += 1
        loader._rows += batch.rows
        return batch

    def _take(self) -> bool:
        """Takes the next bundle; False after the last one."""
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
            return False
        batches, slot = item
        last = len(batches) - 1
        self._coming.extend((batch, slot.parts[n], slot if n == last else None) for n, batch in enumerate(batches))
        return True

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
    """What the background thread needs of a loader, without the loader: bundles of steps, numbered from 0."""

    def __init__(self, loader: Loader) -> None:
        self._epoch, self._first = loader.position
        self._orders = loader._orders
        self._order = self._orders(self._epoch)
        self._goes_on = loader.epochs is not None and self._epoch + 1 < loader.epochs
        self._last_window = len(loader) - loader._window_steps()
        self._size = loader.global_batch_size
        self._rank, self._world_size = loader.rank, loader.world_size
        self._gatherer = loader._gatherer()
        self._device = loader._device
        self._end = len(loader)
        self._together, _ = loader._bundle()
        self.bundles = range(-(-(self._end - self._first) // self._together))
        group = min(_PLANNED_ROWS // max(1, loader._share()), loader._window_steps())
        # Bundles that are planned together.
        self.ahead = max(1, group // self._together)
        self._planned = range(0)
        self._shares: list[list[Segment]] = []

    def at_hand(self, bundle: int) -> bool:
        """Whether the shards of a bundle are open."""
        return all(self._gatherer.at_hand(share) for share in self._shares_of(self._steps(bundle)))

    def open(self, bundle: int) -> "tuple[range, list[list[Piece]]]":
        """Finds out what a bundle's steps read, and opens it."""
        steps = self._steps(bundle)
        return steps, [self._gatherer.open(share) for share in self._shares_of(steps)]

    def gather(self, opened: "tuple[range, list[list[Piece]]]", slot: "Slot") -> list[Batch]:
        """Gathers the shares of a bundle's steps."""
        steps, pieces = opened
        if self._device is not None:
            for part in slot.parts:
                self._device.wait_until_free(part)
        global_rows = [min(self._size, self._order.total - step * self._size) for step in steps]
        batches = self._gatherer.fill(slot, pieces, epoch=self._epoch, first=steps.start, global_rows=global_rows)
        if self._device is None:
            return batches
        return [self._device.copy(batch, part) for batch, part in zip(batches, slot.parts, strict=False)]

    def _steps(self, bundle: int) -> range:
        start = self._first + bundle * self._together
        return range(start, min(start + self._together, self._end))

    def _shares_of(self, steps: range) -> list[list[Segment]]:
        """What the steps of a bundle read. Works out what they and some after them do, and has what comes next fetched
        and checked.
        """
        if steps.start not in self._planned:
            group = self.ahead * self._together
            ahead = range(steps.start, min(steps.start + _PREFETCHED_GROUPS * group, self._end))
            if self._gatherer.source.prefetches:
                self._gatherer.prefetch(self._upcoming(ahead))
            self._planned = ahead[:group]
            self._shares = self._order.shares(self._planned, self._rank, self._world_size)
        first = steps.start - self._planned.start
        return self._shares[first : first + len(steps)]

    def _upcoming(self, ahead: range) -> Sequence[int]:
        """Shards to prefetch; towards the end of an epoch those that the next one, if there is one, begins with too."""
        shards = self._order.upcoming(ahead, self._rank, self._world_size)
        if self._goes_on and ahead.stop > self._last_window:
            start = range(min(len(ahead), self._end))
            following = self._orders(self._epoch + 1).upcoming(start, self._rank, self._world_size)
            shards = list(dict.fromkeys([*shards, *following]))
        return shards


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
