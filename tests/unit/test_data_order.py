"""The order of samples: pure functions, over sizes, lanes, windows, batch sizes and memberships."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltrain.data import dealing, order
from mltrain.data.order import ShuffledEpoch
from mltrain.data.shares import EpochOrder, Segment, SequentialEpoch, steps

DIGEST = "d" * 64

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=40)
lanes = st.sampled_from([1, 2, 4, 8, 16])
windows = st.integers(1, 9)


def epoch_of(
    shards: list[int], c: int, k: int, batch: int, *, seed: int = 1, epoch: int = 0, split: str = "train"
) -> ShuffledEpoch:
    return ShuffledEpoch(shards, batch, lanes=c, window=k, digest=DIGEST, split=split, seed=seed, epoch=epoch)


def share(made: EpochOrder, step: int, rank: int, world: int) -> list[Segment]:
    return made.shares(range(step, step + 1), rank, world)[0]


def canonical(shards: list[int], segments: list[Segment]) -> list[int]:
    """Canonical row numbers of segments, in delivery order."""
    starts = np.concatenate([[0], np.cumsum(shards)])
    rows = []
    for segment in segments:
        inside = range(shards[segment.shard])[segment.rows] if isinstance(segment.rows, slice) else segment.rows
        assert len(inside) == segment.count
        rows += [int(starts[segment.shard] + row) for row in inside]
    return rows


@given(size=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_feistel_network_permutes_every_size(size: int, keys: list[int]) -> None:
    a, b = dealing.radices(np.array([size]))
    index = np.arange(size, dtype=np.uint32)
    out = dealing.permute(index, np.uint32(size), a[0], b[0], np.array(keys, np.uint32))
    assert np.array_equal(np.sort(out), index)


@pytest.mark.parametrize("size", [1, 2, 65535, 65536, 131072, 393_217, 2_000_003])
def test_the_feistel_network_permutes_large_windows_too(size: int) -> None:
    a, b = dealing.radices(np.array([size]))
    index = np.arange(size, dtype=np.uint32)
    out = dealing.permute(index, np.uint32(size), a[0], b[0], np.array([1, 2, 3, 4], np.uint32))
    assert np.array_equal(np.sort(out), index)


def test_the_radices_of_the_largest_window_fit_sixteen_bits() -> None:
    a, b = dealing.radices(np.array([2**32 - 2**17]))
    assert int(a[0]) <= 2**16 and int(b[0]) <= 2**16
    index = np.arange(2**32 - 2**17 - 1000, 2**32 - 2**17, dtype=np.uint32)
    out = dealing.permute(index, np.uint32(2**32 - 2**17), a[0], b[0], np.array([9, 8, 7, 6], np.uint32))
    assert len(np.unique(out)) == 1000 and int(out.max()) < 2**32 - 2**17


@given(shards=sizes, c=lanes, k=windows, batch=st.integers(1, 2000), epoch=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_positions_and_canonical_rows_are_a_bijection(
    shards: list[int], c: int, k: int, batch: int, epoch: int
) -> None:
    made = epoch_of(shards, c, k, batch, epoch=epoch)
    rows = made.canonical_rows(np.arange(made.total))
    assert np.array_equal(np.sort(rows), np.arange(sum(shards)))


@pytest.mark.parametrize("batch", [1, 2, 3, 700, 65_536, 200_003, 399_999, 1_000_000])
def test_large_windows_are_dealt_completely_whatever_the_batch(batch: int) -> None:
    made = epoch_of([200_003, 199_999], 1, 2, batch)
    assert np.array_equal(np.sort(made.canonical_rows(np.arange(made.total))), np.arange(made.total))


def test_a_step_takes_a_row_of_every_part_of_its_window() -> None:
    """100 epochs of one window of 640 rows in steps of 64: 10 steps, each a row of each tenth row or so."""
    together = np.zeros(640)
    for epoch in range(100):
        rows = epoch_of([640], 1, 1, 64, epoch=epoch).canonical_rows(np.arange(640)).reshape(10, 64)
        assert all(np.bincount(np.sort(step) // 20, minlength=32).max() <= 4 for step in rows)
        together[rows[np.flatnonzero((rows == 0).any(axis=1))]] += 1
    far = together[20:-20]
    # Rows far apart meet in every tenth epoch, as in a random order; neighbours meet less often.
    assert abs(far.mean() - 10) < 1 and far.min() > 0 and far.max() < 25


@given(shards=sizes, c=lanes, k=windows, batch=st.integers(1, 200), worlds=st.lists(st.integers(1, 9), min_size=2))
@settings(max_examples=80, deadline=None)
def test_every_step_has_the_same_rows_for_any_number_of_workers(
    shards: list[int], c: int, k: int, batch: int, worlds: list[int]
) -> None:
    """The world size changes after every step, as it may in mid-epoch; each row comes once, in its own step."""
    made = epoch_of(shards, c, k, batch)
    expected = made.canonical_rows(np.arange(made.total))
    for step in range(steps(made.total, batch)):
        world = worlds[step % len(worlds)]
        shares = [canonical(shards, share(made, step, rank, world)) for rank in range(world)]
        wanted = expected[step * batch : (step + 1) * batch]
        assert sorted(row for share in shares for row in share) == sorted(wanted.tolist())
        sizes_of_shares = [len(share) for share in shares]
        assert max(sizes_of_shares) - min(sizes_of_shares) <= 1


@given(shards=sizes, c=lanes, k=windows, batch=st.integers(1, 200), world=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_shares_are_contiguous_in_lane_major_order_and_sorted_by_place_in_the_line(
    shards: list[int], c: int, k: int, batch: int, world: int
) -> None:
    made = epoch_of(shards, c, k, batch)
    for step in range(steps(made.total, batch)):
        positions = np.arange(step * batch, min((step + 1) * batch, made.total))
        lane_major = positions[np.lexsort((positions // c, positions % c))]
        places, rows = made.line_position(lane_major), made.canonical_rows(lane_major)
        for rank in range(world):
            low, high = rank * len(rows) // world, (rank + 1) * len(rows) // world
            by_place = rows[low:high][np.argsort(places[low:high])]
            assert canonical(shards, share(made, step, rank, world)) == by_place.tolist()


@given(shards=sizes, c=lanes, k=windows, batch=st.integers(1, 2000), world=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_steps_planned_together_are_those_planned_alone(
    shards: list[int], c: int, k: int, batch: int, world: int
) -> None:
    made = epoch_of(shards, c, k, batch)
    wanted = range(steps(made.total, batch))
    for rank in range(world):
        together = made.shares(wanted, rank, world)
        alone = [share(made, step, rank, world) for step in wanted]
        assert [canonical(shards, each) for each in together] == [canonical(shards, each) for each in alone]


@given(shards=sizes, batch=st.integers(1, 200), world=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_without_shuffle_the_order_is_canonical_and_shares_are_contiguous(
    shards: list[int], batch: int, world: int
) -> None:
    made = SequentialEpoch(shards, batch)
    wanted = range(steps(made.total, batch))
    rows = [row for s in wanted for r in range(world) for row in canonical(shards, share(made, s, r, world))]
    assert rows == list(range(sum(shards)))


@given(shards=sizes, c=lanes, k=windows)
@settings(max_examples=100, deadline=None)
def test_windows_tile_lanes_and_hold_at_least_half_of_k_fragments(shards: list[int], c: int, k: int) -> None:
    line = np.concatenate([[0], np.cumsum(shards)])
    total = int(line[-1])
    quotient, longer = divmod(total, c)
    lane_starts = np.arange(c + 1) * quotient + np.minimum(np.arange(c + 1), longer)
    starts = order.cut_windows(line, lane_starts, k)
    window_lanes = np.searchsorted(lane_starts, starts[:-1], side="right") - 1
    assert starts[0] == 0 and starts[-1] == total and np.all(np.diff(starts) > 0)
    assert set(lane_starts[:-1][np.diff(lane_starts) > 0]) <= set(starts)
    cuts = np.unique(np.concatenate([line, lane_starts]))
    for number in range(len(window_lanes)):
        fragments = np.count_nonzero((cuts >= starts[number]) & (cuts < starts[number + 1]))
        alone = np.count_nonzero(window_lanes == window_lanes[number]) == 1
        assert alone or k / 2 <= fragments < 1.5 * k


@given(sizes, lanes, windows, st.integers(1, 200), st.integers(1, 6), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_upcoming_names_every_shard_of_the_share(
    shards: list[int], c: int, k: int, batch: int, world: int, start: int
) -> None:
    made = epoch_of(shards, c, k, batch)
    step = start % steps(made.total, batch)
    for rank in range(world):
        upcoming = list(made.upcoming(range(step, step + 1), rank, world))
        assert {segment.shard for segment in share(made, step, rank, world)} <= set(upcoming)
        assert len(upcoming) == len(set(upcoming))


@pytest.mark.parametrize(("shuffle", "world"), [(True, 4), (True, 3), (True, 7), (False, 4)])
def test_what_is_prefetched_is_what_is_read(shuffle: bool, world: int) -> None:
    """No node prefetches the first window of the lane after its own, or what others read of the lanes it shares."""
    shards = [50] * 64
    made = epoch_of(shards, 8, 2, 128) if shuffle else SequentialEpoch(shards, 128)
    total = steps(made.total, 128)
    ahead = 4
    for rank in range(world):
        read = {segment.shard for step in range(total) for segment in share(made, step, rank, world)}
        prefetched = {
            shard
            for step in range(0, total, ahead)
            for shard in made.upcoming(range(step, min(step + 2 * ahead, total)), rank, world)
        }
        assert prefetched == read


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}, {"split": "test"}])
def test_seed_epoch_and_split_each_give_another_order(other: dict[str, int]) -> None:
    shards = [100] * 20
    positions = np.arange(2000)
    first = epoch_of(shards, 1, 3, 64).canonical_rows(positions)
    second = epoch_of(shards, 1, 3, 64, **other).canonical_rows(positions)  # type: ignore[arg-type]
    # Of two independent permutations one place in n agrees.
    assert np.count_nonzero(first == second) < 20


def test_a_step_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="step 2 of an epoch of 2 steps"):
        share(epoch_of([10], 1, 1, 5), 2, 0, 1)


def test_the_order_never_changes() -> None:
    """Golden values: runs resume, and results are compared, across versions of this library."""
    made = epoch_of([1000 + 7 * i for i in range(40)], 2, 3, 512, seed=7, epoch=5)
    rows = made.canonical_rows(np.arange(made.total))
    assert rows[:8].tolist() == GOLDEN_ROWS
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == GOLDEN_DIGEST
    assert [(s.shard, s.count, int(np.asarray(s.rows)[0])) for s in share(made, 3, 1, 3)] == GOLDEN_SHARE


@pytest.mark.parametrize(("nodes", "at_most"), [(8, 1.01), (64, 1.06), (63, 1.28)])
def test_a_node_reads_about_its_own_share_of_the_bytes(nodes: int, at_most: float) -> None:
    """256 lanes, 32 shards a lane: the shards that nodes touch in an epoch, over the shards there are."""
    shards = [64] * (256 * 32)
    batch = 256 * 64
    made = epoch_of(shards, 256, 4, batch)
    everything = range(steps(made.total, batch))
    touched = 0
    for node in range(nodes):
        touched += len({segment.shard for each in made.shares(everything, node, nodes) for segment in each})
    assert touched / len(shards) <= at_most


@pytest.mark.parametrize("gone", [15, 7])
def test_a_node_that_leaves_in_mid_epoch_costs_the_windows_that_change_hands(gone: int) -> None:
    """16 nodes divide the 64 lanes, 15 and 14 do not: what nodes prefetch, over the shards there are."""
    made = epoch_of([64] * (64 * 32), 64, 3, 64 * 64)
    total = steps(made.total, 64 * 64)
    for nodes, at_most in ((16, 1.17), (15, 1.23)):
        fetched = 0
        for node in range(nodes):
            mine: set[int] = set()
            for step in range(total):
                if step < total // 2:
                    mine.update(made.upcoming(range(step, total), node, nodes))
                elif node != min(gone, nodes - 1):
                    left = node - (node > gone)
                    mine.update(made.upcoming(range(step, total), left, nodes - 1))
            fetched += len(mine)
        assert fetched / (64 * 32) <= at_most


GOLDEN_ROWS = [23894, 12195, 23901, 12208, 23921, 12217, 23932, 12230]
GOLDEN_DIGEST = "7c6a6de4e2f8b92603a8f1f9f4297a7f2191a050b6a794ccd452f7bf9fc39842"
GOLDEN_SHARE = [(22, 19, 8), (14, 67, 192), (11, 25, 812), (27, 60, 4)]
