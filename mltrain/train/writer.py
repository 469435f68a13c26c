"""Writes this rank's share of a checkpoint in the background, one at a time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mltrain.train import checkpoints

if TYPE_CHECKING:
    from torch import Tensor

    from mltrain.storage import Store


class PartWriter:
    """One upload in flight; its acknowledgement goes to ``send``.

    Args:
        run: the run's store.
        send: where messages to the controller go; called from the writing thread.
    """

    def __init__(self, run: "Store", send: Callable[[dict[str, Any]], None]) -> None:
        self._run = run
        self._send = send
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: Future[None] | None = None

    def submit(
        self, step: int, generation: int, rank: int, tensors: "dict[str, Tensor]", message: dict[str, Any]
    ) -> None:
        """Starts to write ``tensors`` (copies that nobody changes); once they are durable, ``message`` goes out."""
        self.wait(lambda: None)
        self._flight = self._executor.submit(self._write, step, generation, rank, tensors, message)

    def wait(self, check: Callable[[], None]) -> None:
        """Waits until nothing is in flight, calling ``check`` (which may raise) now and then.

        Raises:
            StorageError: the write failed.
        """
        if self._flight is None:
            return
        done = threading.Event()
        self._flight.add_done_callback(lambda _: done.set())
        while not done.wait(0.02):
            check()
        flight, self._flight = self._flight, None
        flight.result()

    def close(self) -> None:
        """Lets the write in flight end; starts no other."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _write(
        self, step: int, generation: int, rank: int, tensors: "dict[str, Tensor]", message: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        part = checkpoints.write_part(self._run, step, generation, rank, tensors)
        self._send({**message, "part": asdict(part), "write_s": time.monotonic() - began})
