"""Runs in this process: resuming, damage, signals, user mistakes. Ray and Horovod are not needed."""

import json
from pathlib import Path

import numpy as np
import pytest

from mltrain import train
from mltrain.errors import NotFoundError, RequestError, StoppedError, TrainingError
from mltrain.results import read_events, read_metrics
from mltrain.storage import open_store
from mltrain.train import Report, Verdict, checkpoints
from tests.support.datasets import Features, make_dataset
from tests.support.training import ROWS, equal, experiment, faulty, parse, start, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make_dataset(directory, rows=ROWS, shards=6)
    return directory


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> train.Result:
    return train.run(parse(experiment(root)), run_id="undisturbed")


def samples(root: str | Path, run_id: str) -> list[tuple[int, float]]:
    table = read_metrics(open_store(root), run_id)
    return list(zip(table["step"].to_pylist(), table["train/samples"].to_pylist(), strict=True))


def test_a_run_learns_and_leaves_a_result_that_loads(root: Path, undisturbed: train.Result) -> None:
    assert undisturbed.status == "finished"
    assert undisturbed.metrics["validation/auc"] > 0.85
    again = train.load(str(root), "undisturbed")
    assert again == undisturbed
    assert again.history["train/loss"][0].as_py() > again.metrics["train/loss"]
    table = again.predict("test")
    assert table.column_names == ["id", "score_y"] and table.num_rows > 0
    assert again.evaluate("test")["test/auc"] > 0.7
    assert again.config.dataset == f"made@{again.dataset['digest']}"


def test_the_same_seed_gives_the_same_weights(root: Path, undisturbed: train.Result) -> None:
    train.run(parse(experiment(root)), run_id="twin")
    assert equal(weights(root, "twin", undisturbed.step), weights(root, "undisturbed", undisturbed.step))


def test_accumulated_gradients_give_the_losses_of_whole_batches(root: Path, undisturbed: train.Result) -> None:
    model = {"model": {"args": {"hidden": [16], "dropout": 0.0}}}
    whole = train.run(parse({**experiment(root), **model}), run_id="whole")
    parts = train.run(parse({**experiment(root, max_local_batch_size=50), **model}), run_id="parts")
    np.testing.assert_allclose(parts.history["train/loss"], whole.history["train/loss"], rtol=2e-4)


def test_a_driver_killed_in_mid_epoch_resumes_to_the_same_weights_and_samples(
    root: Path, undisturbed: train.Result, tmp_path: Path
) -> None:
    flag = tmp_path / "killed"
    mapping = faulty(experiment(root), tmp_path, at=[1, 5], what="kill", flag=str(flag))
    flag.touch()
    train.run(parse(mapping), run_id="faulty-undisturbed")
    flag.unlink()
    with start(mapping, "killed", tmp_path / "logs") as process:
        assert process.wait(120).exit_code == -9
    assert flag.exists()
    result = train.run(parse(mapping), run_id="killed")
    assert result.status == "finished"
    assert equal(weights(root, "killed", result.step), weights(root, "faulty-undisturbed", result.step))
    assert samples(root, "killed") == samples(root, "faulty-undisturbed") == samples(root, "undisturbed")


