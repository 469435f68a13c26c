"""One background thread that prepares batches ahead, and ends when nobody wants them any more."""

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mltrain.data.batch import Batch

Slot = TypeVar("Slot")

_JOIN_S = 5.0
_running: "weakref.WeakSet[Pipeline[Any]]" = weakref.WeakSet()


class Pipeline(Generic[Slot]):
    """Runs ``prepare`` for each step in a thread, at most as far ahead as there are free slots.

    The thread holds neither the loader nor its iterator: when those are collected, they close the pipeline.

    Args:
        steps: what to prepare.
        slots: the ring of buffers.
        prepare: fills a slot with a step.
    """

    def __init__(
        self,
        steps: Iterator[int],
        slots: list[Slot],
        prepare: Callable[[int, Slot], Batch],
    ) -> None:
        self._steps = steps
        self._prepare = prepare
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._ready: queue.SimpleQueue[tuple[Batch, Slot] | BaseException | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mltrain-loader", daemon=True)
        self._thread.start()
        _running.add(self)

    def take(self) -> tuple[Batch, Slot] | None:
        """The next batch and its slot; None after the last one.

        Raises:
            BaseException: what ``prepare`` raised.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def give_back(self, slot: Slot) -> None:
        """Lets a slot be used again."""
        self._free.put(slot)

    def close(self) -> None:
        """Tells the thread to end; does not wait for it."""
        self._closed.set()
        self._free.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread to end; whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for step in self._steps:
                slot = self._free.get()
                if slot is None or self._closed.is_set():
                    return
                self._ready.put((self._prepare(step, slot), slot))
            self._ready.put(None)
        # The training thread raises it where the next batch is taken.
        except BaseException as error:
            self._ready.put(error)


@atexit.register
def _close_all() -> None:
    """Ends the threads before the interpreter tears down what they use."""
    for pipeline in list(_running):
        pipeline.close()
    for pipeline in list(_running):
        pipeline.join(_JOIN_S)
