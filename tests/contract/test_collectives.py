"""The contract of collectives, kept by every implementation, among real processes."""

from collections.abc import Iterator

import pytest
import torch

from mltrain.collectives import Collectives, LocalCollectives, Membership
from mltrain.errors import CollectiveAborted
from tests.support.ranks import Ranks

BIG = 4_000_000


def _sum(made: Collectives, size: int) -> bool:
    """Exact sums of integers in fp32, several operations under way at once."""
    tensors = [torch.arange(size, dtype=torch.float32) % 1000 + made.rank + index for index in range(3)]
    for handle in [made.allreduce_sum(tensor, f"t{index}") for index, tensor in enumerate(tensors)]:
        handle.wait()
    ranks = made.size * (made.size - 1) / 2
    return all(
        torch.equal(tensor, (torch.arange(size, dtype=torch.float32) % 1000 + index) * made.size + ranks)
        for index, tensor in enumerate(tensors)
    )


def _broadcast(made: Collectives, root: int) -> list[object]:
    tensors = [
        torch.full((3, 2), float(made.rank)),
        torch.tensor(made.rank),
        torch.tensor([made.rank == root, False]),
        torch.full((5,), made.rank, dtype=torch.bfloat16),
        torch.arange(6, dtype=torch.float64).reshape(2, 3).t() + made.rank,
        torch.empty(0),
    ]
    made.broadcast(tensors, root)
    return [tensor.tolist() for tensor in tensors]


def _gather(made: Collectives, rows: list[int]) -> list[list[list[int]]]:
    mine = torch.full((rows[made.rank], 2), made.rank, dtype=torch.int64)
    return [part.tolist() for part in made.gather(mine)]


def _leave(made: Collectives) -> None:
    made.leave()


def _wait_for_ever(made: Collectives) -> None:
    made.allreduce_sum(torch.ones(8), "nobody else").wait()


def _sum_for_ever(made: Collectives) -> None:
    while True:
        made.allreduce_sum(torch.ones(BIG), "again").wait()


class CollectivesContract:
    """Every implementation's class of tests derives from this."""

    name = ""
    size = 2

    @pytest.fixture(scope="class")
    @classmethod
    def ranks(cls) -> Iterator[Ranks]:
        with Ranks(cls.name, cls.size) as ranks:
            yield ranks

    @pytest.fixture
    def formed(self, ranks: Ranks) -> Iterator[Ranks]:
        ranks.formed(ranks.all)
        yield ranks
        Ranks.each(ranks.all, _leave)

    def test_sums_are_exact_on_every_rank(self, formed: Ranks) -> None:
        assert Ranks.each(formed.all, _sum, 1_000_003) == [True] * self.size

    def test_broadcast_copies_every_type_and_shape_from_the_root(self, formed: Ranks) -> None:
        root = self.size - 1
        results = Ranks.each(formed.all, _broadcast, root)
        assert all(result == results[root] for result in results)
        assert results[0][1] == root and results[0][2] == [True, False]

    @pytest.mark.parametrize("rows", [[2, 0, 5], [0, 0, 0], [0, 0, 1], [3, 3, 3]])
    def test_gather_keeps_the_order_of_ranks_with_any_number_of_rows(self, formed: Ranks, rows: list[int]) -> None:
        expected = [[[rank, rank]] * rows[rank] for rank in range(self.size)]
        assert Ranks.each(formed.all, _gather, rows) == [expected] * self.size

    def test_a_generation_follows_another_in_the_same_processes(self, ranks: Ranks) -> None:
        for _ in range(3):
            ranks.formed(ranks.all)
            assert Ranks.each(ranks.all, _sum, 1000) == [True] * self.size
            Ranks.each(ranks.all, _leave)


class TestLocal(CollectivesContract):
    name = "local"
    size = 1

    def test_an_aborted_generation_refuses_operations_until_it_is_left(self) -> None:
        made = LocalCollectives()
        made.join(Membership(), 1.0)
        made.abort()
        with pytest.raises(CollectiveAborted):
            made.gather(torch.ones(1))
        made.leave()
        assert made.gather(torch.ones(1))[0].item() == 1.0


class DistributedContract(CollectivesContract):
    """What several processes add: peers are lost, and whoever waits is freed."""

    size = 3

    def test_abort_frees_a_rank_that_waits_in_a_collective(self, ranks: Ranks) -> None:
        ranks.formed(ranks.all)
        waiting = ranks.all[1].send(_wait_for_ever)
        for rank in ranks.all:
            rank.call("abort")
        with pytest.raises(CollectiveAborted):
            ranks.all[1].receive(waiting)
        Ranks.each(ranks.all, _leave)

    def test_abort_frees_a_rank_that_waits_for_a_peer_to_join(self, ranks: Ranks) -> None:
        members = ranks.all[:2]
        calls = ranks.form(members, deadline_s=60.0, size=3)
        for member in members:
            member.call("abort")
        for member, call in zip(members, calls, strict=True):
            with pytest.raises(CollectiveAborted):
                member.receive(call)
        Ranks.each(members, _leave)

    def test_joining_without_a_peer_ends_at_the_deadline(self, ranks: Ranks) -> None:
        call = ranks.form(ranks.all[:1], deadline_s=1.0, size=2)[0]
        with pytest.raises(CollectiveAborted):
            ranks.all[0].receive(call)
        Ranks.each(ranks.all[:1], _leave)

    def test_survivors_of_a_killed_peer_raise_and_form_the_next_generation(self, ranks: Ranks) -> None:
        ranks.formed(ranks.all)
        calls = [rank.send(_sum_for_ever) for rank in ranks.all]
        survivors = [ranks.all[0], ranks.all[2]]
        ranks.replace(1)
        for rank in survivors:
            rank.call("abort")
        for rank, call in zip(survivors, [calls[0], calls[2]], strict=True):
            with pytest.raises(CollectiveAborted):
                rank.receive(call)
        Ranks.each(survivors, _leave)
        ranks.formed(survivors)
        assert Ranks.each(survivors, _sum, BIG) == [True, True]
        Ranks.each(survivors, _leave)


class TestHorovod(DistributedContract):
    name = "horovod"


class TestTorch(DistributedContract):
    name = "torch"
