"""Runs on real Ray workers with Horovod: the same numbers for any number of them, and through losses."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain import results, train
from mltrain.config import ClusterConfig
from mltrain.errors import RequestError, StoppedError, StorageError, TrainingError
from mltrain.results import read_events, read_metrics
from mltrain.storage import lease as leases
from mltrain.storage import open_store
from mltrain.storage.lease import fence
from mltrain.train import cluster, controller, retries
from tests.support.datasets import Features, make_dataset
from tests.support.drill import PACED_MODEL, drill, paced
from tests.support.processes import wait_until
from tests.support.training import BATCH, MEASURED_MODEL, ROWS, equal, experiment, faulty, parse, start, weights


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
    yield faulty(experiment(root, address=ray_cluster), root, dropout=0.0)
    assert ray.is_initialized() == before


def changed(mapping: dict[str, Any], workers: Any, train: Any = None, **args: Any) -> dict[str, Any]:
    """The experiment on so many workers; ``args`` go to the model, and change nothing but what it does to itself."""
    model = {**mapping["model"], "args": {**mapping["model"]["args"], **args}}
    return {**mapping, "train": {**mapping["train"], "workers": workers, **(train or {})}, "model": model}


@pytest.fixture(scope="module")
def alone(on_ray: dict[str, Any]) -> train.Result:
    return train.run(parse(changed(on_ray, 0)), run_id="alone")


@pytest.fixture(scope="module")
def pair(on_ray: dict[str, Any]) -> train.Result:
    return train.run(parse(changed(on_ray, 2)), run_id="pair")


def history(root: str | Path, run_id: str, name: str) -> list[float]:
    return [float(value) for value in read_metrics(open_store(root), run_id)[name].to_pylist()]


def events(root: str | Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(open_store(root), run_id) if event["event"] == kind]


def test_two_workers_see_the_same_samples_and_losses_as_one(
    root: Path, alone: train.Result, pair: train.Result
) -> None:
    assert history(root, "pair", "train/samples") == history(root, "alone", "train/samples")
    np.testing.assert_allclose(history(root, "pair", "train/loss"), history(root, "alone", "train/loss"), rtol=1e-3)
    assert pair.workers == 2 and pair.losses_survived == 0


def test_the_only_worker_is_replaced_by_one_that_goes_on_from_the_last_checkpoint(
    root: Path, on_ray: dict[str, Any], alone: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, 1, at=[0, 35], what="kill", flag=str(tmp_path / "killed"))
    result = train.run(parse(mapping), run_id="only")
    assert equal(weights(root, "only", result.step), weights(root, "alone", alone.step))
    assert result.metrics == alone.metrics
    assert history(root, "only", "train/samples") == history(root, "alone", "train/samples")
    first, second = events(root, "only", "training")
    assert first["step"] == 0 and 0 < second["step"] <= 30
    assert (result.losses_survived, result.workers, result.generations) == (1, 1, 2)
    assert 1 <= result.steps_repeated <= 36 - second["step"] and result.downtime_s > 0


def test_a_worker_killed_in_mid_step_does_not_end_the_run_also_where_the_root_is_in_object_storage(
    root: Path, bucket: str, on_ray: dict[str, Any], alone: train.Result, tmp_path: Path
) -> None:
    make_dataset(bucket, rows=ROWS, shards=6)
    mapping = {**on_ray, "root": bucket}
    mapping = changed(mapping, {"min": 1, "max": 2}, at=[1, 7], what="kill", flag=str(tmp_path / "killed"))
    result = train.run(parse(mapping), run_id="survivor")
    assert result.status == "finished" and result.losses_survived == 1 and result.steps_repeated == 1
    assert history(bucket, "survivor", "train/samples") == history(root, "alone", "train/samples")
    sizes = [len(event["members"]) for event in events(bucket, "survivor", "generation formed")]
    assert sizes[:2] == [2, 1], "the survivor goes on by itself at once"
    assert events(bucket, "survivor", "training again")[0]["step"] > 0


def test_a_fixed_number_of_workers_is_restored_and_the_weights_are_those_of_an_undisturbed_run(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, 2, at=[0, 12], what="kill", flag=str(tmp_path / "killed"))
    killed = train.run(parse(mapping), run_id="replaced")
    assert killed.losses_survived == 1 and killed.step == pair.step
    assert equal(weights(root, "replaced", killed.step), weights(root, "pair", pair.step))
    assert history(root, "replaced", "train/samples") == history(root, "pair", "train/samples")


def test_a_killed_driver_takes_its_workers_with_it_and_the_run_resumes_to_the_same_weights_and_samples(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, 2)
    with start(mapping, "driver", tmp_path / "logs") as process:
        wait_until(lambda: events(root, "driver", "checkpoint") or not process.running(), 120, "first checkpoint")
        process.send(signal.SIGKILL)
        process.wait(60)
    pids = [int(event["pid"]) for event in events(root, "driver", "worker ready")]
    assert len(pids) == 2
    wait_until(lambda: not any(_alive(pid) for pid in pids), 30, "end of the workers")
    result = train.run(parse(mapping), run_id="driver")
    assert equal(weights(root, "driver", result.step), weights(root, "pair", pair.step))
    assert history(root, "driver", "train/samples") == history(root, "pair", "train/samples")
    assert result.generations == 2 and result.worker_seconds > 0


def test_an_interrupted_run_resumes_though_the_worker_that_restores_it_is_killed(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    stop = train.StopRequest()

    def report(report: train.Report) -> train.Verdict:
        stop.request("SIGINT")
        return train.Verdict.CONTINUE

    flag = tmp_path / "killed"
    mapping = changed(on_ray, 2, what="kill in restore", flag=str(flag))
    with pytest.raises(StoppedError):
        train.run(parse(mapping), run_id="interrupted", report=report, stop=stop)
    assert train.load(str(root), "interrupted").status == "stopped"
    assert not flag.exists()
    result = train.run(parse(mapping), run_id="interrupted")
    assert flag.exists() and result.losses_survived == 1
    assert equal(weights(root, "interrupted", result.step), weights(root, "pair", pair.step))
    assert history(root, "interrupted", "train/samples") == history(root, "pair", "train/samples")


def test_a_run_that_fails_keeps_the_checkpoint_on_its_way_the_traceback_and_what_was_printed(
    root: Path, on_ray: dict[str, Any]
) -> None:
    # Always, not once: a worker that takes too long to leave counts as lost, and the next generation meets the mistake.
    mapping = changed(on_ray, 2, at=[0, 10], what="raise", ballast=30_000_000)
    with pytest.raises(TrainingError, match=r"ValueError: the user's own mistake .*error-001"):
        train.run(parse(mapping), run_id="mistake")
    log = open_store(root).sub("runs/mistake").get("logs/error-001.txt").decode()
    assert "model.py" in log and "the user's own output" in log
    assert float(weights(root, "mistake", 10)["model.ballast"].sum()) == 0.0
    result = train.load(str(root), "mistake")
    assert result.status == "failed" and result.best_step == 10


def test_a_model_that_exits_on_a_worker_fails_the_run(root: Path, on_ray: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"SystemExit: 0 \(step 10; traceback: "):
        train.run(parse(changed(on_ray, 1, at=[0, 10], what="exit")), run_id="exit")


def test_a_controller_whose_run_was_taken_lets_go_of_it(
    root: Path, ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.2)
    mapping = paced(root, ray_cluster, tmp_path, {"min": 1, "max": 1})
    with drill(mapping, "taken") as run:
        run.until_step(0, 5)
        fence(open_store(root).sub("runs/taken"), "lease.json")
        run.join()
    assert "Another controller has taken this run" in str(run.error)
    assert not run.events("run failed") and not run.events("worker lost")


# The paced model; its workers' parts of checkpoints do not get to storage for as long as there is a file.
HELD_MODEL = f"""{PACED_MODEL}

