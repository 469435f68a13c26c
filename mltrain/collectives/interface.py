"""What a training needs of its collectives, and nothing more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mltrain.collectives.waiting import Waiting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Membership:
    """One worker's place in one generation.

    Attributes:
        generation: number of the generation within its driver epoch; grows by one with every membership.
        rank: this worker's rank in ``[0, size)``. Ranks are numbered node by node.
        local_rank: rank among the ``local_size`` workers on the same node; also the index of its device.
        cross_rank: index of the node among the ``cross_size`` nodes that have a worker of this local rank.
        host: the name that workers of one node share.
        interface: network interface whose address peers connect to; None lets the library choose.
        rendezvous: ``host:port`` of the generation's rendezvous server; empty for a single rank.
    """

    generation: int = 0
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    cross_rank: int = 0
    cross_size: int = 1
    host: str = "localhost"
    interface: str | None = None
    rendezvous: str = ""


class Handle(Protocol):
    """An operation under way."""

    def wait(self) -> None:
        """Returns when the result is in place.

        Raises:
            CollectiveAborted: the generation was aborted, a peer was lost, or the deadline passed.
        """


class Collectives(Protocol):
    """Collective operations among the ranks of a generation.

    All ranks call the same operations in the same order. Any failure raises `CollectiveAborted`; nothing that an
    aborted generation computed may be used, and the only call that may follow is ``leave``.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def waiting(self) -> Waiting:
        """How long this rank waits for its peers: to join, and in every operation."""

    def join(self, membership: Membership, deadline_s: float) -> None:
        """Forms the generation with its other ranks, in this process, whatever came before.

        Raises:
            CollectiveAborted: a peer did not come within ``deadline_s``, or `abort` was called.
        """

    def leave(self) -> None:
        """Ends this rank's part in the generation, after success or failure. Idempotent; ends within seconds."""

    def abort(self, generation: int) -> None:
        """Fails what this rank is waiting for in a generation up to this one, now.

        May be called from any thread, at any time, more than once. A ``join`` of such a generation, under way or still
        to come, fails too. A later generation is untouched: an abort may come late.
        """

    def allreduce_sum(self, tensor: "Tensor", name: str) -> Handle:
        """Starts to sum ``tensor`` over all ranks, in place. ``name`` is unique among operations under way."""

    def broadcast(self, tensors: Sequence["Tensor"], root: int) -> None:
        """Overwrites ``tensors`` with those of rank ``root``. Shapes and types agree on all ranks; any type goes."""

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        """Returns every rank's tensor, in rank order, on every rank. The first dimension may differ between ranks."""
