"""Where workers run: a placement group of one bundle for each, so that one that cannot be placed holds up no other."""

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mltrain.train.reach import reached

if TYPE_CHECKING:
    from mltrain.config import Workers

# How often Ray is asked where groups are that it has not placed yet: at first, and when that has taken long.
_LOOK_S, _LOOK_SELDOM_S, _LONG_S = 0.1, 1.0, 10.0
# Where there is room, Ray places a group in milliseconds. After so long the nodes are asked whether they are there, for
# so long at most, and again so often as long as groups wait.
_PROMPT_S, _ANSWER_S, _AGAIN_S = 1.0, 1.0, 3.0


@dataclass(frozen=True)
class Slot:
    """Room for one worker.

    Attributes:
        id: unique in its source.
        node: Ray's id of the node that it is on.
        group: Ray placement group whose only bundle is the slot.
    """

    id: str
    node: str
    group: Any


class WorkerSource(Protocol):
    """Gives a run the slots of its workers. All methods return at once."""

    def want(self, count: int, avoid: frozenset[str]) -> None:
        """Says how many slots there should be more, besides those granted, and on which nodes they should not be."""

    def granted(self) -> list[Slot]:
        """Slots granted since the last call."""

    def withdrawn(self) -> frozenset[str]:
        """Ids of granted slots that the source wants back: their workers leave after a step, then comes `release`."""

    def release(self, slot: Slot) -> None:
        """Gives a slot back; nothing of the run is in it any more."""

    def close(self) -> None:
        """Gives everything back, and asks for nothing any more."""


class PlacementGroups:
    """Slots straight from Ray, one placement group each.

    Ray takes a minute to call a cut node dead and places on it meanwhile, and a group that it placed there waits: nodes
    to avoid are left out by label, and so are those that do not answer.
    """

    def __init__(self, run_id: str, workers: "Workers") -> None:
        self._name = run_id
        self._bundle = resources(workers)
        self._made = 0
        self._avoid: frozenset[str] = frozenset()
        self._asked: dict[str, Any] = {}
        self._held: dict[str, Slot] = {}
        self._asked_at = self._looked_at = 0.0
        self._unreached: frozenset[str] = frozenset()
        self._probed_at = 0.0
        self._probe: threading.Thread | None = None

    def want(self, count: int, avoid: frozenset[str]) -> None:
        self._probe_nodes()
        avoid |= self._unreached
        if avoid != self._avoid:
            # A group that waits keeps the label that it was made with.
            self._avoid = avoid
            self._drop(len(self._asked))
        self._drop(len(self._asked) - count)
        for _ in range(count - len(self._asked)):
            self._ask()

    def granted(self) -> list[Slot]:
        now = time.monotonic()
        every_s = _LOOK_S if now - self._asked_at < _LONG_S else _LOOK_SELDOM_S
        if not self._asked or now - self._looked_at < every_s:
            return []
        self._looked_at = now
        from ray.util.placement_group import placement_group_table

        table = placement_group_table()
        found = []
        for name, group in list(self._asked.items()):
            known = table.get(group.id.hex(), {})
            if known.get("state") == "CREATED":
                del self._asked[name]
                slot = self._held[name] = Slot(name, known["bundles_to_node_id"][0], group)
                found.append(slot)
        return found

    def withdrawn(self) -> frozenset[str]:
        return frozenset()

    def release(self, slot: Slot) -> None:
        if self._held.pop(slot.id, None) is not None:
            _remove(slot.group)

    def close(self) -> None:
        self._drop(len(self._asked))
        for slot in list(self._held.values()):
            self.release(slot)

    def _probe_nodes(self) -> None:
        """Finds out, in a thread, which nodes do not answer, if groups have been waiting for longer than usual."""
        now = time.monotonic()
        if not self._asked or now - self._asked_at < _PROMPT_S or now - self._probed_at < _AGAIN_S:
            return
        if self._probe is None or not self._probe.is_alive():
            self._probed_at = now
            self._probe = threading.Thread(target=self._find_unreached, name="nodes", daemon=True)
            self._probe.start()

    def _find_unreached(self) -> None:
        self._unreached = unreached(_ANSWER_S)

    def _ask(self) -> None:
        from ray.util.placement_group import placement_group

        self._made += 1
        self._asked_at = time.monotonic()
        labels = {"ray.io/node-id": f"!in({','.join(sorted(self._avoid))})"} if self._avoid else {}
        name = f"{self._name}-{self._made}"
        self._asked[name] = placement_group([self._bundle], name=name, bundle_label_selector=[labels])

    def _drop(self, count: int) -> None:
        """Takes back the ``count`` newest groups that Ray has not placed."""
        for name in list(self._asked)[::-1][: max(0, count)]:
            _remove(self._asked.pop(name))


def resources(workers: "Workers") -> dict[str, float]:
    """What Ray reserves for one worker."""
    bundle = {"CPU": float(workers.cpus)}
    if workers.gpus:
        bundle["GPU"] = float(workers.gpus)
    return bundle


def room(workers: "Workers") -> int:
    """For how many workers the nodes of the cluster are large enough, whatever else they hold."""
    import ray

    needed = {name: much for name, much in resources(workers).items() if much}
    if not needed:
        return workers.max
    totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A hair more than there is: shares such as 0.1 are not exact.
    return sum(min(int(total.get(name, 0.0) / much + 1e-6) for name, much in needed.items()) for total in totals)


def draining() -> frozenset[str]:
    """Ids of nodes of which Ray was told that they go away.

    There is no public way to ask: ``ray.nodes()`` still says that they are alive.
    """
    import ray

    return frozenset(ray._private.state.state.get_draining_nodes())


def unreached(within_s: float) -> frozenset[str]:
    """Ids of nodes that Ray calls alive and that do not take a connection in time."""
    import ray

    nodes = {
        str(node["NodeID"]): (str(node["NodeManagerAddress"]), int(node["NodeManagerPort"]))
        for node in ray.nodes()
        if node["Alive"]
    }
    return frozenset(nodes).difference(reached(nodes, within_s))


def _remove(group: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)