paced = build


def build(schema, steps=None, pace_s=0.0, exact=1_000_000):
    from mltrain.storage.local import LocalStore

    put = LocalStore.put

    def held(store, path, data):
        while "part-" in path and steps and Path(steps, "hold").exists():
            time.sleep(0.01)
        return put(store, path, data)

    LocalStore.put = held
    return paced(schema, steps, pace_s, exact)
"""


def test_a_newcomer_joins_when_the_checkpoint_on_its_way_is_there_and_the_others_train_meanwhile(
    root: Path, ray_cluster: str, tmp_path: Path
) -> None:
    mapping = paced(root, ray_cluster, tmp_path, {"min": 1, "max": 2}, max_local_batch_size=BATCH)
    mapping["train"]["checkpoint"] = {"every": {"steps": 5}}
    mapping = faulty(mapping, tmp_path, HELD_MODEL, **mapping["model"]["args"])
    hold = tmp_path / "hold"
    with drill(mapping, "held-back") as run:
        run.until("checkpoint")
        hold.touch()
        os.kill(run.events("worker ready")[0]["pid"], signal.SIGKILL)
        run.until("worker lost")
        alone = run.until("training")["generation"]
        run.until("worker ready")
        # On for an epoch, with one that could join.
        epoch = max(int(path.name.partition("-")[0]) for path in tmp_path.glob("*-*"))
        run.until_step(epoch + 1, 1)
        hold.unlink()
        joined = run.until("generation formed", generation=alone + 1)
        assert len(joined["members"]) == 2
        run.until("training", generation=alone + 1)
        run.stop()
    # What was held back is there, and was before they joined.
    said = [event["event"] for event in run.said]
    ended = len(said) - 1 - said[::-1].index("generation formed")
    assert said[:ended][::-1].index("checkpoint") < said[:ended][::-1].index("worker ready")


def test_workers_that_die_before_they_are_ready_end_the_run_and_the_error_says_where_they_printed(
    root: Path, on_ray: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FAILED_STARTS", 2)
    source = "import os\n\ndef build(schema):\n    os.write(2, b'this is why')\n    os._exit(7)\n"
    mapping = faulty(changed(on_ray, 1), tmp_path, source)
    with pytest.raises(TrainingError, match=r"2 workers died .*what it printed: [^:]+:(.*)\)") as caught:
        train.run(parse(mapping), run_id="stillborn")
    output = str(caught.value).rsplit(":", 1)[1].rstrip(")")
    assert "this is why" in Path(output).read_text()


def test_newcomers_that_die_before_they_are_ready_do_not_end_a_run_that_trains(
    root: Path, ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_FAILED_STARTS", 2)
    only_one = """
