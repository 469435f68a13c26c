"""Runs in this process: resuming, damage, signals, user mistakes. Ray and Horovod are not needed."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain import config as configs
from mltrain import results, train, tune
from mltrain.errors import NotFoundError, RequestError, StoppedError, StorageError, TrainingError
from mltrain.results import read_events, read_metrics
from mltrain.storage import open_store
from mltrain.storage.lease import fence
from mltrain.storage.local import LocalStore
from mltrain.train import Report, Verdict, checkpoints
from tests.support.datasets import Features, make_dataset
from tests.support.training import OWN_LOSS_MODEL, ROWS, equal, experiment, faulty, parse, start, weights


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


def test_a_run_that_ends_leaves_nothing_of_what_its_killed_workers_wrote_aside(root: Path) -> None:
    aside = root / "runs/tidied/checkpoints/step-000000010" / f".mltrain-{0:032x}"
    aside.parent.mkdir(parents=True)
    aside.write_bytes(b"half of a part")
    train.run(parse(experiment(root, epochs=None, max_steps=12)), run_id="tidied")
    assert not aside.exists() and not list((root / "runs/tidied/checkpoints").rglob(".*"))


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
    root: Path, undisturbed: train.Result, tmp_path: Path
) -> None:
    flag = tmp_path / "sent"
    mapping = faulty(experiment(root, checkpoint={"every": "auto"}), tmp_path, at=[0, 7], what="signal", flag=str(flag))
    with start(mapping, "stopped", tmp_path / "logs") as process:
        ended = process.wait(120)
    assert ended.exit_code == 75
    assert train.load(str(root), "stopped").status == "stopped"
    assert checkpoints.stored(open_store(root).sub("runs/stopped"))[-1].step == 9
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


@pytest.mark.parametrize("every", [{"steps": 10}, {"seconds": 0.005}])
def test_a_slow_store_puts_the_next_checkpoint_off_visibly_and_holds_up_no_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, every: dict[str, float]
) -> None:
    released, put, run_id = threading.Event(), LocalStore.put, f"slow-{next(iter(every))}"

    def held(store: LocalStore, path: str, data: Any) -> Any:
        if "part-" in path:
            released.wait(30)
        return put(store, path, data)

    def progress(line: str) -> None:
        if "which is due, waits for it" in line:
            released.set()

    monkeypatch.setattr(LocalStore, "put", held)
    train.run(parse(experiment(root, checkpoint={"every": every, "keep": 100})), run_id=run_id, progress=progress)
    events = [e for e in read_events(open_store(root), run_id) if e["event"].startswith("checkpoint")]
    assert [event["event"] for event in events[:2]] == ["checkpoint delayed", "checkpoint"]
    late, saved = events[0]["waiting_for"], [event["step"] for event in events if event["event"] == "checkpoint"]
    # All steps were done all the same, and the one that was held back is there.
    assert saved[0] == late and len(samples(root, run_id)) == saved[-1]
    if "steps" in every:
        assert late == 10 and saved[1] > 20


def test_a_changed_config_is_refused_and_the_keys_are_named(root: Path, undisturbed: train.Result) -> None:
    # Not those that may change: the number of workers, and how often there is a checkpoint.
    mapping = experiment(root, workers=2, optimizer={"lr": 0.02}, checkpoint={"every": {"steps": 20}})
    with pytest.raises(RequestError, match=r"another config: train\.optimizer\.lr was 0\.01, now 0\.02\. Use the old"):
        train.run(parse(mapping), run_id="undisturbed")


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


def test_a_controller_whose_run_was_taken_does_not_end_it(root: Path) -> None:
    store = open_store(root).sub("runs/taken")

    def report(report: Report) -> Verdict:
        fence(store, "lease.json")
        return Verdict.CONTINUE

    with pytest.raises(TrainingError, match="Another controller has taken this run"):
        train.run(parse(experiment(root, epochs=1)), run_id="taken", report=report)
    with pytest.raises(NotFoundError):
        train.load(str(root), "taken")
    assert "run failed" not in [event["event"] for event in read_events(open_store(root), "taken")]


def test_a_user_mistake_is_one_line_with_its_traceback_in_a_file(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 3], what="raise")
    with pytest.raises(TrainingError, match="ValueError: the user's own mistake") as caught:
        train.run(parse(mapping), run_id="mistake")
    assert "\n" not in str(caught.value)
    log = open_store(root).sub("runs/mistake").get("logs/error-001.txt").decode()
    assert 'raise ValueError("the user\'s own mistake")' in log
    assert train.load(str(root), "mistake").status == "failed"


def test_a_model_that_exits_fails_its_run_and_not_the_process(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 3], what="exit")
    with pytest.raises(TrainingError, match=r"SystemExit: 0 \(step 3; traceback: "):
        train.run(parse(mapping), run_id="exit")
    assert train.load(str(root), "exit").status == "failed"


def test_a_full_disk_ends_a_run_with_the_part_that_could_not_be_written(root: Path, tmp_path: Path) -> None:
    mapping = experiment(root, evaluate={"every": {"steps": 5}}, checkpoint={"every": "auto"})
    mapping = faulty(mapping, tmp_path, at=[0, 2], what="full disk", flag=str(tmp_path / "full"), ballast=100_000)
    with start(mapping, "full", tmp_path / "logs") as process:
        ended = process.wait(60)
    assert ended.exit_code == 1
    assert "runs/full/checkpoints/step-000000005/part-" in ended.stderr and "File too large" in ended.stderr
    assert train.load(str(root), "full").status == "failed"
    assert train.run(parse(mapping), run_id="full").status == "finished"


def test_what_failed_first_is_told_even_if_the_failure_cannot_be_recorded(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 3], what="lost disk", run=str(root / "runs" / "lost"))
    with pytest.raises(StorageError, match="runs/lost/checkpoints/step-000000010/part-"):
        train.run(parse(mapping), run_id="lost")


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


def row(root: Path, run_id: str) -> dict[str, Any] | None:
    """The run's row in the runs table, if it has one."""
    rows = results.runs(str(root)).to_pylist(maps_as_pydicts="strict")
    return next((each for each in rows if each["run_id"] == run_id), None)


