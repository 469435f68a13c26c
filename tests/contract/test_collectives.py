"""The contract of collectives, kept by every implementation, among real processes."""

import contextlib
import http.client
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from mltrain.collectives import Collectives, LocalCollectives, Membership
from mltrain.errors import CollectiveAborted
from tests.support.processes import wait_until
from tests.support.ranks import Rank, Ranks

BIG = 4_000_000
MANY = 16_000_000
# Deadline of what must end long before.
_LONG_S = 40.0


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


def _bits_of_sums(made: Collectives, times: int) -> set[bytes]:
    """What four sums under way at once come to, again and again, each rank starting them at moments of its own."""
    chance, found = random.Random(made.rank), set()
    for _ in range(times):
        numbers = torch.Generator().manual_seed(made.rank)
        tensors = [torch.randn(5000 + index, generator=numbers) for index in range(4)]
        handles = []
        for index, tensor in enumerate(tensors):
            time.sleep(chance.choice([0.0, 0.003]))
            handles.append(made.allreduce_sum(tensor, f"t{index}"))
        for handle in handles:
            handle.wait()
        found.add(torch.cat(tensors).numpy().tobytes())
    return found


def _leave(made: Collectives) -> None:
    made.leave()


def _wait_for_ever(made: Collectives) -> None:
    made.allreduce_sum(torch.ones(8), "nobody else").wait()


def _sum_for_ever(made: Collectives) -> None:
    while True:
        made.allreduce_sum(torch.ones(BIG), "again").wait()


def _join(made: Collectives, membership: Membership, deadline_s: float) -> None:
    made.join(membership, deadline_s)


def _broadcast_for_ever(made: Collectives, root: int) -> None:
    """By the library itself, which knows nothing of an abort but what it is told by its connections."""
    import horovod.torch as hvd

    tensor = torch.ones(MANY)
    while True:
        try:
            hvd.broadcast_(tensor, root, name="again")
        except Exception as error:  # HorovodInternalError, or ValueError from the next
            raise CollectiveAborted(str(error)) from error


def _held(_: Collectives) -> tuple[int, int]:
    process = psutil.Process()
    return process.num_fds(), process.num_threads()


def _places(_: Collectives) -> tuple[int, int, int, int]:
    import horovod.torch as hvd

    return hvd.local_rank(), hvd.local_size(), hvd.cross_rank(), hvd.cross_size()


def _hierarchical(_: Collectives, operation: str) -> str:
    import horovod.torch as hvd

    os.environ[f"HOROVOD_HIERARCHICAL_{operation}"] = "1"
    try:
        hvd.init()
    except NotImplementedError as error:
        return str(error)
    finally:
        del os.environ[f"HOROVOD_HIERARCHICAL_{operation}"]
    return "not refused"


