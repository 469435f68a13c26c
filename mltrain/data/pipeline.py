"""One background thread that prepares batches ahead, helped by whoever would wait for it."""

import atexit
import collections
import contextlib
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
        ahead: how many steps may be open and not begun, so that there is work for two.
        at_hand: whether opening a step takes next to no time.
        open_step: opens a step.
        gather: fills a slot with an opened step.
    """

    def __init__(
        self,
        steps: range,
        slots: list[Slot],
        ahead: int,
        at_hand: Callable[[int], bool],
        open_step: Callable[[int], Work],
        gather: Callable[[Work, Slot], Prepared],
    ) -> None:
        self._steps = steps
        self._ahead = ahead
        self._at_hand, self._open_step, self._gather = at_hand, open_step, gather
        # A stack for each of the two who gather, and something to wait for. Who filled a slot last fills it again: its
        # memory lies in that core's cache, and to write what another core's cache holds takes half as long again.
        self._free: dict[bool, list[Slot]] = {False: slots.copy(), True: []}
        self._helped: dict[int, bool] = {}
        self._tokens: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for _ in slots:
            self._tokens.put(True)
        # Not begun, oldest first.
        self._opened: collections.deque[tuple[int, Work]] = collections.deque()
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
        self._free[self._helped.get(id(slot), False)].append(slot)
        self._tokens.put(True)

    def close(self) -> None:
        """Tells the thread to end; does not wait for it."""
        self._closed.set()
        self._tokens.put(False)

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
            begun = self._begin(helping=True)
            if begun is not None:
                self._taken[begun[0]] = self._gathered(*begun)
            return begun is not None
        finally:
            self._helping = False

    def _begin(self, *, helping: bool) -> tuple[int, Work, Slot] | None:
        """The oldest opened step, and a slot for it; None if there is neither, or the pipeline is closed."""
        try:
            slots_left = self._tokens.get(not helping)
        except queue.Empty:
            return None
        if not slots_left:
            self._tokens.put(False)
            return None
        slot = self._slot(helping)
        try:
            return *self._opened.popleft(), slot
        except IndexError:
            self.give_back(slot)
            return None

    def _slot(self, helping: bool) -> Slot:
        """A free slot; who calls has a token, so there is one."""
        while True:
            for whose in (helping, not helping):
                if self._free[whose]:
                    with contextlib.suppress(IndexError):
                        slot = self._free[whose].pop()
                        self._helped[id(slot)] = helping
                        return slot

    def _gathered(self, step: int, work: Work, slot: Slot) -> tuple[Prepared, Slot] | BaseException:
        try:
            return self._gather(work, slot), slot
        # Raised where the batch is taken, after those before it.
        except Exception as error:
            return error

    def _run(self) -> None:
        step = self._steps.start
        try:
            for step in self._steps:
                while self._opened and not (len(self._opened) < self._ahead and self._at_hand(step)):
                    self._gather_oldest()
                    if self._closed.is_set():
                        return
                self._opened.append((step, self._open_step(step)))
                if self._idle:
                    self._idle = False
                    self._ready.put((_LOOK_FOR_WORK, None))
            while self._opened and not self._closed.is_set():
                self._gather_oldest()
            self._ready.put((self._steps.stop, None))
        # The training thread raises it where the next batch is taken.
        except BaseException as error:
            self._ready.put((step, error))

    def _gather_oldest(self) -> None:
        if (begun := self._begin(helping=False)) is not None:
            self._ready.put((begun[0], self._gathered(*begun)))


@atexit.register
def _close_all() -> None:
    """Ends the threads before the interpreter tears down what they use."""
    for pipeline in list(_running):
        pipeline.close()
    for pipeline in list(_running):
        pipeline.join(_JOIN_S)
