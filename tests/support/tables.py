"""Delta tables for tests, written without Spark, and dataset files over them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.csv

from mltrain.config import DatasetFile

ROOT = Path(__file__).resolve().parents[2]
ADULT = ROOT / "examples" / "data" / "adult.csv"


def adult() -> pa.Table:
    """The Adult sample with a key, `?` read as null."""
    convert = pyarrow.csv.ConvertOptions(null_values=["?"], strings_can_be_null=True)
    table = pyarrow.csv.read_csv(ADULT, convert_options=convert)
    return table.append_column("row_id", pa.array(np.arange(len(table))))


def write(path: Path, *parts: pa.Table | Mapping[str, Any]) -> str:
    """Writes a Delta table, one commit a part; answers its path."""
    for part in parts:
        table = part if isinstance(part, pa.Table) else pa.table(dict(part))
        deltalake.write_deltalake(str(path), table, mode="append")
    return str(path)


def dataset_file(table: str | Path, root: str | Path, *, name: str = "test", **dataset: Any) -> DatasetFile:
    """A dataset file; by default the key is `id` and the label the binary `y`."""
    given = {"table": str(table), "key": ["id"], "label": {"column": "y", "type": "binary"}, **dataset}
    if "labels" in dataset:
        del given["label"]
    return DatasetFile.model_validate({"name": name, "root": str(root), "dataset": given})


def python_with_faults(faults: Path, *, fault: str) -> dict[str, str]:
    """The environment of a process, and of Spark's workers below it, in which ``fault`` is on."""
    faults.mkdir(parents=True, exist_ok=True)
    (faults / "fault").write_text(fault)
    return {
        "PYTHONPATH": str(ROOT / "tests" / "support" / "faulty"),
        "MLTRAIN_TEST_FAULTS": str(faults / "fault"),
    }
