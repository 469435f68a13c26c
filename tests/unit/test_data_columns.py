"""What reading some of a dataset's columns touches: pages of mapped shards that nobody reads stay on disk."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from mltrain.data import Dataset, Loader
from tests.support.datasets import Features, make_dataset

ROWS = 40_000
# Kernels map up to 2 MiB around what is touched: the header, the footer, the ends of what lies between.
SLACK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training shard of 26 MB of ids in one matrix, 0.5 MB of float32 in another, and lists."""
    path = tmp_path_factory.mktemp("columns")
    made = Features(numeric=2, categorical=200, ragged=2, weight=True, keep=True)
    dataset = make_dataset(path, rows=ROWS, shards=1, features=made)
    for _ in Loader(dataset, "train", global_batch_size=4096):  # which hashes every byte, once in this process
        pass
    return path


def mapped_bytes(root: Path) -> int:
    """Bytes of shards below ``root`` that this process has in its memory."""
    smaps = Path("/proc/self/smaps").read_text()
    found = re.findall(rf"^\S+ \S+ \S+ \S+ \S+ +{re.escape(str(root))}\S*\n(?:\S+: .*\n)*?Rss: +(\d+) kB", smaps, re.M)
    return 1024 * sum(map(int, found))


def matrix_bytes(dataset: Dataset, dtype: str) -> int:
    return dataset.schema.matrices[dtype].row_bytes * dataset.rows("train")


def test_the_loader_reads_only_the_matrices_and_lists_that_it_was_asked_for(root: Path) -> None:
    def touched(columns: Iterable[str] | None) -> int:
        dataset = Dataset.open(root / "datasets" / "made")
        loader = Loader(dataset, "train", global_batch_size=4096, columns=columns)
        for batch in loader:
            assert set(batch.labels) == {"y"} and batch.weight is not None and len(batch.weight) == batch.rows
            assert set(batch.matrices) == ({"float32", "int32"} if columns is None else {"float32"})
            assert set(batch.ragged) == ({"h0", "h1"} if columns is None else set(columns) & {"h0", "h1"})
        return mapped_bytes(root)

    assert mapped_bytes(root) == 0
    dataset = Dataset.open(root / "datasets" / "made")
    floats, ids = (matrix_bytes(dataset, dtype) for dtype in ("float32", "int32"))
    assert all(touched(columns) < floats + SLACK_BYTES for columns in (["x1"], [], ["h1"], ["x0", "x1", "h0"]))
    assert touched(None) > floats + ids


def test_a_table_of_some_columns_reads_only_their_matrices(root: Path) -> None:
    dataset = Dataset.open(root / "datasets" / "made")
    table = dataset.read("train", ["id", "x0", "y"])
    assert table.schema.names == ["id", "x0", "y"] and len(table) == dataset.rows("train")
    assert mapped_bytes(root) < matrix_bytes(dataset, "float32") + SLACK_BYTES
    assert list(dataset.to_pandas("train", rows=5, columns=["c3", "note"]).columns) == ["c3", "note"]
