"""The notebooks run from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mltrain import results
from tests.support.datasets import make_dataset

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_the_quickstart_runs_where_there_is_neither_spark_nor_ray_nor_horovod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, absent = tmp_path / "root", tmp_path / "absent"
    make_dataset(root, rows=4000, shards=4)
    absent.mkdir()
    for engine in ("ray", "pyspark", "horovod", "delta"):
        (absent / f"{engine}.py").write_text(f"raise ImportError('{engine} is not installed here')\n")
    # The kernel is a process of its own and inherits the environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(absent), str(NOTEBOOKS.parent)]))
    monkeypatch.setenv("PATH", "/usr/bin-without-java")
    monkeypatch.setenv("MLTRAIN_ROOT", str(root))
    monkeypatch.setenv("MLTRAIN_DATASET", "made")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / "01_quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert results.runs(str(root))["status"].to_pylist() == ["finished", "finished"]
