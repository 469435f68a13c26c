"""Where workers run: a placement group of one bundle for each, so that one that cannot be placed holds up no other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mltrain.config import Workers


@dataclass(frozen=True)
class Slot:
    """Room for one worker.

    Attributes:
        id: unique in its source.
        group: Ray placement group whose only bundle is the slot; it may still be waiting for resources.
    """

    id: str
    group: Any


class WorkerSource(Protocol):
    """Gives a run the slots of its workers. All methods return at once."""

    def request(self, count: int) -> None:
        """Asks for ``count`` slots more."""

    def granted(self) -> list[Slot]:
        """Slots granted since the last call."""

    def withdrawn(self) -> frozenset[str]:
        """Ids of granted slots that the source wants back: their workers leave after a step, then comes `release`."""

    def release(self, slot: Slot) -> None:
        """Gives a slot back; nothing of the run is in it any more."""

    def close(self) -> None:
        """Gives everything back, and asks for nothing any more."""


class PlacementGroups:
    """Slots straight from Ray, one placement group each."""

    def __init__(self, run_id: str, workers: "Workers") -> None:
        self._name = run_id
        self._bundle = resources(workers)
        self._made = 0
        self._new: list[Slot] = []
        self._held: dict[str, Slot] = {}

    def request(self, count: int) -> None:
        from ray.util.placement_group import placement_group

        for _ in range(count):
            self._made += 1
            slot = Slot(f"slot-{self._made}", placement_group([self._bundle], name=f"{self._name}-{self._made}"))
            self._held[slot.id] = slot
            self._new.append(slot)

    def granted(self) -> list[Slot]:
        new, self._new = self._new, []
        return new

    def withdrawn(self) -> frozenset[str]:
        return frozenset()

    def release(self, slot: Slot) -> None:
        from ray.util.placement_group import remove_placement_group

        if self._held.pop(slot.id, None) is not None:
            remove_placement_group(slot.group)

    def close(self) -> None:
        for slot in list(self._held.values()):
            self.release(slot)
        self._new = []


def resources(workers: "Workers") -> dict[str, float]:
    """What Ray reserves for one worker."""
    bundle = {"CPU": float(workers.cpus)}
    if workers.gpus:
        bundle["GPU"] = float(workers.gpus)
    return bundle
