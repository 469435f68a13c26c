"""Runs, trials and events as ``runs list`` and ``runs show`` print them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mltrain import config, results
from mltrain.cli.app import run
from mltrain.cli.tables import best_line, events_table, short_names, spent_table, story_table, trials_table
from mltrain.storage import open_store
from tests.support.saving import Ranks
from tests.unit.test_results_table import row

SWEEP = "adult-demo-20261123t115242-f95927"
OBJECTIVE = "validation/auc"


def test_runs_show_lists_checkpoints_with_step_size_age_and_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(str(tmp_path))
    best = f"{tmp_path}/runs/saved/checkpoints/step-000000001"
    results.append(str(tmp_path), row("saved", config=config.to_yaml(experiment()), checkpoint=best))
    with Ranks(store.sub("runs/saved")) as driver:
        driver.form(2)
        made = [driver.save(step) for step in (1, 2, 3)]
        driver.copy(4)
    (tmp_path / "runs/saved" / made[1].parts[0].path).unlink()
    store.sub("runs/saved").put("checkpoints/step-000000003/manifest.json", b"{")
    shown = said(capsys, "runs", "show", "saved", "--root", str(tmp_path))
    lines = [line.split() for line in shown.splitlines()]
    at = lines.index(["step", "size", "age", "state"])
    states = {words[0]: " ".join(words[3:]) for words in lines[at:] if words[:1] and words[0] in ("1", "2", "3", "4")}
    assert " ".join(next(words for words in lines[at:] if words[:1] == ["1"])).endswith("complete, the best")
    assert "damaged" in states["2"] and "missing" in states["2"] and "damaged" in states["3"]
    assert "incomplete" in states["4"]
    whole = json.loads(said(capsys, "runs", "show", "saved", "--root", str(tmp_path), "--output", "json"))
    assert [each["step"] for each in whole["checkpoints"]] == [1, 2, 3, 4]
    assert whole["checkpoints"][0]["size_bytes"] == made[0].size_bytes


def experiment(**changes: Any) -> config.Experiment:
    parsed = config.parse({"name": "a", "dataset": "adult", "objective": {"metric": OBJECTIVE}, **changes})
    assert isinstance(parsed, config.Experiment)
    return parsed


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep of two trials and a training."""
    root = str(tmp_path_factory.mktemp("root"))
    space = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}, "model.args.dropout": {"uniform": [0.0, 0.5]}}
    sweep = config.to_yaml(experiment(tune={"trials": 2, "space": space}))
    for number, (lr, auc) in enumerate(((3e-3, 0.81), (1e-2, 0.92))):
        chosen = experiment(train={"optimizer": {"lr": lr}}, model={"args": {"dropout": 0.25}})
        metrics = {OBJECTIVE: auc, "validation/loss": 0.3, "train/loss": 0.2}
        trial = row(f"{SWEEP}-00{number}", kind="trial", sweep_id=SWEEP, metrics=metrics, config=config.to_yaml(chosen))
        results.append(root, trial)
    best = f"{root}/runs/{SWEEP}-001/checkpoints/step-000000012"
    results.append(root, row(SWEEP, minutes=1, kind="sweep", metrics=metrics, config=sweep, checkpoint=best))
    open_store(root).put(f"sweeps/{SWEEP}/config.yaml", sweep.encode())
    alone = experiment(train={"epochs": 2, "global_batch_size": 77})
    results.append(root, row("alone", metrics={OBJECTIVE: 0.5}, config=config.to_yaml(alone), steps=7))
    with results.RunLog(open_store(root), "alone") as log:
        log.event("run started", step=0, dataset="d" * 64)
        log.event("evaluation", step=7, metrics={OBJECTIVE: 0.512345678901, "train/loss": 0.123456789})
        log.event("run finished", step=7, reason="all steps done")
    return root


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(words) == 0
    return capsys.readouterr().out


