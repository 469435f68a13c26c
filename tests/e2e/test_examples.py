"""The files under examples/, and the commands that look at what they made, on a small dataset in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from mltrain import config
from mltrain.cli.app import run
from tests.support.datasets import Features, make_dataset

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _said(capsys: pytest.CaptureFixture[str], *words: str, exit_code: int = 0) -> Any:
    assert run([*words, "--output", "json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def _train(root: Path, *overrides: str) -> list[str]:
    values = [f"root={root}", "dataset=made", "train.workers=0", "train.max_steps=12", "loggers=[]", *overrides]
    words = [word for value in values for word in ("-s", value)]
    return ["train", "run", "-c", str(EXAMPLES / "sweep.yaml"), *words]


def test_the_example_files_load() -> None:
    dataset, sweep = config.load(EXAMPLES / "adult.yaml"), config.load(EXAMPLES / "sweep.yaml")
    assert isinstance(dataset, config.DatasetFile)
    assert isinstance(sweep, config.Experiment)
    assert dataset.root == sweep.root
    assert sweep.dataset == dataset.name


def test_a_training_is_recorded_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_dataset(tmp_path, rows=2000, features=Features())
    result = _said(capsys, *_train(tmp_path), "--run-id", "one")
    assert (result["run_id"], result["status"], result["step"]) == ("one", "finished", 12)
    assert "validation/auc" in result["metrics"]

    root = ("--root", str(tmp_path))
    assert [row["run_id"] for row in _said(capsys, "runs", "list", *root)] == ["one"]
    shown = _said(capsys, "runs", "show", "one", *root)
    assert shown["metrics"] == pytest.approx(result["metrics"])
    assert shown["events"]
    files = _said(capsys, "runs", "plot", "one", *root, "--out", str(tmp_path / "plots"))
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in files)

    assert _said(capsys, "dataset", "show", "made", *root)["digest"] == made.digest
    assert _said(capsys, "dataset", "verify", f"{tmp_path}/datasets/made")["ok"] is True
    for words in (["runs", "list", *root], ["runs", "show", "one", *root], ["dataset", "show", "made", *root]):
        assert run(words) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3


def test_a_training_says_which_model_it_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, rows=500)
    (tmp_path / "made.yaml").write_text("{name: made, root: ., dataset: made}")
    words = ["train", "run", "-c", str(tmp_path / "made.yaml"), "-s", "train.max_steps=2"]
    assert run(words) == 0
    said = capsys.readouterr()
    assert "model mltrain.models:tabular_mlp, the default; best is the min of validation/loss" in said.err
    assert "Best: step 2 (epoch " in said.out


def test_a_user_s_own_model_trains_with_its_own_loss_optimizer_and_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path, rows=2000, features=Features())
    result = _said(capsys, *_train(tmp_path, "model.factory=./model.py:build", "model.args={hidden: 16}"))
    assert {"validation/auc", "validation/f1", "validation/loss"} <= result["metrics"].keys()
    assert result["factory"]["kind"] == "file"


def test_a_damaged_dataset_is_named_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, rows=500)
    blob = next((tmp_path / "shards" / "blobs").glob("*.arrow"))
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    said = _said(capsys, "dataset", "verify", "made", "--root", str(tmp_path), exit_code=1)
    assert said["ok"] is False
    assert [blob.name in path for path in said["damaged"]] == [True]
