"""Where workers run: a placement group of one bundle for each, so that one that cannot be placed holds up no other."""

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mltrain.train import market as markets
from mltrain.train.reach import reached

if TYPE_CHECKING:
    from mltrain.config import Market, Workers

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
        market: what the node says of itself (``spot``, ``on-demand``).
        stand_in: it was granted because nodes where workers should be stay away.
    """

    id: str
    node: str
    group: Any
    market: str | None = None
    stand_in: bool = False


class WorkerSource(Protocol):
    """Gives a run the slots of its workers. All methods return at once."""

    def want(self, count: int, avoid: frozenset[str], better: int = 0) -> None:
        """Says how many slots there should be more, besides those granted, and on which nodes they should not be.

        Args:
            count: how many.
            avoid: Ray's ids of nodes.
            better: so many more in the place of stand-ins, which nobody may stand in for.
        """

    def granted(self) -> list[Slot]:
        """Slots granted since the last call."""

    def withdrawn(self) -> frozenset[str]:
        """Ids of granted slots that the source wants back: their workers leave after a step, then comes `release`."""

    def release(self, slot: Slot) -> None:
        """Gives a slot back; nothing of the run is in it any more."""

    def close(self) -> None:
        """Gives everything back, and asks for nothing any more."""


@dataclass(frozen=True)
class _Asked:
    group: Any
    stand_in: bool


class PlacementGroups:
    """Slots straight from Ray, one placement group each.

    Ray takes a minute to call a cut node dead and places on it meanwhile, and a group that it placed there waits: nodes
    to avoid are left out by label, and so are those that do not answer. By label, too, groups wait for the nodes of
    a market: an autoscaler sees from them which nodes are wanted.
    """

    def __init__(self, run_id: str, workers: "Workers", market: "Market") -> None:
        self._name = run_id
        self._bundle = resources(workers)
        self._market = market
        self._patience = markets.Patience(market.wait_s)
        self._made = 0
        self._avoid: frozenset[str] = frozenset()
        self._asked: dict[str, _Asked] = {}
        self._held: dict[str, Slot] = {}
        self._asked_at = self._looked_at = 0.0
        self._unreached: frozenset[str] = frozenset()
        self._probed_at = 0.0
        self._probe: threading.Thread | None = None

    def want(self, count: int, avoid: frozenset[str], better: int = 0) -> None:
        self._probe_nodes()
        avoid |= self._unreached
        if avoid != self._avoid:
            # A group that waits keeps the label that it was made with.
            self._avoid = avoid
            self._drop(list(self._asked))
        second = markets.second(self._market)
        late = self._patience.wants(count + better, time.monotonic())
        self._adjust(count + better, markets.wanted(self._market), stand_in=False)
        self._adjust(count if second and late else 0, second or {}, stand_in=True)

    def granted(self) -> list[Slot]:
        now = time.monotonic()
        every_s = _LOOK_S if now - self._asked_at < _LONG_S else _LOOK_SELDOM_S
        if not self._asked or now - self._looked_at < every_s:
            return []
        self._looked_at = now
        from ray.util.placement_group import placement_group_table

        table = placement_group_table()
        placed = {}
        for name, asked in self._asked.items():
            known = table.get(asked.group.id.hex(), {})
            if known.get("state") == "CREATED":
                placed[name] = str(known["bundles_to_node_id"][0])
        if not placed:
            return []
        said = markets.of_nodes(self._market)
        return [self._grant(name, node, said.get(node), now) for name, node in placed.items()]

    def withdrawn(self) -> frozenset[str]:
        return frozenset()

    def release(self, slot: Slot) -> None:
        if self._held.pop(slot.id, None) is not None:
            _remove(slot.group)

    def close(self) -> None:
        self._drop(list(self._asked))
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

    def _adjust(self, count: int, nodes: markets.Selector, *, stand_in: bool) -> None:
        """Sees to it that ``count`` groups wait for such nodes; those that waited longest go on."""
        waiting = [name for name, asked in self._asked.items() if asked.stand_in is stand_in]
        self._drop(waiting[count:])
        for _ in range(count - len(waiting)):
            self._ask(nodes, stand_in)

    def _ask(self, nodes: markets.Selector, stand_in: bool) -> None:
        from ray.util.placement_group import placement_group

        self._made += 1
        self._asked_at = time.monotonic()
        labels = {"ray.io/node-id": f"!in({','.join(sorted(self._avoid))})"} if self._avoid else {}
        name = f"{self._name}-{self._made}"
        group = placement_group([self._bundle], name=name, bundle_label_selector=[{**nodes, **labels}])
        self._asked[name] = _Asked(group, stand_in)

    def _grant(self, name: str, node: str, market: str | None, now: float) -> Slot:
        asked = self._asked.pop(name)
        if not asked.stand_in:
            self._patience.came(now)
        slot = self._held[name] = Slot(name, node, asked.group, market, asked.stand_in)
        return slot

    def _drop(self, names: list[str]) -> None:
        """Takes back groups that Ray has not placed."""
        for name in names:
            _remove(self._asked.pop(name).group)


def resources(workers: "Workers") -> dict[str, float]:
    """What Ray reserves for one worker."""
    bundle = {"CPU": float(workers.cpus)}
    if workers.gpus:
        bundle["GPU"] = float(workers.gpus)
    return bundle


def room(workers: "Workers", market: "Market") -> int:
    """For how many workers the nodes that they may be on are large enough, whatever else those hold."""
    needed = {name: much for name, much in resources(workers).items() if much}
    totals = [node["Resources"] for node in markets.alive(market)]
    if not needed:
        return workers.max if totals else 0
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
