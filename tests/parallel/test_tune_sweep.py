"""Sweeps on a real Ray cluster: trials that fail, that are ended, that share workers, and sweeps that are resumed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from mltrain import results, train, tune
from mltrain.errors import RequestError, StoppedError, TrainingError
from mltrain.results import read_metrics
from mltrain.storage import open_store
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


def samples(root: Path, run_id: str) -> list[float]:
    return [float(value) for value in read_metrics(open_store(root), run_id)["train/samples"].to_pylist()]


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


@pytest.fixture(scope="module")
def pruned(root: Path, ray_cluster: str) -> tuple[dict[str, Any], tune.SweepResult]:
    """A sweep with a good and a bad trial, as it was asked for and as it ended."""
    scheduler = {"name": "asha", "grace_steps": 1, "reduction_factor": 2}
    mapping = sweep(root, ray_cluster, _ALONE, {_LR: {"choice": [0.02, 1e-7]}}, scheduler=scheduler)
    mapping["train"]["epochs"] = 3
    return mapping, tune.run(parse(mapping), run_id="asha")


def test_asha_ends_a_bad_trial_early_and_it_keeps_what_it_reached(
    root: Path, pruned: tuple[dict[str, Any], tune.SweepResult]
) -> None:
    good, bad = pruned[1].trials
    assert (good.status, bad.status) == ("finished", "pruned")
    assert bad.steps < good.steps
    assert bad.metrics["validation/loss"] > good.metrics["validation/loss"]
    assert results.get(str(root), "asha-001")["checkpoint"] is not None


def test_a_sweep_that_is_done_is_answered_from_its_record(
    root: Path, pruned: tuple[dict[str, Any], tune.SweepResult]
) -> None:
    mapping, first = pruned
    again = tune.run(parse(mapping), run_id="asha")
    assert again.trials == first.trials
    assert again.wall_s >= first.wall_s
    assert len(events(root, "asha-000", "run started")) == 1


def test_a_sweep_is_resumed_only_with_its_own_config(pruned: tuple[dict[str, Any], tune.SweepResult]) -> None:
    mapping = {**pruned[0], "tune": {**pruned[0]["tune"], "space": {_LR: {"choice": [0.03]}}}}
    with pytest.raises(RequestError, match=r"created with another config: .*space"):
        tune.run(parse(mapping), run_id="asha")


def test_trials_that_do_not_fit_at_once_take_turns_without_a_deadlock(root: Path, ray_cluster: str) -> None:
    # Three slots for two trials of two workers each.
    workers = {"min": 2, "max": 3, "cpus": 2.6}
    result = tune.run(parse(sweep(root, ray_cluster, workers, {"train.seed": {"choice": [1, 2]}})), run_id="turns")
    assert [trial.status for trial in result.trials] == ["finished", "finished"]
    assert all(results.get(str(root), trial.run_id)["workers"] >= 2 for trial in result.trials)


def test_trials_share_workers_and_take_what_others_leave(root: Path, ray_cluster: str, tmp_path: Path) -> None:
    # Two slots for three trials: two short ones, and one that is slow until it has both slots.
    workers = {"min": 1, "max": 2, "cpus": 3.9}
    mapping = sweep(root, ray_cluster, workers, {"train.max_steps": {"choice": [10, 20, 500]}})
    mapping = faulty(mapping, tmp_path, what="slow alone")
    mapping["train"] |= {"epochs": None, "max_steps": 10, "checkpoint": {"every": "auto"}}
    mapping["train"] |= {"evaluate": {"every": {"steps": 500}}}
    result = tune.run(parse(mapping), run_id="shared")
    assert [(trial.status, trial.steps) for trial in result.trials] == [
        ("finished", 10), ("finished", 20), ("finished", 500),
    ]  # fmt: skip
    sizes = [len(event["members"]) for event in events(root, "shared-002", "generation formed")]
    assert sizes[-1] == 2
    alone = {**mapping, "train": {**mapping["train"], "max_steps": 20, "workers": 0}}
    train.run(parse({key: value for key, value in alone.items() if key != "tune"}), run_id="alone")
    assert samples(root, "shared-002")[:20] == samples(root, "shared-001") == samples(root, "alone")


def test_ctrl_c_ends_a_sweep_with_75_and_leaves_no_process_and_the_sweep_resumes(
    root: Path, ray_cluster: str, tmp_path: Path
) -> None:
    mapping = sweep(root, "local", {"min": 1, "max": 1}, {"train.seed": {"choice": [1]}})
    mapping["train"] |= {"epochs": 60, "checkpoint": {"every": {"steps": 20}}, "evaluate": {"every": {"epochs": 20}}}
    with command(mapping, "interrupted", tmp_path) as driver:
        wait_until(lambda: events(root, "interrupted-000", "checkpoint"), 240, "trial with a checkpoint")
        processes = driver.children()
        assert processes
        driver.send_group(signal.SIGINT)
        ended = driver.wait(120)
        assert ended.exit_code == 75, ended.stderr
        assert "interrupted" in json.loads(ended.stdout)["resume_command"]
        wait_until(lambda: not any(process.is_running() for process in processes), 30, "end of Ray's processes")
    mapping["cluster"]["address"] = ray_cluster
    result = tune.run(parse(mapping), run_id="interrupted")
    assert [trial.status for trial in result.trials] == ["finished"]
    steps = [event["step"] for event in events(root, "interrupted-000", "run started")]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] > 0


def test_a_sweep_whose_driver_was_killed_goes_on_and_repeats_no_finished_trial(
    root: Path, ray_cluster: str, tmp_path: Path
) -> None:
    run_id = "resumed"
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
        driver.send(signal.SIGKILL)
        driver.wait(60)
    assert tune.run(parse(mapping), run_id=run_id).status == "finished"
    assert len(events(root, first, "run started")) == 1
    steps = [event["step"] for event in events(root, second, "run started")]
    assert len(steps) == 2 and steps[0] == 0 and steps[1] > 0
    table = results.runs(str(root)).to_pylist()
    assert [row["status"] for row in table if row["sweep_id"] == run_id] == ["finished", "finished"]


def test_a_sweep_whose_cluster_fails_is_stopped_and_says_how_to_go_on(
    root: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import ActorDiedError
    from ray.tune import Tuner

    def fit(self: Tuner) -> None:
        raise ActorDiedError

    mapping = sweep(root, ray_cluster, _ALONE, {"train.seed": {"choice": [1]}})
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "fit", fit)
        with pytest.raises(StoppedError, match=r"the Ray cluster failed: ActorDiedError.*0 of 1 trials done") as caught:
            tune.run(parse(mapping), run_id="cut-off")
    assert "cut-off" in caught.value.resume_command
    assert results.get(str(root), "cut-off")["status"] == "stopped"
    finished = tune.run(parse(mapping), run_id="cut-off")
    assert finished.status == "finished"
    recorded, lines = results.get(str(root), "cut-off"), list[str]()
    assert tune.run(parse(mapping), run_id="cut-off", progress=lines.append) == finished
    assert lines == ["sweep cut-off has finished: nothing to do"]
    assert results.get(str(root), "cut-off") == recorded


def test_what_cannot_be_a_sweeps_id_is_refused(root: Path) -> None:
    mapping = sweep(root, "local", _ALONE, {"train.seed": {"choice": [1]}})
    for run_id in ("../x", "x" * 95):
        with pytest.raises(RequestError, match="run id .*wanted letters"):
            tune.run(parse(mapping), run_id=run_id)
    with pytest.raises(RequestError, match="tune.run was given 'sweep.yaml'; wanted an experiment"):
        tune.run("sweep.yaml")  # type: ignore[arg-type]