@pytest.mark.parametrize("run_id", ["../x", "", "a/b", "x" * 101, "x\n", "x?y*", ".x", 5])
def test_what_cannot_be_a_run_id_is_refused_wherever_one_is_taken(root: Path, run_id: Any) -> None:
    for refusing in (
        lambda: train.run(parse(experiment(root)), run_id=run_id),
        lambda: train.load(str(root), run_id),
        lambda: results.get(str(root), run_id),
        lambda: read_metrics(open_store(root), run_id),
    ):
        with pytest.raises(RequestError, match="run id .*wanted letters"):
            refusing()


def test_a_long_name_still_gives_ids_that_can_be_used(root: Path) -> None:
    mapping = {**experiment(root, epochs=None, max_steps=1), "name": "n" * 100}
    assert train.run(parse(mapping)).run_id.startswith("n" * 64 + "-")


def test_a_run_takes_a_loaded_experiment_and_says_what_else_it_was_given(root: Path) -> None:
    mapping = {
        "name": "table",
        "root": str(root),
        "dataset": {"table": "t", "label": {"column": "y", "type": "binary"}},
    }
    for given, said in (
        (configs.parse(mapping), r"a dataset file \(table\)"),
        ("sweep.yaml", "'sweep.yaml'"),
        (None, "None"),
    ):
        with pytest.raises(
            RequestError, match=rf"train.run was given {said}; wanted an experiment.*mltrain.config.load"
        ):
            train.run(given)  # type: ignore[arg-type]


def test_a_model_that_does_not_fit_in_memory_is_named_with_its_size(root: Path) -> None:
    mapping = {**experiment(root), "model": {"args": {"hidden": [10**12]}}}
    with pytest.raises(
        TrainingError, match=r"mltrain.models:tabular_mlp cannot build .*\d{13,} bytes.*before the first step"
    ):
        train.run(parse(mapping), run_id="huge")
    assert "tabular_mlp cannot build" in str((row(root, "huge") or {})["error"])


def test_an_objective_that_the_model_will_not_report_is_refused_before_the_first_step(
    root: Path, tmp_path: Path
) -> None:
    mapping = {**faulty(experiment(root), tmp_path), "objective": {"metric": "validation/rmse"}}
    with pytest.raises(RequestError, match=r"validation/rmse.*Model on this dataset has .*validation/auc"):
        train.run(parse(mapping), run_id="no-such-metric")
    with pytest.raises(NotFoundError):
        results.get(str(root), "no-such-metric")


@pytest.mark.parametrize("run", [train.run, tune.run])
def test_an_objective_that_a_built_in_model_will_not_report_is_refused_before_anything_starts(
    root: Path, run: Any
) -> None:
    sweep = {"search": "grid", "space": {"train.seed": {"choice": [1]}}}
    mapping = {**experiment(root, workers=2), "objective": {"metric": "validation/rmse"}, "tune": sweep}
    with pytest.raises(RequestError, match=r"mltrain.models:tabular_mlp on this dataset has .*validation/auc"):
        run(parse(mapping), run_id="never-begun")
    assert not list(root.glob("*/never-begun"))


def test_a_finished_run_is_not_run_again(root: Path, undisturbed: train.Result) -> None:
    lines: list[str] = []
    before, recorded = row(root, "undisturbed"), len(read_events(open_store(root), "undisturbed"))
    assert train.run(parse(experiment(root)), run_id="undisturbed", progress=lines.append) == undisturbed
    assert lines == ["run undisturbed has finished: nothing to do"]
    assert row(root, "undisturbed") == before is not None
    assert len(read_events(open_store(root), "undisturbed")) == recorded


def test_a_run_that_finished_without_its_row_gets_it_when_it_is_run_again(tmp_path: Path) -> None:
    make_dataset(tmp_path, rows=500)
    mapping = experiment(tmp_path, epochs=None, max_steps=1)
    train.run(parse(mapping), run_id="one")
    shutil.rmtree(tmp_path / "runs_table")
    result = train.run(parse(mapping), run_id="one")
    assert (row(tmp_path, "one") or {})["metrics"] == result.metrics


def test_a_model_with_its_own_loss_keeps_the_metrics_of_its_label(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, OWN_LOSS_MODEL)
    result = train.run(parse({**mapping, "objective": {"metric": "validation/auc", "mode": "max"}}))
    assert result.metrics["validation/auc"] > 0.85
    assert result.metrics["validation/loss"] < result.metrics["validation/log_loss"]


def test_outputs_of_another_shape_have_no_metrics_of_the_label(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, OWN_LOSS_MODEL, wide=True)
    assert set(train.run(parse(mapping)).metrics) == {"train/loss", "validation/loss"}
    with pytest.raises(RequestError, match="only where its outputs have the label's shape"):
        train.run(parse({**mapping, "objective": {"metric": "validation/auc", "mode": "max"}}))


def test_a_second_signal_ends_at_once_and_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    mapping = faulty(experiment(root), tmp_path, at=[0, 3], what="signal twice", flag=str(tmp_path / "sent"))
    with start(mapping, "twice", tmp_path / "logs") as process:
        ended = process.wait(120)
    assert ended.exit_code == 75
    assert "Ended at once (SIGTERM).\nto go on: " in ended.stderr and "twice" in ended.stderr
    assert train.run(parse(mapping), run_id="twice").status == "finished"