once = build


def build(schema, steps, **args):
    try:
        Path(steps, "built").touch(exist_ok=False)
    except FileExistsError:
        os._exit(7)
    return once(schema, steps, **args)
"""
    mapping = paced(root, ray_cluster, tmp_path, {"min": 1, "max": 2})
    mapping["train"]["checkpoint"] = {"every": {"steps": 50}}
    mapping = faulty(mapping, tmp_path, PACED_MODEL + only_one, **mapping["model"]["args"])
    with drill(mapping, "alone-at-last") as run:
        run.until("training")
        for _ in range(2):
            run.until("worker lost")
        run.until("checkpoint")
        trained = run.events("worker ready")[0]
        os.kill(trained["pid"], signal.SIGKILL)
        run.until("worker lost", worker=trained["worker"])
        run.stop()
    assert isinstance(run.error, StoppedError) and "with a checkpoint" in str(run.error)
    # What was done after the last checkpoint went with the only worker that held it.
    result = train.load(str(root), "alone-at-last")
    assert result.step == run.events("checkpoint")[-1]["step"] and result.downtime_s > 0


def test_a_worker_whose_device_fails_is_lost_and_the_others_go_on(
    root: Path, on_ray: dict[str, Any], pair: train.Result, tmp_path: Path
) -> None:
    mapping = changed(on_ray, 2, at=[0, 20], what="broken device", flag=str(tmp_path / "broken"))
    result = train.run(parse(mapping), run_id="device")
    assert result.losses_survived == 1
    assert history(root, "device", "train/samples") == history(root, "pair", "train/samples")


def test_a_step_that_always_ends_its_worker_ends_the_run(
    root: Path, on_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_BARREN", 2)
    with pytest.raises(TrainingError, match=r"2 workers were lost one after .* beyond step \d+: .*what it printed"):
        train.run(parse(changed(on_ray, 1, at=[0, 15], what="kill")), run_id="poison")


def test_a_step_that_always_holds_up_the_signs_of_life_ends_the_run(
    root: Path, on_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_BARREN", 1)
    heartbeat = {"heartbeat": {"interval_s": 0.1, "misses": 5}}
    with pytest.raises(TrainingError, match=r"1 workers were lost .* beyond step \d+: .*train\.heartbeat.*silent for"):
        train.run(parse(changed(on_ray, 1, heartbeat, at=[0, 15], what="hold")), run_id="held-up")


def test_a_stop_that_comes_while_the_workers_regroup_makes_a_checkpoint(
    root: Path, on_ray: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, ask = train.StopRequest(), controller.Controller._ask_to_stop

    def ask_to_regroup(self: controller.Controller, *, checkpoint: bool) -> None:
        ask(self, checkpoint=checkpoint)
        stop.request("the user's, just after the controller's own")

    monkeypatch.setattr(controller.Controller, "_ask_to_stop", ask_to_regroup)
    rarely = {"evaluate": {"every": {"epochs": 10_000}}, "checkpoint": {"every": {"steps": 1_000_000}}}
    killed = {"at": [0, 12], "what": "kill", "flag": str(tmp_path / "killed")}
    mapping = changed(on_ray, {"min": 1, "max": 2}, {"epochs": 10_000, **rarely}, **killed)
    with pytest.raises(StoppedError):
        train.run(parse(mapping), run_id="regrouping", stop=stop)
    assert weights(root, "regrouping", len(history(root, "regrouping", "train/loss")))


@pytest.mark.parametrize(("cpus", "market"), [(1000, "any"), (1, "spot")])
def test_too_few_workers_stop_the_run_after_the_wait(
    root: Path, on_ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cpus: int, market: str
) -> None:
    monkeypatch.setattr(controller, "_PATIENT_S", 0.1)
    lines: list[str] = []
    mapping = changed(on_ray, {"min": 1, "max": 1, "cpus": cpus, "wait_s": 1})
    mapping["cluster"] = {**mapping["cluster"], "market": market}
    with pytest.raises(StoppedError, match=r"step 0 \(0 of at least 1 workers are ready\), without a checkpoint\."):
        train.run(parse(mapping), run_id=f"nowhere-{market}", progress=lines.append)
    waiting = [line for line in lines if line.startswith("waiting for 1 more worker (0 of 1 ready) for up to 1 s")]
    where = "" if market == "any" else " on nodes with ray.io/market-type=spot"
    assert [line.partition("; ")[2] for line in waiting] == [
        f"the cluster has room for 0 workers like these only{where}"
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_evaluation_survives_the_loss_of_a_rank_before_its_checkpoint(
    ray_cluster: str, tmp_path: Path, rank: int
) -> None:
    make_dataset(tmp_path, rows=2000, features=Features(ragged=2, weight=True))
    mapping = experiment(tmp_path, address=ray_cluster, checkpoint={"every": "auto"})
    mapping = faulty(mapping, tmp_path, MEASURED_MODEL, rank=rank, flag=str(tmp_path / "killed"), at=1)
    reported: list[int] = []

    def report(report: train.Report) -> train.Verdict:
        reported.append(report.step)
        return train.Verdict.CONTINUE

    train.run(parse(mapping), run_id="alone")
    pair = train.run(parse(changed(mapping, {"min": 1, "max": 2})), run_id="pair", report=report)
    assert pair.losses_survived == 1 and pair.status == "finished"
    evaluations = [events(tmp_path, run_id, "evaluation") for run_id in ("alone", "pair")]
    assert [each["step"] for each in evaluations[1]] == [each["step"] for each in evaluations[0]] == reported
    for one, other in zip(*evaluations, strict=True):
        assert one["metrics"].keys() == other["metrics"].keys()
        assert {"validation/own_auc", "validation/own_mean"} <= one["metrics"].keys()
        for name, value in one["metrics"].items():
            assert other["metrics"][name] == pytest.approx(value, rel=1e-3)
    assert history(tmp_path, "pair", "train/samples") == history(tmp_path, "alone", "train/samples")


# A model whose process damages the checkpoint of step 76, once that is there, and ends; and later ends before step 76.
FORGETFUL_MODEL = """
import os, signal, time
from pathlib import Path

