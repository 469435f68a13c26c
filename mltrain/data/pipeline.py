"""One background thread that prepares batches ahead, helped by whoever would wait for it."""

import atexit
import collections
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Slot = TypeVar("Slot")
Work = TypeVar("Work")
Prepared = TypeVar("Prepared")

_JOIN_S = 5.0
_LOOK_FOR_WORK = -1
_running: "weakref.WeakSet[Pipeline[Any, Any, Any]]" = weakref.WeakSet()


class Pipeline(Generic[Slot, Work, Prepared]):
    """Prepares each step in a thread, at most as far ahead as there are free slots.

    A step is first *opened*: planned, its files waited for, mapped and checked. That is done by the thread only, in the
    order of the steps. Then it is *gathered*, which needs a processor and waits for nothing: by the thread too, unless
    the one who takes batches would have to wait; that one then gathers the oldest step that nobody has begun.

    The thread holds neither the loader nor its iterator: when those are collected, they close the pipeline.

    Args:
        steps: what to prepare.
        slots: the ring of buffers.
        at_hand: whether opening a step takes next to no time.
        open_step: opens a step.
        gather: fills a slot with an opened step.
    """

    def __init__(
        self,
        steps: range,
        slots: list[Slot],
        at_hand: Callable[[int], bool],
        open_step: Callable[[int], Work],
        gather: Callable[[Work, Slot], Prepared],
    ) -> None:
        self._steps = steps
        self._at_hand, self._open_step, self._gather = at_hand, open_step, gather
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        # Opened and not begun, oldest first.
        self._opened: collections.deque[tuple[int, Slot, Work]] = collections.deque()
        self._ready: queue.SimpleQueue[tuple[int, tuple[Prepared, Slot] | BaseException | None]] = queue.SimpleQueue()
        # Of the one who takes batches: what came out of order, what comes next, and whether it waits or gathers.
        self._taken: dict[int, tuple[Prepared, Slot] | BaseException | None] = {}
        self._next = steps.start
        self._idle = self._helping = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mltrain-loader", daemon=True)
        self._thread.start()
        _running.add(self)

    def take(self) -> tuple[Prepared, Slot] | None:
        """The next batch and its slot; None after the last one.

        Raises:
            BaseException: what opening or gathering it raised.
        """
        while self._next not in self._taken:
            if not self._help():
                self._idle = True
                # Opened since we looked, and before the thread could see that we are idle.
                if not self._help():
                    step, item = self._ready.get()
                    self._taken[step] = item
                self._idle = False
        item = self._taken.pop(self._next)
        self._next += 1
        if isinstance(item, BaseException):
            raise item
        return item

    def ready(self) -> bool:
        """Whether the next batch can be taken at once."""
        while not self._ready.empty():
            step, item = self._ready.get()
            self._taken[step] = item
        return self._next in self._taken

    def give_back(self, slot: Slot) -> None:
        """Lets a slot be used again."""
        self._free.put(slot)

    def close(self) -> None:
        """Tells the thread to end; does not wait for it."""
        self._closed.set()
        self._free.put(None)

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread to end; whether it has, and no slot is being filled any more."""
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._helping)

    def _help(self) -> bool:
        """Gathers the oldest step that nobody has begun, in the thread of who takes batches, if nothing is ready."""
        if not self._opened or not self._ready.empty():
            return False
        self._helping = True
        try:
            begun = self._begin()
            if begun is not None:
                self._taken[begun[0]] = self._gathered(*begun)
            return begun is not None
        finally:
            self._helping = False

    def _begin(self) -> tuple[int, Slot, Work] | None:
        try:
            return self._opened.popleft()
        except IndexError:
            return None

    def _gathered(self, step: int, slot: Slot, work: Work) -> tuple[Prepared, Slot] | BaseException:
        try:
            return self._gather(work, slot), slot
        # Raised where the batch is taken, after those before it.
        except Exception as error:
            return error

    def _run(self) -> None:
        step = self._steps.start
        try:
            for step in self._steps:
                # Opened ahead as far as that takes no time, so that there is work for two.
                while not (self._free.qsize() and self._at_hand(step)) and not self._closed.is_set():
                    if (begun := self._begin()) is None:
                        break
                    self._ready.put((begun[0], self._gathered(*begun)))
                slot = self._free.get()
                if slot is None or self._closed.is_set():
                    return
                self._opened.append((step, slot, self._open_step(step)))
                if self._idle:
                    self._ready.put((_LOOK_FOR_WORK, None))
            while (begun := self._begin()) is not None and not self._closed.is_set():
                self._ready.put((begun[0], self._gathered(*begun)))
            self._ready.put((self._steps.stop, None))
        # The training thread raises it where the next batch is taken.
        except BaseException as error:
            self._ready.put((step, error))


@atexit.register
def _close_all() -> None:
    """Ends the threads before the interpreter tears down what they use."""
    for pipeline in list(_running):
        pipeline.close()
    for pipeline in list(_running):
        pipeline.join(_JOIN_S)
