"""The notebooks run from top to bottom, where there is neither Spark nor Ray nor Horovod."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mltrain import results
from tests.support.datasets import make_dataset

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    make_dataset(root, rows=4000, shards=4)
    return root


@pytest.fixture(autouse=True)
def _surroundings(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels find: they are processes of their own and inherit the environment."""
    absent = tmp_path / "absent"
    absent.mkdir()
    for engine in ("ray", "pyspark", "horovod", "delta"):
        (absent / f"{engine}.py").write_text(f"raise ImportError('{engine} is not installed here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(absent), str(NOTEBOOKS.parent)]))
    monkeypatch.setenv("PATH", "/usr/bin-without-java")
    monkeypatch.setenv("MLTRAIN_ROOT", str(root))
    monkeypatch.setenv("MLTRAIN_DATASET", "made")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


def executed(name: str) -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_the_quickstart_trains_and_predicts(root: Path) -> None:
    assert pictures(executed("01_quickstart.ipynb"))
    assert results.runs(str(root))["status"].to_pylist() == ["finished", "finished"]


def test_a_dataset_is_looked_at(root: Path) -> None:
    notebook = executed("02_data.ipynb")
    assert pictures(notebook) == 1
    said = printed(notebook)
    assert "chi-square" in said and "with 2 degrees of freedom" in said
    assert "epoch 2: " in said