import torch
from mltrain.models import TabularMLP


class Model(TabularMLP):
    def __init__(self, schema, flags, saved):
        super().__init__(schema, (16,), 0.0, None, True)
        self.flags, self.saved = Path(flags), Path(saved)

    def forward(self, batch):
        at = (batch.epoch, batch.step) if self.training else None
        if at == (2, 4) and self._first("damaged"):
            while not (self.saved / "manifest.json").exists():
                time.sleep(0.01)
            part = min(self.saved.glob("part-*"))
            part.write_bytes(part.read_bytes()[:-1])
            os.kill(os.getpid(), signal.SIGKILL)
        if at == (1, 35) and (self.flags / "damaged").exists() and self._first("again"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(batch)

    def _first(self, flag):
        try:
            (self.flags / flag).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def build(schema, flags, saved):
    torch.manual_seed(1)
    return Model(schema, flags, saved)
"""


def test_an_evaluation_that_a_damaged_checkpoint_took_with_it_is_decided_again(
    root: Path, ray_cluster: str, tmp_path: Path
) -> None:
    rarely = {"every": {"steps": 1_000_000}}
    mapping = experiment(root, address=ray_cluster, workers=1, epochs=4, checkpoint=rarely)
    saved = root / "runs" / "forgetful" / "checkpoints" / "step-000000076"
    mapping = faulty(mapping, tmp_path, FORGETFUL_MODEL, flags=str(tmp_path), saved=str(saved))
    with drill(mapping, "forgetful") as run:
        run.join()
    assert run.result is not None and run.result.losses_survived == 2
    assert [event["step"] for event in run.events("checkpoint damaged")] == [76]
    assert [event["step"] for event in run.events("evaluation")].count(76) == 2


def test_a_part_that_a_worker_cannot_write_ends_the_run_with_its_name(on_ray: dict[str, Any]) -> None:
    mapping = changed(
        on_ray, 2, {"evaluate": {"every": {"steps": 5}}}, at=[0, 2], what="full disk", ballast=100_000
    )  # fmt: skip
    with pytest.raises(StorageError, match="checkpoints/step-000000005/part-.*File too large"):
        train.run(parse(mapping), run_id="full")


def test_with_ray_address_local_a_loss_is_survived_and_nothing_but_results_is_printed(
    root: Path, on_ray: dict[str, Any], tmp_path: Path
) -> None:
    mapping = changed(on_ray, 1, {"epochs": None, "max_steps": 20}, at=[0, 12], what="kill", flag=str(tmp_path / "k"))
    mapping["cluster"] = {"address": "auto"}
    with start(mapping, "quiet", tmp_path / "logs", RAY_ADDRESS="local") as process:
        ended = process.wait(240)
    assert ended.exit_code == 0, ended.stderr
    assert train.load(str(root), "quiet").losses_survived == 1
    assert ended.stdout == "" and "raylet" not in ended.stderr


def test_ray_leaves_the_drivers_signals_and_its_own_printing_as_they_were(ray_cluster: str) -> None:
    import ray

    handler, printing = signal.getsignal(signal.SIGTERM), ray._private.worker.print_to_stdstream
    with cluster.ray_cluster(ClusterConfig(address=ray_cluster)):
        assert signal.getsignal(signal.SIGTERM) is handler
        assert ray._private.worker.print_to_stdstream is not printing
    assert ray._private.worker.print_to_stdstream is printing


def test_ray_that_does_not_start_is_tried_again_and_the_run_says_how_to_go_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(*args: Any, **options: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    lines: list[str] = []
    with pytest.raises(TrainingError, match=r"Ray did not start .*timed out.* To go on: .*run_id='slow'"):
        train.run(parse(experiment(root, workers=1)), run_id="slow", progress=lines.append)
    assert lines.count("Ray did not start, trying again") == 1
    assert results.get(str(root), "slow")["status"] == "failed"


def test_a_cluster_of_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(*args: Any, **options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0.0\n    Python: 3.9.1\n")

    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(RequestError, match=r"runs other versions than this process.*Ray: 2\.0\.0 Python: 3\.9\.1"),
        cluster.ray_cluster(ClusterConfig(address="auto")),
    ):
        pass


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
