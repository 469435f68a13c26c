"""Join, leave, abort, reduce, broadcast and gather among the ranks of one generation, behind one interface."""

from mltrain.collectives.interface import Collectives, Handle, Membership
from mltrain.collectives.local import LocalCollectives
from mltrain.collectives.rendezvous import HOROVOD_BUILD, RendezvousServer

__all__ = ["HOROVOD_BUILD", "Collectives", "Handle", "LocalCollectives", "Membership", "RendezvousServer", "create"]


def create(name: str, *, device: str = "cpu") -> Collectives:
    """Returns collectives by name; the library behind them is imported only here.

    Args:
        name: ``"local"`` (one rank, no library), ``"horovod"``, or ``"torch"`` (torch.distributed).
        device: where the tensors live: ``"cpu"`` (Gloo) or ``"cuda"`` (NCCL).

    Raises:
        ValueError: there are none of that name.
    """
    if name == "local":
        return LocalCollectives()
    if name == "horovod":
        from mltrain.collectives.horovod import HorovodCollectives

        return HorovodCollectives(device=device)
    if name == "torch":
        from mltrain.collectives.torch import TorchCollectives

        return TorchCollectives(device=device)
    raise ValueError(f"collectives are called local, horovod or torch, not {name!r}")
