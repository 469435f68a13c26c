"""What nodes fetch of a dataset in an epoch, counted at the S3 server. The whole table: benchmarks/bytes.py."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.nodes import Spread, fetched_ratio, make_spread, read_share
from tests.support.s3 import S3Server

LANES, EPOCH = 8, 32


@pytest.fixture(scope="module")
def spread(s3_server: S3Server) -> Spread:
    return make_spread(s3_server, lanes=LANES, per_lane=32, rows_per_shard=16, window=3, epoch=EPOCH)


def nodes_read(spread: Spread, folder: Path, generations: list[tuple[range, int]]) -> None:
    """Every node reads its share of an epoch, one after the other: in each stretch of steps there are so many nodes."""
    for node in range(max(nodes for _, nodes in generations)):
        mine = [(stretch, node, nodes) for stretch, nodes in generations if node < nodes]
        read_share(spread, folder / f"node-{node}", mine)


@pytest.mark.parametrize(("nodes", "at_most"), [(1, 1.02), (8, 1.1), (3, 1.3)])
def test_nodes_fetch_little_more_than_there_is(
    s3_server: S3Server, spread: Spread, tmp_path: Path, nodes: int, at_most: float
) -> None:
    """Nodes whose number does not divide the lanes share some of them."""
    before = s3_server.reads()
    nodes_read(spread, tmp_path, [(range(EPOCH), nodes)])
    assert 1 <= fetched_ratio(s3_server, spread, tmp_path, before) <= at_most


def test_a_change_of_membership_in_mid_epoch_costs_the_windows_that_change_hands(
    s3_server: S3Server, spread: Spread, tmp_path: Path
) -> None:
    before = s3_server.reads()
    nodes_read(spread, tmp_path, [(range(EPOCH // 2 + 1), 4), (range(EPOCH // 2 + 1, EPOCH), 2)])
    assert 1 <= fetched_ratio(s3_server, spread, tmp_path, before) <= 1.3


def test_workers_of_a_node_fetch_each_shard_once(s3_server: S3Server, spread: Spread, tmp_path: Path) -> None:
    before = s3_server.reads()
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        shares = [[(range(EPOCH), rank, 3)] for rank in range(3)]
        list(pool.map(read_share, [spread] * 3, [tmp_path / "cache"] * 3, shares))
    assert 1 <= fetched_ratio(s3_server, spread, tmp_path, before) <= 1.02
