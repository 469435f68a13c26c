"""Copies this rank's share of a checkpoint and writes it in the background, one checkpoint at a time."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mltrain.train import layout
from mltrain.train.checkpoints import Part, part_path
from mltrain.train.layout import PART_BYTES, PartLayout
from mltrain.train.staging import Staging, describe

if TYPE_CHECKING:
    from torch import Tensor

    from mltrain.storage import Store

# Files of a rank on their way to storage at a time.
_STREAMS = 4
_BUFFERS = 2


@dataclass(frozen=True)
class Place:
    """Who writes: the names of parts say so, and parts of two places never make one checkpoint."""

    driver_epoch: int
    generation: int
    rank: int
    size: int


@dataclass(frozen=True)
class _Flight:
    step: int
    generation: int
    staging: Staging
    ended: "Future[None]"


class PartWriter:
    """One checkpoint on its way to storage; another one may have been copied, and waits for it.

    Args:
        run: the run's store.
        send: where messages to the controller go; called from the writing threads.
        pinned: copies go to memory that a GPU writes to directly.
        part_bytes: largest file, about.
    """

    def __init__(
        self,
        run: "Store",
        send: Callable[[dict[str, Any]], None],
        *,
        pinned: bool = False,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._run = run
        self._send = send
        self._part_bytes = part_bytes
        self._flights: deque[_Flight] = deque()
        self._free = [Staging(pinned=pinned) for _ in range(_BUFFERS)]
        self._generation = 0
        self._order = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._streams = ThreadPoolExecutor(_STREAMS, thread_name_prefix="checkpoint-part")

    @property
    def busy(self) -> bool:
        """Whether a checkpoint of this generation is on its way.

        Raises:
            StorageError: one could not be written.
        """
        self._take_ended()
        return any(flight.generation == self._generation for flight in self._flights)

    def begin(self, generation: int) -> None:
        """What was on its way for earlier generations is of no use any more: the rest of it is not written."""
        self._generation = generation

    def save(
        self,
        step: int,
        place: Place,
        tensors: "Mapping[str, Tensor]",
        message: Mapping[str, Any],
        check: Callable[[], None],
    ) -> None:
        """Copies this rank's share of ``tensors``; once it is durable, a message goes out that says where it is.

        Waits for a free buffer if two checkpoints are on their way, calling ``check`` (which may raise) now and then.

        Args:
            step: updates applied to the tensors.
            place: of this rank.
            tensors: all of the replica's.
            message: rank 0's message says more than which parts there are.
            check: raises when there is no sense in waiting.

        Raises:
            StorageError: an earlier one could not be written.
            TrainingError: a tensor has a type that cannot be stored.
        """
        began = time.perf_counter()
        self._take_ended()
        while not self._free:
            self._await(self._flights[0], check)
            self._take_ended()
        waited = time.perf_counter()
        infos = describe(tensors)
        parts = layout.share(infos, place.rank, place.size, self._part_bytes)
        staging = self._free.pop()
        files = staging.fill(tensors, infos, parts)
        told = {
            **message, "type": "part", "step": step, "rank": place.rank, "size": place.size,
            "made_in": place.generation, "stall_s": time.perf_counter() - waited, "waited_s": waited - began,
        }  # fmt: skip
        if place.rank == 0:
            told["tensors"] = {name: list(info.shape) for name, info in infos.items()}
        ended = self._order.submit(self._write, step, place, parts, files, told)
        self._flights.append(_Flight(step, place.generation, staging, ended))

    def wait(self, check: Callable[[], None], through: int | None = None) -> None:
        """Waits until this rank's shares up to step ``through`` (None: all) are durable, calling ``check`` meanwhile.

        Raises:
            StorageError: a write failed.
        """
        for flight in [flight for flight in self._flights if through is None or flight.step <= through]:
            self._await(flight, check)
        self._take_ended()

    def close(self) -> None:
        """Lets what is on its way end; starts nothing else."""
        self._order.shutdown(wait=True)
        self._streams.shutdown(wait=True)

    def _await(self, flight: _Flight, check: Callable[[], None]) -> None:
        done = threading.Event()
        flight.ended.add_done_callback(lambda _: done.set())
        while not done.wait(0.02):
            check()

    def _take_ended(self) -> None:
        while self._flights and self._flights[0].ended.done():
            flight = self._flights.popleft()
            self._free.append(flight.staging)
            if flight.generation == self._generation:
                flight.ended.result()

    def _write(
        self, step: int, place: Place, parts: Sequence[PartLayout], files: Sequence[memoryview], told: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        writing = [
            self._streams.submit(self._write_part, step, place, number, part, file)
            for number, (part, file) in enumerate(zip(parts, files, strict=True))
        ]
        written = [each.result() for each in _settled(writing)]
        if place.generation == self._generation:
            self._send(
                {**told, "parts": [asdict(part) for part in written if part], "write_s": time.monotonic() - began}
            )

    def _write_part(self, step: int, place: Place, number: int, part: PartLayout, file: memoryview) -> Part | None:
        if place.generation != self._generation:
            return None
        sha256 = hashlib.sha256(file).hexdigest()
        path = part_path(step, place.driver_epoch, place.generation, place.rank, number, sha256)
        self._run.put(path, file)
        pieces = {piece.key: (piece.name, piece.start) for piece in part.pieces if not piece.whole}
        return Part(path, place.rank, len(file), sha256, tuple(sorted(piece.key for piece in part.pieces)), pieces)


def _settled(futures: "Sequence[Future[Part | None]]") -> "Sequence[Future[Part | None]]":
    """The same, when all have ended: the buffer that they read is used again afterwards, also when one has failed."""
    for future in futures:
        future.exception()
    return futures
