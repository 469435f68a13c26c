import os
from pathlib import Path

import pyarrow as pa
import pytest

from mltrain import config, features
from mltrain.errors import RequestError
from mltrain.features import engine


def test_the_newest_logs_of_engines_are_kept(tmp_path: Path) -> None:
    for age in range(30):
        path = tmp_path / f"spark-{age}.log"
        path.write_text("a line")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "cli.log").write_text("not an engine's")
    engine._forget_old_logs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cli.log", *(f"spark-{age}.log" for age in range(19))}


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [
        ([pa.float32()] * 13 + [pa.int32()] * 26, 32768),
        ([pa.int64()] * 4096, 2048),
        ([pa.string()] * 10 + [pa.int64()] * 6, 6523),
        ([pa.list_(pa.float32())] * 1000, 256),
    ],
)
def test_batches_have_fewer_rows_the_wider_a_row_is(kinds: list[pa.DataType], rows: int) -> None:
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    assert engine.rows_per_batch(schema, {}) == rows


def test_a_batch_of_long_vectors_has_few_rows() -> None:
    schema = pa.schema([("id", pa.int64()), ("v", pa.list_(pa.float32()))])
    assert engine.rows_per_batch(schema, {"v": 4096}) == 2047


def test_what_is_no_dataset_file_is_refused_before_spark_starts() -> None:
    experiment = config.parse({"name": "a", "dataset": "adult", "train": {"epochs": 1}})
    for wrong in (experiment, None, "adult.yaml"):
        with pytest.raises(RequestError, match=rf"config.load_dataset\(path\) gives it, not {type(wrong).__name__}"):
            features.build(wrong)  # type: ignore[arg-type]
