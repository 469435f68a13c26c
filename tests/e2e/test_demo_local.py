"""The demo as a user runs it, on a local root, twice; and from its best run back to the Delta version."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from mltrain import config, results, train
from mltrain.data import Dataset
from mltrain.errors import DamagedError
from tests.support import processes

MLTRAIN = Path(sys.executable).with_name("mltrain")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


def demo(root: str | Path, logs: Path, *more: str) -> dict[str, Any]:
    """Runs it and answers what it prints."""
    words: list[str | Path] = [MLTRAIN, "demo", "--root", str(root), "--trials", "2", "--output", "json", *more]
    done = processes.run(words, logs, timeout_s=560)
    assert done.exit_code == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture(scope="module")
def first(root: Path, spark_conf: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return demo(root, tmp_path_factory.mktemp("first"))


def test_the_best_model_is_good_on_rows_it_never_saw(first: dict[str, Any]) -> None:
    assert first["metrics"]["test/auc"] >= 0.90


def test_every_artefact_is_below_the_root(root: Path, first: dict[str, Any]) -> None:
    table = DeltaTable(str(root / "lake/adult"))
    assert table.version() == 1
    rows = table.to_pyarrow_table()
    assert rows.num_rows == 32561
    assert rows["workclass"].null_count > 0 and "?" not in rows["workclass"].to_pylist()
    assert sorted(rows["row_id"].to_pylist()) == list(range(32561))
    pictures = [place for name, place in first["places"].items() if name.startswith("picture")]
    assert len(pictures) == 2
    assert all(Path(picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    for place in ("sweep", "best run", "checkpoint", "runs table"):
        assert Path(first["places"][place]).is_relative_to(root) and Path(first["places"][place]).is_dir()


def test_the_dataset_is_that_of_the_example_file(root: Path, first: dict[str, Any]) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "adult.yaml"
    wanted = config.load_dataset(example, {"root": str(root), "dataset.table": f"{root}/lake/adult"})
    dataset = Dataset.open(first["dataset"], root=root)
    assert dataset.provenance["config"] == config.to_yaml(wanted)
    assert "education" not in dataset.schema


def test_trials_and_sweep_are_in_the_runs_table(root: Path, first: dict[str, Any]) -> None:
    rows = {row["run_id"]: row for row in results.runs(str(root)).to_pylist(maps_as_pydicts="strict")}
    trials = [row for row in rows.values() if row["sweep_id"] == first["run_id"]]
    assert len(trials) == 2
    assert all(row["workers"] == 2 and row["worker_seconds"] > 0 and row["wall_s"] > 0 for row in trials)
    assert rows[first["best"]]["metrics"]["test/auc"] == first["metrics"]["test/auc"]
    assert rows[first["run_id"]]["kind"] == "sweep"


def test_a_prediction_leads_back_to_the_version_of_the_delta_table(root: Path, first: dict[str, Any]) -> None:
    scores = train.load(str(root), first["best"]).predict("test")
    assert scores.column_names[0] == "row_id"
    chain = results.lineage(str(root), first["best"])
    table = DeltaTable(str(root / "lake/adult"), version=1)
    assert chain["table"] == {"uri": str(root / "lake/adult"), "id": str(table.metadata().id), "version": 1}
    assert chain["dataset"]["digest"] == first["dataset"]
    assert chain["verified"] == ["checkpoint", "dataset", "build", "table"]


def test_a_changed_byte_in_the_chain_is_named(root: Path, first: dict[str, Any]) -> None:
    manifest = root / "shards" / first["dataset"] / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content.replace(b'"age"', b'"agf"', 1))
    try:
        with pytest.raises(DamagedError, match=r"manifest\.json: SHA-256 is"):
            results.lineage(str(root), first["best"])
    finally:
        manifest.write_bytes(content)


def test_a_second_demo_reuses_the_dataset_and_adds_a_sweep(
    root: Path, first: dict[str, Any], spark_conf: None, tmp_path: Path
) -> None:
    second = demo(root, tmp_path, "--workers", "0")
    assert second["reused"] and second["dataset"] == first["dataset"]
    assert second["run_id"] != first["run_id"]
    assert set(results.runs(str(root))["run_id"].to_pylist()) >= {first["run_id"], second["run_id"]}
