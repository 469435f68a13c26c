"""From the config to the agent of the Ray node that this process is on."""

import hashlib
from typing import TYPE_CHECKING, Any

from mltrain.spot import whereabouts
from mltrain.spot.agent import Agent, DrainError, Tell
from mltrain.spot.aws import Aws
from mltrain.spot.azure import Azure
from mltrain.spot.gcp import Maintenance, Preemption
from mltrain.spot.hooks import KUBERNETES, File, Url
from mltrain.spot.notice import Source

if TYPE_CHECKING:
    from mltrain.config import Notices

_DRAIN_TIMEOUT_S = 5.0


def watch(config: "Notices", tell: Tell) -> Agent | None:
    """Starts to listen for this node, if there is anybody to listen to. Needs Ray.

    Args:
        config: ``cluster.notices``.
        tell: see `Agent`.
    """
    import ray

    listened = sources(config, ray.util.get_node_ip_address())
    if not listened:
        return None
    # Runs that are told to listen elsewhere have an agent of their own.
    settings = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    return Agent(listened, drain_node, tell, f"{ray.get_runtime_context().get_node_id()}-{settings}")


def sources(config: "Notices", address: str) -> list[Source]:
    """Whom to listen to on the node with this address."""
    names = whereabouts.found() if config.source == "auto" else (config.source,)
    return [source for name in names for source in _sources(name, config.address, address)]


def _sources(name: str, at: str | None, address: str) -> list[Source]:
    given = () if at is None else (at,)
    if name == "aws":
        return [Aws(*given)]
    if name == "gcp":
        return [Preemption(*given), Maintenance(*given)]
    if name == "azure":
        return [Azure(*given)]
    if name == "kubernetes":
        return [File(at or KUBERNETES, "kubernetes")]
    if name == "file" and at is not None:
        return [File(at)]
    if name == "http" and at is not None:
        return [Url(at.replace("{address}", address))]
    return []


def drain_node(reason: str, deadline: float | None) -> None:
    """Tells Ray that the node of this process goes away: nothing is placed on it any more, and runs leave it.

    There is no public way to say it. Said again, the latest deadline counts.

    Raises:
        DrainError: Ray does not answer, or refuses.
    """
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    node = ray.get_runtime_context().get_node_id()
    at_ms = 0 if deadline is None else int(deadline * 1000)
    preempted = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    worker: Any = ray._private.worker.global_worker
    try:
        accepted, said = worker.gcs_client.drain_node(node, preempted, reason, at_ms)
    except Exception as error:  # Ray's own kinds are private, and the next attempt may succeed
        raise DrainError(f"node {node} cannot be drained: {type(error).__name__}: {error}") from error
    if not accepted:
        raise DrainError(f"Ray does not drain node {node}: {said}")