def test_sigterm_makes_a_checkpoint_and_exits_75_without_ray_or_horovod_and_the_run_resumes(
    root: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "sent"
    mapping = faulty(experiment(root, checkpoint={"every": "auto"}), tmp_path, at=[0, 7], what="signal", flag=str(flag))
    with start(mapping, "stopped", tmp_path / "logs") as process:
        ended = process.wait(120)
    assert ended.exit_code == 75
    assert train.load(str(root), "stopped").status == "stopped"
    assert [c.step for c in checkpoints.stored(open_store(root).sub("runs/stopped"))] == [9]
    result = train.run(parse(mapping), run_id="stopped")
    assert result.status == "finished"
    assert samples(root, "stopped") == samples(root, "undisturbed")


def test_a_stop_request_raises_with_the_run_id_to_resume(root: Path) -> None:
    stop = train.StopRequest()
    stop.request("the test")
    with pytest.raises(StoppedError, match="after step 1 ") as caught:
        train.run(parse(experiment(root)), run_id="asked", stop=stop)
    assert "asked" in caught.value.resume_command


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(root: Path, undisturbed: train.Result) -> None:
    stop = train.StopRequest()

    def report(report: Report) -> Verdict:
        stop.request("the test")
        return Verdict.CONTINUE

    with pytest.raises(StoppedError):
        train.run(parse(experiment(root)), run_id="damaged", report=report, stop=stop)
    run = open_store(root).sub("runs/damaged")
    newest = checkpoints.stored(run)[-1]
    part = Path(run.join(newest.parts[0].path).removeprefix("file://"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    result = train.run(parse(experiment(root)), run_id="damaged")
    damaged = [event for event in read_events(open_store(root), "damaged") if event["event"] == "checkpoint damaged"]
    assert [event["step"] for event in damaged] == [newest.step]
    assert newest.parts[0].path in damaged[0]["reason"]
    assert equal(weights(root, "damaged", result.step), weights(root, "undisturbed", result.step))


def test_a_run_in_object_storage_resumes_to_the_same_weights(
    root: Path, undisturbed: train.Result, bucket: str
) -> None:
    make_dataset(bucket, rows=ROWS, shards=6)
    stop = train.StopRequest()

    def report(report: Report) -> Verdict:
        assert report.checkpoint.startswith("s3://")
        stop.request("the test")
        return Verdict.CONTINUE

    with pytest.raises(StoppedError):
        train.run(parse(experiment(bucket)), run_id="remote", report=report, stop=stop)
    result = train.run(parse(experiment(bucket)), run_id="remote")
    assert equal(weights(bucket, "remote", result.step), weights(root, "undisturbed", undisturbed.step))
    assert train.load(bucket, "remote").predict("test").equals(undisturbed.predict("test"))


def test_a_damaged_manifest_is_set_aside_too(root: Path, undisturbed: train.Result) -> None:
    stop = train.StopRequest()
    stop.request("the test")
    with pytest.raises(StoppedError):
        train.run(parse(experiment(root)), run_id="manifest", stop=stop)
    run = open_store(root).sub("runs/manifest")
    path = checkpoints.manifest_path(1)
    body = json.loads(run.get(path))
    run.put(path, json.dumps({**body, "epoch": 7}).encode())
    result = train.run(parse(experiment(root)), run_id="manifest")
    assert equal(weights(root, "manifest", result.step), weights(root, "undisturbed", result.step))


def test_the_best_and_the_last_checkpoints_stay(root: Path) -> None:
    mapping = experiment(root, evaluate={"every": {"steps": 5}}, checkpoint={"every": "auto", "keep": 2})
    result = train.run(parse(mapping), run_id="kept")
    kept = [c.step for c in checkpoints.stored(open_store(root).sub("runs/kept"))]
    assert kept == sorted({result.best_step or 0, *kept[-2:]})
    assert kept[-1] == result.step


def test_a_changed_config_is_refused_and_the_keys_are_named(root: Path, undisturbed: train.Result) -> None:
    with pytest.raises(RequestError, match=r"train\.optimizer\.lr was 0\.01, now 0\.02"):
        train.run(parse(experiment(root, optimizer={"lr": 0.02})), run_id="undisturbed")


def test_changed_code_is_refused(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root, max_steps=2, epochs=None), tmp_path)
    train.run(parse(mapping), run_id="code")
    (tmp_path / "model.py").write_text((tmp_path / "model.py").read_text() + "# changed\n")
    with pytest.raises(RequestError, match="not the code"):
        train.run(parse(mapping), run_id="code")


def test_a_second_controller_is_told_who_holds_the_run(root: Path) -> None:
    from mltrain.train.lease import Lease

    lease = Lease.acquire(open_store(root).sub("runs/held"), "held")
    try:
        with pytest.raises(RequestError, match="is held by process"):
            train.run(parse(experiment(root)), run_id="held")
    finally:
        lease.release()


def test_a_user_mistake_is_one_line_with_its_traceback_in_a_file(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 3], what="raise")
    with pytest.raises(TrainingError, match="ValueError: the user's own mistake") as caught:
        train.run(parse(mapping), run_id="mistake")
    assert "\n" not in str(caught.value)
    log = open_store(root).sub("runs/mistake").get("logs/error-001.txt").decode()
    assert 'raise ValueError("the user\'s own mistake")' in log
    assert train.load(str(root), "mistake").status == "failed"


def test_a_loss_that_is_not_finite_ends_the_run_before_it_spoils_the_weights(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 15], what="nan")
    with pytest.raises(TrainingError, match="loss is not finite.* in step 15, epoch 0"):
        train.run(parse(mapping), run_id="nan")
    kept = weights(root, "nan", 10)
    assert all(np.isfinite(value).all() for value in kept.values())


