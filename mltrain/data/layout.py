"""How a dataset's rows are dealt out to shards, lanes and windows: fixed at build, never by the number of workers."""

MAX_LANES = 256
SHARDS_PER_LANE = 16
WINDOW_BYTES = 64 << 20
MAX_WINDOW_ROWS = 1 << 31


def choose_buckets(rows: int, rows_per_shard: int) -> int:
    """Shards for a split of one increment: a power of two, so that a bucket is the top bits of a row's hash.

    The mean number of rows a shard is between 0.71 and 1.41 times the target.
    """
    buckets = 1
    while rows * 1.0 > buckets * rows_per_shard * 2**0.5:
        buckets *= 2
    return buckets


def choose_lanes(shards: int) -> int:
    """C: the largest power of two that is at most 256 and leaves 16 shards a lane; at least 1.

    A node reads neighbouring lanes, so more lanes divide evenly among more nodes; fewer shards a lane make the shards
    that two lanes share a larger part of what is read.
    """
    lanes = 1
    while lanes * 2 <= min(MAX_LANES, shards // SHARDS_PER_LANE):
        lanes *= 2
    return lanes


def choose_window(shards: int, rows: int, row_bytes: float) -> int:
    """K: shard fragments a window, so that one lane's window is about 64 MiB, and at least 2 shards where there are
    so many.

    Args:
        shards: shards of the split.
        rows: their rows together.
        row_bytes: bytes a row that models read, on average. Not file sizes: those change with Arrow's version, K must
            not.

    A rank keeps one window a lane in memory (as mapped pages): a node that reads all 256 lanes about 16 GiB, one of
    64 nodes 256 MiB. The build has scattered the rows already; windows make one epoch differ from the next.
    """
    if shards == 0 or rows == 0:
        return 1
    rows_per_shard = rows / shards
    by_bytes = int(WINDOW_BYTES / max(1.0, rows_per_shard * row_bytes))
    by_rows = int(MAX_WINDOW_ROWS / (2 * rows_per_shard))
    return max(1, min(shards, max(2, by_bytes), by_rows))
