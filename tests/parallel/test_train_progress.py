"""What a training says while it runs."""

import re
from pathlib import Path

import pytest

from mltrain import train
from mltrain.config import ClusterConfig
from mltrain.progress import Passing
from mltrain.train import cluster
from tests.support.datasets import make_dataset
from tests.support.training import experiment, parse


def test_of_evaluations_only_a_new_best_is_said_to_stay(tmp_path: Path) -> None:
    make_dataset(tmp_path, rows=2000)
    lines: list[str] = []
    mapping = experiment(tmp_path, epochs=6, optimizer={"lr": 0.3})
    result = train.run(parse(mapping), progress=lines.append)
    metric = str(result.config.objective.metric)
    best: float | None = None
    evaluations = [line for line in lines if line.startswith("epoch")]
    assert len(evaluations) == 6
    for line in evaluations:
        (found,) = re.findall(rf"{metric} (\S+?)(?:,| |$)", line)
        leads = best is None or (float(found) > best if result.config.objective.mode == "max" else float(found) < best)
        assert leads == line.endswith(", the best so far") == (not isinstance(line, Passing))
        best = float(found) if leads else best
    assert any(isinstance(line, Passing) for line in evaluations)


@pytest.mark.parametrize("address", ["auto", "the address"])
def test_joining_a_cluster_is_said(ray_cluster: str, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    if address == "auto":
        monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    lines: list[str] = []
    with cluster.ray_cluster(ClusterConfig(address="auto" if address == "auto" else ray_cluster), lines.append):
        assert lines == [f"joined the Ray cluster at {ray_cluster}"]
