"""Which nodes what runs on, by how they are paid for: label selectors for Ray, and who may stand in for whom."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.config import Market

SPOT, ON_DEMAND = "spot", "on-demand"
# The first is preferred.
_ALLOWED = {"spot": (SPOT,), "on-demand": (ON_DEMAND,), "spot-then-on-demand": (SPOT, ON_DEMAND)}

Labels = Mapping[str, str]
Selector = dict[str, str]


def suits(labels: Labels, market: "Market") -> bool:
    """Whether workers may be on a node with these labels."""
    return market.workers == "any" or labels.get(market.label) in _ALLOWED[market.workers]


def wanted(market: "Market") -> Selector:
    """Selects the nodes that workers should be on."""
    return {} if market.workers == "any" else {market.label: _ALLOWED[market.workers][0]}


def second(market: "Market") -> Selector | None:
    """Selects the nodes that stand in while those stay away; None: none do."""
    others = () if market.workers == "any" else _ALLOWED[market.workers][1:]
    return {market.label: others[0]} if others else None


def allowed(market: "Market") -> Selector:
    """Selects the nodes that workers may be on, whatever they should be on."""
    if market.workers == "any":
        return {}
    return {market.label: f"in({','.join(_ALLOWED[market.workers])})"}


def lasting(nodes: Iterable[Labels], market: "Market") -> Selector:
    """Selects the nodes for processes that should not be lost with a spot node: any others, if there are any.

    Args:
        nodes: labels of the nodes that are there.
        market: whose label it goes by. Nodes without the label count as others.
    """
    others = any(labels.get(market.label) != SPOT for labels in nodes)
    return {market.label: f"!{SPOT}"} if others else {}


def described(market: "Market") -> str | None:
    """The nodes that workers may be on, in words; None: any."""
    return None if market.workers == "any" else f"{market.label}={' or '.join(_ALLOWED[market.workers])}"


class Patience:
    """How long nodes of first choice have stayed away. Pure but for its memory: times are the caller's."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._since: float | None = None

    def wants(self, missing: int, now: float) -> bool:
        """So many workers are missing on such nodes. Returns whether it is time for others."""
        if not missing:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self._wait_s

    def came(self, now: float) -> None:
        """A worker got such a node: for the others, too, waiting is worth while again."""
        self._since = now


def alive(market: "Market") -> list[dict[str, Any]]:
    """The nodes of the cluster that workers may be on, as Ray describes them."""
    return [node for node in _nodes() if suits(node["Labels"], market)]


def lasting_here(market: "Market") -> Selector:
    """`lasting` of the cluster's nodes."""
    return lasting([node["Labels"] for node in _nodes()], market)


def of_nodes(market: "Market") -> dict[str, str | None]:
    """What each node of the cluster says that it is."""
    return {str(node["NodeID"]): node["Labels"].get(market.label) for node in _nodes()}


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