def test_runs_list_has_a_whole_id_and_the_objective_on_every_line(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said(capsys, "runs", "list", "--root", root).splitlines()
    assert max(map(len, lines)) <= 100
    shown = {line.split()[0]: line.split() for line in lines[3:]}
    assert list(shown) == ["alone", SWEEP, "…-000", "…-001"]
    assert shown["…-001"][4:6] == [OBJECTIVE, "0.92"]
    assert shown["alone"][4:6] == [OBJECTIVE, "0.5"]
    assert "losses_survived" not in "".join(lines)
    assert "losses_survived" in said(capsys, "runs", "list", "--root", root, "--wide")


def test_runs_show_of_a_sweep_says_which_trial_won_with_what(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "runs", "show", SWEEP, "--root", root)
    assert f"best 001: {OBJECTIVE} 0.92  lr 0.01  dropout 0.25" in shown
    trials = shown[shown.index("the best first") :]
    assert trials.index(" 001 ") < trials.index(" 000 ")
    assert "loguniform 0.0001, 0.1" in shown
    assert max(map(len, shown.splitlines())) <= max(100, len(root) + 90)
    assert "epochs" not in shown


def test_runs_show_of_a_trial_says_what_it_set_and_json_has_all_of_its_config(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "runs", "show", f"{SWEEP}-000", "--root", root)
    assert [line.split() for line in shown.splitlines() if "train.optimizer.lr" in line] == [
        ["train.optimizer.lr", "0.003"]
    ]
    whole = json.loads(said(capsys, "runs", "show", f"{SWEEP}-000", "--root", root, "--output", "json"))
    assert whole["parameters"] == {"train.optimizer.lr": 0.003, "model.args.dropout": 0.25}
    assert "heartbeat" in whole["config"]


def test_runs_show_of_a_training_says_what_differs_from_the_defaults(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = said(capsys, "runs", "show", "alone", "--root", root)
    assert "train.global_batch_size" in shown and "77" in shown
    assert "heartbeat" not in shown


def test_what_happened_to_a_training_is_told(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "runs", "show", "alone", "--root", root)
    assert [" ".join(line.split()) for line in shown[shown.index("what happened") :].splitlines()[2:]] == [
        "0:00 started",
        f"0:00 evaluation after step 7 ({OBJECTIVE} 0.5123)",
        "0:00 finished after step 7: all steps done",
    ]
    stored = results.show(root, "alone")["events"]
    assert [event["time"] for event in stored] == sorted(event["time"] for event in stored)


def test_of_a_long_story_the_beginning_and_the_end_are_shown() -> None:
    shown = story_table([{"seconds": 60.0 * n, "text": f"chapter {n}"} for n in range(1000)]).rows
    assert len(shown) == 61
    assert list(shown[0]) == ["0:00", "chapter 0"]
    assert list(shown[1]) == ["…", "940 lines are left out here; --output json has them"]
    assert list(shown[2]) == ["15:41:00", "chapter 941"]


def test_the_seconds_of_a_runs_nodes_are_split_by_market_and_use(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.append(str(tmp_path), row("spot", metrics={OBJECTIVE: 0.5}, config=config.to_yaml(experiment()), workers=2))
    with results.RunLog(open_store(tmp_path), "spot") as log:
        for worker, market in (("a", "spot"), ("b", "on-demand")):
            log.event("worker started", worker=worker, market=market)
            log.event("worker ready", worker=worker)
        log.event("generation formed", generation=1, members=["a", "b"], reason="")
        log.event("run finished", step=7, reason="all steps done")
    shown = said(capsys, "runs", "show", "spot", "--root", str(tmp_path))
    assert [line.split()[0] for line in shown[shown.index("node seconds") :].splitlines()[2:5]] == [
        "on-demand",
        "spot",
        "share",
    ]
    found = results.show(str(tmp_path), "spot")["node_seconds"]
    assert set(found) == {"spot", "on-demand"} and set(found["spot"]) >= {"training", "pauses", "idle"}
    assert "node seconds" not in said(capsys, "runs", "show", "alone", "--root", root)


def test_shares_are_of_all_markets() -> None:
    shown = spent_table({"spot": {"training": 60.0, "idle": 15.0}, "on-demand": {"training": 20.0, "idle": 5.0}}).rows
    assert [list(line) for line in shown] == [
        ["on-demand", "20.0", "5.0"],
        ["spot", "60.0", "15.0"],
        ["share", "80.0%", "20.0%"],
    ]


def test_events_of_a_sweep_are_a_line_each_with_rounded_numbers() -> None:
    trial = {"trial": f"{SWEEP}-001", "metrics": {OBJECTIVE: 0.512345678, "train/auc": 0.9}}
    shown = events_table([{"time": 0.0, "event": "trial finished", "attempt": 1, **trial}], OBJECTIVE)
    assert [list(row) for row in shown.rows] == [["01-01 00:00:00", "trial finished", f"trial 001  {OBJECTIVE} 0.5123"]]


def test_a_trial_without_a_result_comes_last() -> None:
    trials: list[dict[str, Any]] = [
        {"run_id": f"s-00{n}", "status": "x", "steps": 1, "wall_s": 1.0, "metrics": metrics, "parameters": {"a.lr": n}}
        for n, metrics in enumerate(
            [{}, {"validation/loss": float("nan")}, {"validation/loss": 2.0}, {"validation/loss": 1.0}]
        )
    ]
    shown = trials_table("s", trials, "validation/loss", "min")
    assert [line[0] for line in shown.rows] == ["003", "002", "000", "001"]


def test_parameters_have_short_names_where_they_differ() -> None:
    keys = ["train.optimizer.lr", "model.args.dropout", "model.args.head.dropout"]
    assert short_names(keys) == {keys[0]: "lr", keys[1]: "args.dropout", keys[2]: "head.dropout"}
    assert best_line("s", "s-002", "validation/f1", 0.7754321, {"train.optimizer.lr": 0.0031234}) == (
        "best 002: validation/f1 0.7754  lr 0.003123"
    )
