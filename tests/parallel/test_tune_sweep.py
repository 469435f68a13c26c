"""Sweeps on a real Ray cluster: trials that fail, that are ended, that share workers, and sweeps that are resumed."""

import json
import signal
from pathlib import Path

import pytest

from mltrain import results, tune
from mltrain.errors import RequestError, TrainingError
from tests.support.datasets import make_dataset
from tests.support.processes import wait_until
from tests.support.sweeps import command, events, sweep
from tests.support.training import ROWS, faulty, parse

_LR = "train.optimizer.lr"
# In the trial's own process, one trial at a time.
_ALONE = {"min": 0, "max": 0, "cpus": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=ROWS, shards=6)
    return directory


def test_a_trial_that_fails_is_recorded_and_the_sweep_goes_on(root: Path, ray_cluster: str, tmp_path: Path) -> None:
    space = {"model.args.what": {"choice": ["raise", "", "nan"]}}
    mapping = faulty(sweep(root, ray_cluster, _ALONE, space), tmp_path, at=[0, 3])
    result = tune.run(parse(mapping), run_id="failing")
    assert [trial.status for trial in result.trials] == ["failed", "finished", "failed"]
    assert result.status == "finished"
    assert "the user's own mistake" in str(result.trials[0].error)
    assert result.best is not None and result.best.run_id == "failing-001"
    rows = {row["run_id"]: row for row in results.runs(str(root)).to_pylist(maps_as_pydicts="strict")}
    assert rows["failing"]["kind"] == "sweep"
    assert [rows[f"failing-{i:03d}"]["sweep_id"] for i in range(3)] == ["failing"] * 3
    assert "the user's own mistake" in rows["failing-000"]["error"]
    assert rows["failing-001"]["metrics"] == result.best.metrics
    assert rows["failing-001"]["wall_s"] > 0


def test_a_sweep_whose_trials_all_fail_fails_with_their_error(root: Path, ray_cluster: str, tmp_path: Path) -> None:
    space = {"train.seed": {"choice": [1, 2]}}
    mapping = faulty(sweep(root, ray_cluster, _ALONE, space), tmp_path, at=[0, 3], what="raise")
    with pytest.raises(TrainingError, match=r"all 2 trials failed; the first: .*the user's own mistake"):
        tune.run(parse(mapping), run_id="hopeless")
    assert results.get(str(root), "hopeless")["status"] == "failed"


def test_asha_ends_a_bad_trial_early_and_it_keeps_what_it_reached(root: Path, ray_cluster: str) -> None:
    scheduler = {"name": "asha", "grace_steps": 1, "reduction_factor": 2}
    mapping = sweep(root, ray_cluster, _ALONE, {_LR: {"choice": [0.02, 1e-7]}}, scheduler=scheduler)
    result = tune.run(parse({**mapping, "train": {**mapping["train"], "epochs": 3}}), run_id="asha")
    good, bad = result.trials
    assert (good.status, bad.status) == ("finished", "pruned")
    assert bad.steps < good.steps
    assert bad.metrics["validation/loss"] > good.metrics["validation/loss"]
    assert results.get(str(root), "asha-001")["checkpoint"] is not None


def test_trials_that_do_not_fit_at_once_take_turns_without_a_deadlock(root: Path, ray_cluster: str) -> None:
    # Three slots for two trials of two workers each.
    workers = {"min": 2, "max": 3, "cpus": 2.6}
    result = tune.run(parse(sweep(root, ray_cluster, workers, {"train.seed": {"choice": [1, 2]}})), run_id="turns")
    assert [trial.status for trial in result.trials] == ["finished", "finished"]
    assert all(results.get(str(root), trial.run_id)["workers"] >= 2 for trial in result.trials)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_and_repeats_no_finished_trial(
    root: Path, ray_cluster: str, tmp_path: Path, number: signal.Signals
) -> None:
    run_id = f"resumed-{number.name.lower()}"
    mapping = sweep(root, ray_cluster, {"min": 1, "max": 1, "cpus": 5}, {"train.seed": {"choice": [1, 2]}})
    mapping["train"] |= {"epochs": 80, "evaluate": {"every": {"epochs": 20}}, "checkpoint": {"every": {"steps": 20}}}
    trials = {f"{run_id}-000", f"{run_id}-001"}

    def halfway() -> tuple[str, str] | None:
        """The trial that has ended and the other one, which has a checkpoint and has not."""
        ended = {trial for trial in trials if events(root, trial, "run finished")}
        going = {trial for trial in trials - ended if events(root, trial, "checkpoint")}
        return (ended.pop(), going.pop()) if ended and going else None

    with command(mapping, run_id, tmp_path) as driver:
        first, second = wait_until(halfway, 240, "trial that has ended beside one that is under way")
        driver.send(number)
        ended = driver.wait(60)
    if number is signal.SIGTERM:
        assert ended.exit_code == 75
        assert run_id in json.loads(ended.stdout)["resume_command"]
    with command(mapping, run_id, tmp_path) as driver:
        ended = driver.wait(180)
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["status"] == "finished"
    assert len(events(root, first, "run started")) == 1
    steps = [event["step"] for event in events(root, second, "run started")]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] > 0
    table = results.runs(str(root)).to_pylist()
    assert [row["status"] for row in table if row["sweep_id"] == run_id] == ["finished", "finished"]


def test_a_sweep_is_resumed_only_with_its_own_config(root: Path, ray_cluster: str) -> None:
    mapping = sweep(root, ray_cluster, _ALONE, {_LR: {"choice": [0.01]}})
    tune.run(parse(mapping), run_id="changed")
    mapping["tune"]["space"] = {_LR: {"choice": [0.02]}}
    with pytest.raises(RequestError, match=r"created with another config: .*space"):
        tune.run(parse(mapping), run_id="changed")


def test_a_sweep_that_is_done_is_answered_from_its_record(root: Path, ray_cluster: str) -> None:
    mapping = sweep(root, ray_cluster, _ALONE, {_LR: {"choice": [0.01]}})
    first = tune.run(parse(mapping), run_id="done")
    again = tune.run(parse(mapping), run_id="done")
    assert again.trials == first.trials
    assert len(events(root, "done-000", "run started")) == 1
