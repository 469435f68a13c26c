"""The broker of a sweep: an actor that shares the cluster's workers among trials, and each trial's seat at it."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from mltrain.config import Market, Workers
from mltrain.train import StopRequest
from mltrain.train import market as markets
from mltrain.train.placement import PlacementGroups, Slot, draining, resources
from mltrain.tune.allocation import Demand, grant, slots

_LOOK_S = 1.0
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Notice:
    """What a trial hears.

    Attributes:
        quota: how many workers it may hold.
        stop: why it should make a checkpoint and stop; None to go on.
        pruned: its scheduler has ended it.
    """

    quota: int = 0
    stop: str | None = None
    pruned: bool = False


class Broker:
    """Knows what the cluster holds and which trial holds how much of it. An asyncio actor: no call waits for another.

    Args:
        workers: of each trial.
        market: of their nodes.
    """

    def __init__(self, workers: Workers, market: Market) -> None:
        self._bundle = resources(workers)
        self._market = market
        self._limits = (workers.min, workers.max)
        self._held: dict[str, int] = {}
        self._notices: dict[str, Notice] = {}
        self._stop: str | None = None
        self._pruned: set[str] = set()
        self._changed = asyncio.Condition()
        self._capacity = 0
        self._looking: asyncio.Task[None] | None = None

    async def join(self, trial: str) -> None:
        """A trial asks for workers. One that joined before and died starts anew."""
        if self._looking is None:
            self._capacity = _capacity(self._bundle, self._market)
            self._looking = asyncio.create_task(self._look())
        self._held.pop(trial, None)
        self._held[trial] = 0
        await self._share()

    async def leave(self, trial: str) -> None:
        """A trial has ended; what it held is free. Unknown trials are fine."""
        self._held.pop(trial, None)
        self._notices.pop(trial, None)
        await self._share()

    async def hold(self, trial: str, count: int) -> None:
        """A trial has given workers back and holds ``count`` from now on."""
        if trial in self._held:
            self._held[trial] = max(count, self._notices.get(trial, Notice()).quota)
            await self._share()

    async def prune(self, trial: str) -> None:
        """The scheduler ends a trial."""
        self._pruned.add(trial)
        await self._share()

    async def stop(self, reason: str) -> None:
        """All trials are to stop, resumable."""
        self._stop = reason
        await self._share()

    async def pruned(self, trial: str) -> bool:
        """Whether the scheduler has ended a trial."""
        return trial in self._pruned

    async def members(self) -> list[str]:
        """The trials that have joined and not left."""
        return list(self._held)

    async def watch(self, trial: str, known: Notice | None) -> Notice:
        """Answers a trial's notice as soon as it is another than ``known``, or after a while."""

        def news() -> bool:
            return self._notices.get(trial, Notice()) != known

        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(news), _ANSWER_S)
            except TimeoutError:
                pass  # the same again: the trial sees that the broker lives
        return self._notices.get(trial, Notice())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            capacity = await asyncio.to_thread(_capacity, self._bundle, self._market)
            if capacity != self._capacity:
                self._capacity = capacity
                await self._share()

    async def _share(self) -> None:
        demands = [Demand(trial, *self._limits, held) for trial, held in self._held.items()]
        quotas = grant(self._capacity, demands)
        # What a trial was granted counts as held from here on: it may take it at any time.
        self._held = {trial: max(held, quotas[trial]) for trial, held in self._held.items()}
        async with self._changed:
            self._notices = {trial: Notice(quota, self._stop, trial in self._pruned) for trial, quota in quotas.items()}
            self._changed.notify_all()


class Seat:
    """A trial's seat at the broker, in the trial's process: its `WorkerSource`, and where it hears that it should stop.

    Args:
        broker: handle of the sweep's `Broker`.
        trial: this trial's run id.
        workers: of each trial.
        market: of their nodes.
        stop: set when the sweep stops.
    """

    def __init__(self, broker: Any, trial: str, workers: Workers, market: Market, stop: StopRequest) -> None:
        self._broker = broker
        self._trial = trial
        self._stop = stop
        self._groups = PlacementGroups(trial, workers, market)
        self._min = workers.min
        self._held: list[Slot] = []
        self._notice = Notice()
        self._heard = threading.Condition()
        self._closed = False

    def take(self) -> bool:
        """Waits for the first grant. False: the sweep stops, there will be none."""
        import ray

        ray.get(self._broker.join.remote(self._trial))
        threading.Thread(target=self._listen, name="broker", daemon=True).start()
        with self._heard:
            self._heard.wait_for(lambda: self._notice.quota >= self._min or self._stop.requested)
            return not self._stop.requested

    def want(self, count: int, avoid: frozenset[str], better: int = 0) -> None:
        """Asks for ``count`` slots more, or for as many as the quota allows; stand-ins stay, they are part of it."""
        with self._heard:
            self._groups.want(max(0, min(count, self._notice.quota - len(self._held))), avoid)

    def granted(self) -> list[Slot]:
        """Slots granted since the last call."""
        new = self._groups.granted()
        with self._heard:
            self._held += new
        return new

    def withdrawn(self) -> frozenset[str]:
        """The newest slots, as many as are above the quota."""
        with self._heard:
            return frozenset(slot.id for slot in self._held[self._notice.quota :])

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        self._groups.release(slot)
        with self._heard:
            over = len(self._held) > self._notice.quota
            self._held = [held for held in self._held if held.id != slot.id]
            if over:
                self._broker.hold.remote(self._trial, len(self._held))

    def close(self) -> None:
        """Gives everything back. Idempotent."""
        if not self._closed:
            self._closed = True
            self._groups.close()
            self._held = []
            self._broker.leave.remote(self._trial)

    def pruned(self) -> bool:
        """Whether the scheduler has ended this trial."""
        import ray

        return bool(ray.get(self._broker.pruned.remote(self._trial)))

    def _listen(self) -> None:
        import ray

        known: Notice | None = None
        while not self._closed:
            try:
                known = ray.get(self._broker.watch.remote(self._trial, known))
            except ray.exceptions.RayError as error:
                # Without its broker the sweep is over, and whoever resumes it wants the last state.
                self._hear(Notice(self._notice.quota, f"the sweep's broker is gone: {error}"))
                return
            self._hear(known)

    def _hear(self, notice: Notice) -> None:
        with self._heard:
            if self._closed:
                return
            if notice.quota < self._notice.quota and len(self._held) <= notice.quota:
                # What was granted and not taken is free at once.
                self._broker.hold.remote(self._trial, len(self._held))
            self._notice = notice
            if notice.stop is not None:
                self._stop.request(notice.stop)
            self._heard.notify_all()


def _capacity(bundle: dict[str, float], market: Market) -> int:
    leaving = draining()
    there = [node for node in markets.alive(market) if node["NodeID"] not in leaving]
    return slots([node["Resources"] for node in there], bundle)
