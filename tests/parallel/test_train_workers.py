"""Runs on real Ray workers with Horovod: the same numbers for any number of them, and through losses."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain import train
from mltrain.errors import StoppedError, TrainingError
from mltrain.results import read_events, read_metrics
from mltrain.storage import open_store
from tests.support.datasets import make_dataset
from tests.support.processes import wait_until
from tests.support.training import ROWS, equal, experiment, faulty, parse, start, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=ROWS, shards=6)
    return directory


@pytest.fixture(scope="module")
def on_ray(root: Path, ray_cluster: str) -> Iterator[dict[str, Any]]:
    """An experiment without dropout, whose losses do not depend on the number of workers."""
    import ray

    before = ray.is_initialized()
    yield {**experiment(root, address=ray_cluster), "model": {"args": {"hidden": [16]}}}
    assert ray.is_initialized() == before


def changed(mapping: dict[str, Any], workers: Any, **more: Any) -> dict[str, Any]:
    return {**mapping, "train": {**mapping["train"], "workers": workers, **more}}


@pytest.fixture(scope="module")
def alone(on_ray: dict[str, Any]) -> train.Result:
    return train.run(parse(changed(on_ray, 0)), run_id="alone")


@pytest.fixture(scope="module")
def pair(on_ray: dict[str, Any]) -> train.Result:
    return train.run(parse(changed(on_ray, 2)), run_id="pair")


def history(root: Path, run_id: str, name: str) -> list[float]:
    return [float(value) for value in read_metrics(open_store(root), run_id)[name].to_pylist()]


def events(root: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(open_store(root), run_id) if event["event"] == kind]


def test_one_worker_gives_the_numbers_of_this_process(root: Path, on_ray: dict[str, Any], alone: train.Result) -> None:
    result = train.run(parse(changed(on_ray, 1)), run_id="one")
    assert equal(weights(root, "one", result.step), weights(root, "alone", alone.step))
    assert result.metrics == alone.metrics


def test_two_workers_see_the_same_samples_and_losses_as_one(
    root: Path, alone: train.Result, pair: train.Result
) -> None:
    assert history(root, "pair", "train/samples") == history(root, "alone", "train/samples")
    np.testing.assert_allclose(history(root, "pair", "train/loss"), history(root, "alone", "train/loss"), rtol=1e-3)
    assert pair.workers == 2 and pair.losses_survived == 0


def test_a_worker_killed_in_mid_step_does_not_end_the_run(
    root: Path, on_ray: dict[str, Any], alone: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, {"min": 1, "max": 2})
    mapping = faulty(mapping, tmp_path, at=[1, 7], what="kill", flag=str(tmp_path / "killed"))
    result = train.run(parse(mapping), run_id="survivor")
    assert result.status == "finished" and result.losses_survived == 1
    assert history(root, "survivor", "train/samples") == history(root, "alone", "train/samples")
    sizes = [len(event["members"]) for event in events(root, "survivor", "generation formed")]
    assert sizes[:2] == [2, 1], "the survivor goes on by itself at once"
    assert events(root, "survivor", "training again")[0]["step"] > 0


def test_a_fixed_number_of_workers_is_restored_and_the_weights_are_those_of_an_undisturbed_run(
    root: Path, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    flag = tmp_path / "killed"
    mapping = faulty(changed(on_ray, 2), tmp_path, at=[0, 12], what="kill", flag=str(flag))
    flag.touch()
    result = train.run(parse(mapping), run_id="both")
    flag.unlink()
    killed = train.run(parse(mapping), run_id="replaced")
    assert killed.losses_survived == 1 and killed.step == result.step
    assert equal(weights(root, "replaced", killed.step), weights(root, "both", result.step))
    assert history(root, "replaced", "train/samples") == history(root, "both", "train/samples")


def test_a_killed_driver_resumes_to_the_same_weights_and_samples(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, 2)
    store = open_store(root)
    with start(mapping, "driver", tmp_path / "logs") as process:
        manifest = "runs/driver/checkpoints/step-000000010/manifest.json"
        wait_until(lambda: store.exists(manifest) or not process.running(), 120, "first checkpoint")
        process.send(signal.SIGKILL)
        process.wait(60)
    result = train.run(parse(mapping), run_id="driver")
    assert equal(weights(root, "driver", result.step), weights(root, "pair", pair.step))
    assert history(root, "driver", "train/samples") == history(root, "pair", "train/samples")


def test_workers_exit_when_their_driver_is_killed(root: Path, on_ray: dict[str, Any], tmp_path: Path) -> None:
    mapping = changed(on_ray, 2, epochs=200)
    store = open_store(root)
    with start(mapping, "orphans", tmp_path / "logs") as process:
        manifest = "runs/orphans/checkpoints/step-000000020/manifest.json"
        wait_until(lambda: store.exists(manifest) or not process.running(), 120, "a checkpoint")
        process.send(signal.SIGKILL)
        process.wait(60)
    pids = [int(event["pid"]) for event in events(root, "orphans", "worker ready")]
    assert len(pids) == 2
    wait_until(lambda: not any(_alive(pid) for pid in pids), 30, "end of the workers")


def test_sigint_stops_all_workers_after_one_step_and_the_run_resumes(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    stop = train.StopRequest()

    def report(report: train.Report) -> train.Verdict:
        stop.request("SIGINT")
        return train.Verdict.CONTINUE

    mapping = changed(on_ray, 2)
    with pytest.raises(StoppedError):
        train.run(parse(mapping), run_id="interrupted", report=report, stop=stop)
    assert train.load(str(root), "interrupted").status == "stopped"
    result = train.run(parse(mapping), run_id="interrupted")
    assert equal(weights(root, "interrupted", result.step), weights(root, "pair", pair.step))


def test_a_user_mistake_on_a_worker_ends_the_run_with_its_traceback(
    root: Path, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    mapping = faulty(changed(on_ray, 2), tmp_path, at=[0, 3], what="raise")
    with pytest.raises(TrainingError, match="ValueError: the user's own mistake"):
        train.run(parse(mapping), run_id="mistake")
    assert b"model.py" in open_store(root).sub("runs/mistake").get("logs/error-001.txt")


def test_too_few_workers_stop_the_run_after_the_wait(root: Path, on_ray: dict[str, Any]) -> None:
    mapping = changed(on_ray, {"min": 1, "max": 1, "cpus": 1000, "wait_s": 1})
    with pytest.raises(StoppedError, match="0 of at least 1 workers"):
        train.run(parse(mapping), run_id="nowhere")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
