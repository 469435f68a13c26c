"""Collectives of a single rank: what `workers: 0` trains with, in this process and without any library."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mltrain.collectives.interface import Handle, Membership
from mltrain.collectives.waiting import Waiting
from mltrain.errors import CollectiveAborted

if TYPE_CHECKING:
    from torch import Tensor


class Done:
    """A `Handle` of what needs no others."""

    def wait(self) -> None:
        return None


class LocalCollectives:
    """The identity on every operation."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.waiting = Waiting()
        self._generation = 0
        self._aborted_through = -1

    def join(self, membership: Membership, deadline_s: float) -> None:
        if membership.size != 1:
            raise ValueError(f"local collectives have one rank, not {membership.size}")
        self._generation = membership.generation
        self._check()

    def leave(self) -> None:
        """There is nobody to leave."""

    def abort(self, generation: int) -> None:
        self._aborted_through = max(self._aborted_through, generation)

    def allreduce_sum(self, tensor: "Tensor", name: str) -> Handle:
        self._check()
        return Done()

    def broadcast(self, tensors: Sequence["Tensor"], root: int) -> None:
        self._check()

    def gather(self, tensor: "Tensor") -> "list[Tensor]":
        self._check()
        return [tensor]

    def _check(self) -> None:
        if self._generation <= self._aborted_through:
            raise CollectiveAborted(f"generation {self._generation} was aborted")