@contextlib.contextmanager
def _silent_port() -> Iterator[int]:
    """A port where requests to connect are lost without a word, as on a host that has lost power."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        for high in range(64, 256):
            # Of two addresses Gloo's greater one connects; it compares ports by their lower byte first.
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", high << 8))
                break
        listener.listen(0)
        # Nobody accepts: the first fills the queue.
        stack.enter_context(socket.create_connection(listener.getsockname()))
        yield listener.getsockname()[1]


def _pretend_to_be_rank_1(rendezvous: str, port: int) -> None:
    """Gives rank 0 of 2 a Gloo address: a sockaddr_storage and a number, unset."""
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s", port, socket.inet_aton("127.0.0.1"))
    part = address.ljust(128, b"\0") + struct.pack("=q", -1)
    connection = http.client.HTTPConnection(rendezvous, timeout=_LONG_S)
    connection.request("POST", "/global/1/2", part * 2)
    assert connection.getresponse().status == 200


def _wait_for_transfers(sender: Rank) -> None:
    begun = sender.bytes_written()
    wait_until(lambda: sender.bytes_written() > begun + 4 * MANY, 30.0, "transfer")


def _assert_abort_frees(rank: Rank, call: int, generation: int) -> None:
    """The goal is 0.1 s; the bound is for a machine that does much else."""
    began = time.monotonic()
    rank.call("abort", generation)
    with pytest.raises(CollectiveAborted):
        rank.receive(call)
    rank.call(_leave)
    assert time.monotonic() - began < _LONG_S / 4


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

    def test_an_aborted_generation_refuses_operations_and_the_next_does_not(self) -> None:
        made = LocalCollectives()
        made.join(Membership(1), 1.0)
        made.abort(1)
        with pytest.raises(CollectiveAborted):
            made.gather(torch.ones(1))
        made.join(Membership(2), 1.0)
        assert made.gather(torch.ones(1))[0].item() == 1.0


class DistributedContract(CollectivesContract):
    """What several processes add: peers are lost, and whoever waits is freed."""

    size = 3

    def test_sums_have_the_same_bits_whenever_the_ranks_start_them(self, formed: Ranks) -> None:
        found = Ranks.each(formed.all, _bits_of_sums, 20)
        assert len(set().union(*found)) == 1

    def test_abort_frees_a_rank_that_waits_in_a_collective(self, ranks: Ranks) -> None:
        ranks.formed(ranks.all)
        waiting = ranks.all[1].send(_wait_for_ever)
        for rank in ranks.all:
            rank.call("abort", ranks.generation)
        with pytest.raises(CollectiveAborted):
            ranks.all[1].receive(waiting)
        Ranks.each(ranks.all, _leave)

    def test_abort_frees_a_rank_that_waits_for_a_peer_to_join(self, ranks: Ranks) -> None:
        members = ranks.all[:2]
        calls = ranks.form(members, deadline_s=60.0, size=3)
        for member in members:
            member.call("abort", ranks.generation)
        for member, call in zip(members, calls, strict=True):
            with pytest.raises(CollectiveAborted):
                member.receive(call)
        Ranks.each(members, _leave)

    def test_an_abort_that_comes_late_leaves_the_next_generation_alone(self, ranks: Ranks) -> None:
        ranks.formed(ranks.all)
        ranks.all[0].call("abort", ranks.generation)
        Ranks.each(ranks.all, _leave)
        ranks.all[0].call("abort", ranks.generation)
        ranks.formed(ranks.all)
        ranks.all[0].call("abort", ranks.generation - 1)
        assert Ranks.each(ranks.all, _sum, 1000) == [True] * self.size
        Ranks.each(ranks.all, _leave)

    def test_an_abort_that_comes_early_refuses_the_generation_and_not_the_next(self, ranks: Ranks) -> None:
        rank = ranks.all[0]
        rank.call("abort", ranks.generation + 1)
        (call,) = ranks.form([rank], deadline_s=_LONG_S, size=2)
        with pytest.raises(CollectiveAborted):
            rank.receive(call)
        ranks.formed(ranks.all)
        assert Ranks.each(ranks.all, _sum, 1000) == [True] * self.size
        Ranks.each(ranks.all, _leave)

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
            rank.call("abort", ranks.generation)
        for rank, call in zip(survivors, [calls[0], calls[2]], strict=True):
            with pytest.raises(CollectiveAborted):
                rank.receive(call)
        Ranks.each(survivors, _leave)
        ranks.formed(survivors)
        assert Ranks.each(survivors, _sum, BIG) == [True, True]
        Ranks.each(survivors, _leave)

    def test_abort_frees_a_rank_whose_rendezvous_does_not_answer(self, ranks: Ranks) -> None:
        rank = ranks.all[0]
        ranks.generation += 1
        with _silent_port() as port:
            place = Membership(ranks.generation, 0, 2, rendezvous=f"127.0.0.1:{port}", interface="lo")
            call = rank.send(_join, place, _LONG_S)
            wait_until(lambda: rank.connections(psutil.CONN_SYN_SENT), 30.0, "connection under way")
            _assert_abort_frees(rank, call, ranks.generation)

    def test_forming_again_and_again_keeps_no_threads_or_files(self, ranks: Ranks) -> None:
        members = ranks.all[:2]
        held = []
        for count in (3, 20):
            for _ in range(count):
                ranks.formed(members)
                Ranks.each(members, _sum, 1000)
                Ranks.each(members, _leave)
            held.append(members[0].call(_held))
        # A thread may be about to end. One that is kept, or a file, would be twenty.
        assert all(after < before + 10 for before, after in zip(*held, strict=True)), held


class TestHorovod(DistributedContract):
    name = "horovod"

    def test_abort_frees_a_rank_that_connects_to_a_host_that_does_not_answer(self, ranks: Ranks) -> None:
        (call,) = ranks.form(ranks.all[:1], deadline_s=_LONG_S, size=2)
        with _silent_port() as port:
            _pretend_to_be_rank_1(ranks.rendezvous, port)
            wait_until(lambda: ranks.all[0].connections(psutil.CONN_SYN_SENT), 30.0, "connection under way")
            _assert_abort_frees(ranks.all[0], call, ranks.generation)

    @pytest.mark.parametrize("root", [0, 1], ids=["sending", "receiving"])
    def test_abort_frees_a_rank_in_the_middle_of_a_transfer(self, ranks: Ranks, root: int) -> None:
        members = ranks.all[:2]
        # It may be between two transfers once; that is much shorter than they are.
        for _ in range(3):
            Ranks.gather(members, ranks.form(members, deadline_s=_LONG_S))
            calls = [member.send(_broadcast_for_ever, root) for member in members]
            _wait_for_transfers(members[root])
            members[1].signal(signal.SIGSTOP)
            try:
                _assert_abort_frees(members[0], calls[0], ranks.generation)
            finally:
                members[1].signal(signal.SIGCONT)
            _assert_abort_frees(members[1], calls[1], ranks.generation)

    def test_ranks_within_and_across_nodes_are_those_of_the_membership(self, ranks: Ranks) -> None:
        Ranks.gather(ranks.all, ranks.form(ranks.all))
        assert Ranks.each(ranks.all, _places) == [(rank, 3, 0, 1) for rank in range(3)]
        Ranks.each(ranks.all, _leave)

    @pytest.mark.parametrize("operation", ["ALLREDUCE", "ALLGATHER"])
    def test_hierarchical_operations_are_refused(self, ranks: Ranks, operation: str) -> None:
        assert "connects all ranks once" in ranks.all[0].call(_hierarchical, operation)


class TestTorch(DistributedContract):
    name = "torch"