def test_a_report_can_end_the_run(root: Path) -> None:
    reports: list[Report] = []

    def report(report: Report) -> Verdict:
        reports.append(report)
        return Verdict.STOP

    mapping = experiment(root, evaluate={"every": {"steps": 10}}, checkpoint={"every": "auto"})
    result = train.run(parse(mapping), run_id="verdict", report=report)
    assert [report.step for report in reports] == [10]
    assert open_store(reports[0].checkpoint).exists("manifest.json")
    assert result.status == "finished" and 10 < result.step <= 21


def test_early_stopping_ends_a_run_that_no_longer_improves(root: Path) -> None:
    mapping = experiment(
        root, epochs=None, max_steps=400, evaluate={"every": {"steps": 10}}, optimizer={"lr": 1e-9},
        early_stopping={"patience": 2, "min_delta": 0.01},
    )  # fmt: skip
    result = train.run(parse(mapping), run_id="patience")
    assert result.step == 30 and result.reason == "early stopping"


@pytest.mark.parametrize("label", ["multiclass", "regression"])
def test_every_label_type_trains(tmp_path: Path, label: str) -> None:
    make_dataset(tmp_path, rows=2000, features=Features(label=label, weight=True, ragged=1, vectors=1))
    result = train.run(parse(experiment(tmp_path, optimizer={"lr": 0.003}, precision="bf16", gradient_clip_norm=1.0)))
    names = {"multiclass": "accuracy", "regression": "rmse"}
    assert f"validation/{names[label]}" in result.metrics
    losses = result.history["train/loss"].to_pylist()
    assert losses[-1] < losses[0]
    assert len(result.predict("validation").column_names) == (4 if label == "multiclass" else 2)


def test_a_function_can_be_the_factory(root: Path) -> None:
    from mltrain.models import tabular_mlp

    def build(schema: object, **args: object) -> object:
        return tabular_mlp(schema, hidden=[8])  # type: ignore[arg-type]

    result = train.run(parse(experiment(root, epochs=None, max_steps=3)), factory=build)  # type: ignore[arg-type]
    assert sum(p.numel() for p in result.load_model().parameters()) < 1000


def test_a_run_that_does_not_exist_is_not_found(root: Path) -> None:
    with pytest.raises(NotFoundError):
        train.load(str(root), "nothing")


def test_callbacks_see_every_event(root: Path, tmp_path: Path) -> None:
    seen = tmp_path / "events"
    (tmp_path / "hook.py").write_text(
        "class Hook:\n"
        "    def on_event(self, kind, fields):\n"
        f"        with open({str(seen)!r}, 'a') as file:\n"
        "            file.write(kind + '\\n')\n"
    )
    mapping = {**experiment(root, epochs=None, max_steps=3), "callbacks": [f"{tmp_path}/hook.py:Hook"]}
    train.run(parse(mapping), run_id="hooked")
    kinds = [event["event"] for event in read_events(open_store(root), "hooked") if event["event"] != "log opened"]
    assert seen.read_text().splitlines() == kinds


def test_an_objective_on_a_split_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    make_dataset(tmp_path, rows=500, splits=("train",))
    with pytest.raises(RequestError, match=r"no split 'validation'; it has train"):
        train.run(parse(experiment(tmp_path)), run_id="never")
    assert not (tmp_path / "runs").exists()
