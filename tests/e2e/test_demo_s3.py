"""The demo with every artefact, the Delta table too, in object storage."""

from pathlib import Path

from mltrain import results
from mltrain.storage import open_store
from tests.e2e.test_demo_local import demo


def test_the_demo_runs_on_s3_and_leaves_nothing_elsewhere(bucket: str, spark_conf: None, tmp_path: Path) -> None:
    printed = demo(f"{bucket}/demo", tmp_path / "logs")
    assert printed["metrics"]["test/auc"] >= 0.90
    assert all(place.startswith(f"{bucket}/demo/") for place in printed["places"].values())
    top = {meta.path.split("/")[0] for meta in open_store(f"{bucket}/demo").list()}
    assert top == {"builds", "datasets", "lake", "plots", "runs", "runs_table", "shards", "sweeps"}
    assert results.lineage(f"{bucket}/demo", printed["best"])["table"]["version"] == 1
    assert results.runs(f"{bucket}/demo").num_rows == 3
